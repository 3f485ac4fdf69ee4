// Passes over a row of logits, for the choice of the next token. Included by vector_kernels.inc.cc.

// Index of the largest element, the first of equals; of a NaN where there is one.
static int64_t argmax(const float* x, int64_t n) {
  float peak = x[0], poison = 0.0f;
#pragma omp simd reduction(max : peak) reduction(+ : poison)
  for (int64_t i = 0; i < n; ++i) {
    peak = x[i] > peak ? x[i] : peak;
    poison += x[i] * 0.0f;
  }
  if (poison == 0.0f)
    for (int64_t i = 0; i < n; ++i)
      if (x[i] == peak) return i;
  for (int64_t i = 0; i < n; ++i)
    if (x[i] != x[i]) return i;
  for (int64_t i = 0; i < n; ++i)  // infinities
    if (x[i] == peak) return i;
  return 0;
}

// out[b] = the largest of elements b * size .. (b + 1) * size
static void block_peaks(const float* x, int64_t n, int64_t size, float* out) {
  for (int64_t first = 0, b = 0; first < n; first += size, ++b) {
    int64_t count = n - first < size ? n - first : size;
    float peak = x[first];
#pragma omp simd reduction(max : peak)
    for (int64_t i = 0; i < count; ++i) peak = x[first + i] > peak ? x[first + i] : peak;
    out[b] = peak;
  }
}

// sum of exp((x - peak) * inverse_temperature): floats within a run of 4096, runs in double, always in the same order
static double exp_sum(const float* x, int64_t n, float peak, float inverse_temperature) {
  constexpr int64_t kRun = 4096;
  double total = 0.0;
  for (int64_t first = 0; first < n; first += kRun) {
    int64_t count = n - first < kRun ? n - first : kRun, i = 0;
    Lanes sums = Lanes{};
    for (; i + kBlockTokens <= count; i += kBlockTokens) {
      Lanes weights;
#pragma omp simd
      for (int l = 0; l < kBlockTokens; ++l) weights[l] = exp_fast((x[first + i + l] - peak) * inverse_temperature);
      sums += weights;
    }
    float run = add_lanes(sums);
    for (; i < count; ++i) run += exp_fast((x[first + i] - peak) * inverse_temperature);
    total += static_cast<double>(run);
  }
  return total;
}
