// Passes over one row: quantise, normalise, dequantise, gate, rotate. Included by vector_kernels.inc.cc.

static inline float max_abs(const float* x, int64_t n) {
  float peak = 0.0f;
#pragma omp simd reduction(max : peak)
  for (int64_t i = 0; i < n; ++i) {
    float a = std::fabs(x[i]);
    peak = a > peak ? a : peak;
  }
  return peak;
}

// A row below this counts as zero: 127 divided by it would overflow.
constexpr float kZeroBelow = 1e-30f;

// 0, or NaN where an element is not finite. Comparisons pass over NaN; it must reach the logits, where it is found, so it is
// carried by the row's scale.
static inline float poison(const float* x, int64_t n) {
  float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) sum += x[i] * 0.0f;
  return sum;
}

// The scale of a row that is quantised to -127 .. 127, and what its elements are multiplied by.
static inline float quantization(const float* x, int64_t n, float* inverse) {
  float peak = max_abs(x, n);
  bool nothing = peak < kZeroBelow;
  *inverse = nothing ? 1.0f : 127.0f / peak;
  return (nothing ? 1.0f : peak / 127.0f) + poison(x, n);
}

// q[i] = round_half_even(scaled(x[i])) + offset, `step` places apart. Products are stored before they are rounded: fused with the
// rounding, a product on the border between two integers could go the other way than in the reference.
template <int kOffset, typename Scaled, typename T>
static inline void round_row(const float* x, int64_t n, Scaled scaled, T* q, int64_t step) {
  constexpr int64_t kPiece = 256;
  float products[kPiece];
  for (int64_t first = 0; first < n; first += kPiece) {
    const int64_t count = n - first < kPiece ? n - first : kPiece;
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) products[i] = scaled(x[first + i]);
    T* out = q + first * step;
    if (step == 1) {
#pragma omp simd
      for (int64_t i = 0; i < count; ++i) out[i] = static_cast<T>(round_even(products[i]) + kOffset);
    } else {
      for (int64_t i = 0; i < count; ++i) out[i * step] = static_cast<T>(round_even(products[i]) + kOffset);
    }
  }
}

static void quantize(const float* x, int64_t n, uint8_t* q, float* scale) {
  float inverse;
  *scale = quantization(x, n, &inverse);
  round_row<128>(x, n, [inverse](float v) { return v * inverse; }, q, 1);
}

static void rms_norm(const float* x, const float* weight, float eps, int64_t n, float* out) {
  float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) sum += x[i] * x[i];
  float factor = 1.0f / std::sqrt(sum / static_cast<float>(n) + eps);
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) out[i] = x[i] * factor * weight[i];
}

static void rms_norm_quantize(const float* x, const float* weight, float eps, int64_t n, float* normed, uint8_t* q,
                              float* scale) {
  rms_norm(x, weight, eps, n, normed);
  quantize(normed, n, q, scale);
}

static inline float dequantized(const Dequant& d, int64_t i) {
  return static_cast<float>(d.acc[i] - d.zero_point[i]) * d.row_scale * d.weight_scale[i];
}

static void dequantize(const Dequant& d, int64_t n, float* out) {
  if (d.bias != nullptr) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) out[i] = dequantized(d, i) + d.bias[i];
  } else {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) out[i] = dequantized(d, i);
  }
}

static void dequantize_add(const Dequant& d, const float* residual, int64_t n, float* out) {
  if (d.bias != nullptr) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) out[i] = residual[i] + (dequantized(d, i) + d.bias[i]);
  } else {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) out[i] = residual[i] + dequantized(d, i);
  }
}

static inline float silu(float x) {
  float e = exp_fast(x > 0.0f ? -x : x);  // never above 1
  return x > 0.0f ? x / (1.0f + e) : x * e / (1.0f + e);
}

static void silu_mul(const float* gate, const float* up, int64_t n, float* out) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) out[i] = silu(gate[i]) * up[i];
}

static void silu_mul_quantize(const Dequant& d, int64_t n, float* gated, uint8_t* q, float* scale) {
  if (d.bias != nullptr) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i)
      gated[i] = silu(dequantized(d, i) + d.bias[i]) * (dequantized(d, n + i) + d.bias[n + i]);
  } else {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) gated[i] = silu(dequantized(d, i)) * dequantized(d, n + i);
  }
  quantize(gated, n, q, scale);
}

static void rotate(float* x, const float* cos, const float* sin, int64_t dim) {
  int64_t half = dim / 2;
#pragma omp simd
  for (int64_t i = 0; i < half; ++i) {
    float first = x[i], second = x[i + half];
    x[i] = first * cos[i] - second * sin[i];
    x[i + half] = second * cos[i] + first * sin[i];
  }
}
