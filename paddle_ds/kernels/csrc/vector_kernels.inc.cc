// The loops behind VectorKernels. Compiled several times with PDS_ISA set to a namespace and different -march flags.
#include <cmath>
#include <cstring>

#include "vector_kernels.h"

namespace pds {
namespace PDS_ISA {

typedef float Lanes __attribute__((vector_size(kBlockTokens * sizeof(float)), aligned(4)));

// Adding and subtracting 1.5 * 2^23 rounds to the nearest whole number, ties to even, as the reference does.
constexpr float kRoundMagic = 12582912.0f;
constexpr int32_t kRoundMagicBits = 0x4B400000;

static inline int32_t round_even(float x) {
  float shifted = x + kRoundMagic;
  int32_t bits;
  std::memcpy(&bits, &shifted, sizeof(bits));
  return bits - kRoundMagicBits;
}

// exp(x) for x <= 88, relative error below 2e-7: 2^n * p(r), r = x - n ln 2 in [-0.35, 0.35] (Cephes expf).
static inline float exp_fast(float x) {
  x = x < -87.0f ? -87.0f : x;
  float n = (x * 1.44269504088896341f + kRoundMagic) - kRoundMagic;
  float r = x - n * 0.693359375f;
  r = r - n * -2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  int32_t exponent = (static_cast<int32_t>(n) + 127) << 23;
  float scale;
  std::memcpy(&scale, &exponent, sizeof(scale));
  return p * scale;
}

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

static void quantize(const float* x, int64_t n, uint8_t* q, float* scale) {
  float peak = max_abs(x, n);
  // Comparisons pass over NaN; it must reach the logits, where it is found, so it is carried by the scale.
  float poison = 0.0f;
#pragma omp simd reduction(+ : poison)
  for (int64_t i = 0; i < n; ++i) poison += x[i] * 0.0f;
  bool nothing = peak < kZeroBelow;
  float inverse = nothing ? 1.0f : 127.0f / peak;
  *scale = (nothing ? 1.0f : peak / 127.0f) + poison;
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) q[i] = static_cast<uint8_t>(round_even(x[i] * inverse) + 128);
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

static void write_key(const float* key, float* block, int64_t offset, int64_t dim) {
  for (int64_t i = 0; i < dim; ++i) block[i * kBlockTokens + offset] = key[i];
}

// Scores of `count` query vectors against the 16 tokens of one block. Elements are added in order of i, whatever `count` is.
template <int kCount>
static inline void block_scores(const float* const* queries, const float* keys, int head_dim, float scale, float* const* out) {
  Lanes sums[kCount];
  for (int c = 0; c < kCount; ++c) sums[c] = Lanes{};
  for (int i = 0; i < head_dim; ++i) {
    Lanes key = *reinterpret_cast<const Lanes*>(keys + i * kBlockTokens);
    for (int c = 0; c < kCount; ++c) sums[c] += queries[c][i] * key;
  }
  for (int c = 0; c < kCount; ++c) *reinterpret_cast<Lanes*>(out[c]) = sums[c] * scale;
}

// out[c][0 .. 16) += sum over the block's first `tokens` tokens of weight * value, in order of tokens.
template <int kCount>
static inline void block_values(const float* const* weights, const float* values, int64_t stride, int tokens, Lanes* sums) {
  for (int t = 0; t < tokens; ++t) {
    Lanes value = *reinterpret_cast<const Lanes*>(values + t * stride);
    for (int c = 0; c < kCount; ++c) sums[c] += weights[c][t] * value;
  }
}

// Turn scores into weights that sum to one; returns nothing, works in place on the first `context` entries.
static void softmax(float* scores, int64_t context) {
  float peak = scores[0];
#pragma omp simd reduction(max : peak)
  for (int64_t i = 0; i < context; ++i) peak = scores[i] > peak ? scores[i] : peak;
  Lanes sums = Lanes{};
  int64_t whole = context / kBlockTokens * kBlockTokens;
  for (int64_t i = 0; i < whole; i += kBlockTokens) {
#pragma omp simd
    for (int l = 0; l < kBlockTokens; ++l) scores[i + l] = exp_fast(scores[i + l] - peak);
    sums += *reinterpret_cast<const Lanes*>(scores + i);
  }
  float total = 0.0f;
  for (int l = 0; l < kBlockTokens; ++l) total += sums[l];
  for (int64_t i = whole; i < context; ++i) {
    scores[i] = exp_fast(scores[i] - peak);
    total += scores[i];
  }
  float inverse = 1.0f / total;
#pragma omp simd
  for (int64_t i = 0; i < context; ++i) scores[i] *= inverse;
}

struct Tiled {
  const AttentionTile& t;
  int64_t padded, stride, block_floats_k, block_floats_v;

  explicit Tiled(const AttentionTile& tile) : t(tile) {
    int64_t longest = t.first_context + t.rows - 1;
    padded = (longest + kBlockTokens - 1) / kBlockTokens * kBlockTokens;
    stride = padded_dim(t.head_dim);
    block_floats_k = static_cast<int64_t>(t.head_dim) * kBlockTokens;
    block_floats_v = stride * kBlockTokens;
  }
  const float* key_block(int64_t b) const {
    return t.keys + (static_cast<int64_t>(t.block_table[b]) * t.num_kv_heads + t.kv_head) * block_floats_k;
  }
  const float* value_block(int64_t b) const {
    return t.values + (static_cast<int64_t>(t.block_table[b]) * t.num_kv_heads + t.kv_head) * block_floats_v;
  }
  const float* query(int v) const {
    return t.query + (v / t.group) * t.query_stride + (t.kv_head * t.group + v % t.group) * t.head_dim;
  }
  float* out(int v) const {
    return t.out + (v / t.group) * t.out_stride + (t.kv_head * t.group + v % t.group) * t.head_dim;
  }
  float* scores(int v) const { return t.scratch + v * padded; }
  int64_t context(int v) const { return t.first_context + v / t.group; }
};

template <int kCount>
static void tile_scores(const Tiled& w, int first, int64_t block, float scale) {
  const float* queries[kCount];
  float* out[kCount];
  for (int c = 0; c < kCount; ++c) {
    queries[c] = w.query(first + c);
    out[c] = w.scores(first + c) + block * kBlockTokens;
  }
  block_scores<kCount>(queries, w.key_block(block), w.t.head_dim, scale, out);
}

template <int kCount>
static void tile_values(const Tiled& w, int first, int64_t column) {
  Lanes sums[kCount];
  for (int c = 0; c < kCount; ++c) sums[c] = Lanes{};
  // vectors of one row share their context; a tile never mixes rows here unless the later rows' extra weights are zero
  int64_t longest = w.context(first + kCount - 1);
  for (int64_t start = 0; start < longest; start += kBlockTokens) {
    const float* weights[kCount];
    for (int c = 0; c < kCount; ++c) weights[c] = w.scores(first + c) + start;
    int tokens = static_cast<int>(longest - start < kBlockTokens ? longest - start : kBlockTokens);
    block_values<kCount>(weights, w.value_block(start / kBlockTokens) + column, w.stride, tokens, sums);
  }
  for (int c = 0; c < kCount; ++c) {
    int64_t left = w.t.head_dim - column;
    std::memcpy(w.out(first + c) + column, &sums[c], sizeof(float) * (left < kValuePad ? left : kValuePad));
  }
}

template <int kCount>
static void attend_vectors(const Tiled& w, int first, float scale) {
  int64_t longest = w.context(first + kCount - 1);
  for (int64_t b = 0; b * kBlockTokens < longest; ++b) tile_scores<kCount>(w, first, b, scale);
  for (int c = 0; c < kCount; ++c) {
    float* scores = w.scores(first + c);
    int64_t context = w.context(first + c);
    softmax(scores, context);
    for (int64_t i = context; i < longest; ++i) scores[i] = 0.0f;  // adding zero changes no bit of a sum
  }
  for (int64_t column = 0; column < w.t.head_dim; column += kValuePad) tile_values<kCount>(w, first, column);
}

static void attend(const AttentionTile& tile) {
  Tiled w(tile);
  int vectors = tile.rows * tile.group, v = 0;
  float scale = 1.0f / std::sqrt(static_cast<float>(tile.head_dim));
  for (; v + PDS_TILE <= vectors; v += PDS_TILE) attend_vectors<PDS_TILE>(w, v, scale);
  for (; v + 2 <= vectors; v += 2) attend_vectors<2>(w, v, scale);
  for (; v < vectors; ++v) attend_vectors<1>(w, v, scale);
}

static void int8_columns(const uint8_t* a, int64_t m, const int8_t* weight, int64_t first, int64_t last, int64_t n, int64_t k,
                         int32_t* acc) {
  for (int64_t column = first; column < last; ++column) {
    const int8_t* w = weight + column * k;
    for (int64_t row = 0; row < m; ++row) {
      const uint8_t* x = a + row * k;
      int32_t sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int64_t i = 0; i < k; ++i) {
        int16_t left = x[i], right = w[i];  // 16 bits: two such products and their sum fit 32 without saturation
        sum += left * right;
      }
      acc[row * n + column] = sum;
    }
  }
}

typedef int8_t ByteLanes __attribute__((vector_size(kBlockTokens), aligned(1)));

static inline float add_lanes(Lanes v) {
  float total = 0.0f;
  for (int l = 0; l < kBlockTokens; ++l) total += v[l];
  return total;
}

// One column for `kRows` rows: a row's sum is added in the same order whatever kRows is.
template <int kRows>
static inline void weight_only_dot(const float* x, const int8_t* w, int64_t k, float* sums) {
  Lanes acc[kRows];
  for (int r = 0; r < kRows; ++r) acc[r] = Lanes{};
  int64_t i = 0;
  for (; i + kBlockTokens <= k; i += kBlockTokens) {
    Lanes wide = __builtin_convertvector(*reinterpret_cast<const ByteLanes*>(w + i), Lanes);
    for (int r = 0; r < kRows; ++r) acc[r] += *reinterpret_cast<const Lanes*>(x + r * k + i) * wide;
  }
  for (int r = 0; r < kRows; ++r) sums[r] = add_lanes(acc[r]);
  for (; i < k; ++i)
    for (int r = 0; r < kRows; ++r) sums[r] += x[r * k + i] * static_cast<float>(w[i]);
}

static void weight_only_columns(const float* x, int64_t m, const int8_t* weight, const float* scale, const float* bias,
                                int64_t first, int64_t last, int64_t n, int64_t k, float* y) {
  for (int64_t column = first; column < last; ++column) {
    const int8_t* w = weight + column * k;
    float offset = bias == nullptr ? 0.0f : bias[column];
    float sums[4];
    int64_t row = 0;
    for (; row + 4 <= m; row += 4) {
      weight_only_dot<4>(x + row * k, w, k, sums);
      for (int r = 0; r < 4; ++r) y[(row + r) * n + column] = sums[r] * scale[column] + offset;
    }
    for (; row < m; ++row) {
      weight_only_dot<1>(x + row * k, w, k, sums);
      y[row * n + column] = sums[0] * scale[column] + offset;
    }
  }
}

extern const VectorKernels kKernels;
const VectorKernels kKernels = {PDS_NAME,       quantize,          rms_norm_quantize, rms_norm, dequantize,
                                dequantize_add, silu_mul_quantize, silu_mul,          rotate,   write_key,
                                attend,         weight_only_columns, int8_columns};

}  // namespace PDS_ISA
}  // namespace pds
