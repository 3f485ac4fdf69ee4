// Two tensors that are broadcast against each other.
#pragma once
#include "kernel.h"

namespace emulated {

// The common strides get loops of their own, which the compiler can vectorise.
template <typename T, typename Result, typename Function>
void combine(const Operand& a, const Operand& b, const Operand& to, Function function) {
  const std::array<Dims, 3> strides = {broadcast_strides(a.dims, to.dims), broadcast_strides(b.dims, to.dims), to.strides};
  for_rows<3>(to.dims, strides, [&](const auto& offsets, const auto& steps, int64_t n) {
    const T* x = a.as<T>() + offsets[0];
    const T* y = b.as<T>() + offsets[1];
    Result* z = to.as<Result>() + offsets[2];
    if (steps[0] == 1 && steps[1] == 1) {
      for (int64_t i = 0; i < n; ++i) z[i] = function(x[i], y[i]);
    } else if (steps[0] == 1 && steps[1] == 0) {
      const T second = *y;
      for (int64_t i = 0; i < n; ++i) z[i] = function(x[i], second);
    } else {
      for (int64_t i = 0; i < n; ++i) z[i * steps[2]] = function(x[i * steps[0]], y[i * steps[1]]);
    }
  });
}

}  // namespace emulated
