// Inner products, in an order that depends on the length alone: results are the same on every machine.
#pragma once
#include <cstdint>

namespace emulated {

// In double, in eight sums side by side.
template <typename T>
double dot(const T* a, const T* b, int64_t n) {
  double sums[8] = {};
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    for (int lane = 0; lane < 8; ++lane) sums[lane] += static_cast<double>(a[i + lane]) * static_cast<double>(b[i + lane]);
  }
  double rest = 0;
  for (; i < n; ++i) rest += static_cast<double>(a[i]) * static_cast<double>(b[i]);
  return ((sums[0] + sums[4]) + (sums[1] + sums[5])) + ((sums[2] + sums[6]) + (sums[3] + sums[7])) + rest;
}

// Exact, as long as there are fewer than 131,072 products.
inline int32_t dot(const int8_t* a, const int8_t* b, int64_t n) {
  int32_t sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += static_cast<int32_t>(static_cast<int16_t>(a[i]) * static_cast<int16_t>(b[i]));
  return sum;
}

}  // namespace emulated
