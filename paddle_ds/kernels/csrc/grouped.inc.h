// Grouped integers to floats. Included by vector_kernels.inc.cc.

// The difference is exact and the product is rounded once, so every instruction set gives the reference's weights, bit for bit.
static void widen_grouped(const GroupedRow& row, int8_t* integers, float* out) {
  const int8_t* q = static_cast<const int8_t*>(row.values);
  if (row.bits == 4) {
    const uint8_t* packed = static_cast<const uint8_t*>(row.values);
    const int64_t half = (row.k + 1) / 2, rest = row.k - half;
    int8_t* second = integers + half;
#pragma omp simd
    for (int64_t i = 0; i < half; ++i) integers[i] = static_cast<int8_t>((packed[i] & 15) - 8);
#pragma omp simd
    for (int64_t i = 0; i < rest; ++i) second[i] = static_cast<int8_t>((packed[i] >> 4) - 8);
    q = integers;
  }
  for (int64_t g = 0; g < row.groups; ++g) {
    const float scale = row.scales[g];
    const float zero = row.zero_points == nullptr ? 0.0f : static_cast<float>(row.zero_points[g]);
#pragma omp simd
    for (int64_t i = row.starts[g]; i < row.starts[g + 1]; ++i) out[i] = (static_cast<float>(q[i]) - zero) * scale;
  }
}
