// Shapes and strides, in elements.
#pragma once
#include <algorithm>
#include <array>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace emulated {

using Dims = std::vector<int64_t>;

inline int64_t count(const Dims& dims) {
  int64_t product = 1;
  for (const int64_t dim : dims) product *= dim;
  return product;
}

// Of the dimensions first .. last - 1.
inline int64_t count(const Dims& dims, size_t first, size_t last) {
  return count(Dims(dims.begin() + static_cast<int64_t>(first), dims.begin() + static_cast<int64_t>(last)));
}

// Row-major.
inline Dims strides_of(const Dims& dims) {
  Dims strides(dims.size(), 1);
  for (size_t i = dims.size(); i-- > 1;) strides[i - 1] = strides[i] * dims[i];
  return strides;
}

inline size_t axis_of(int64_t axis, size_t rank) {
  const int64_t positive = axis < 0 ? axis + static_cast<int64_t>(rank) : axis;
  if (positive < 0 || positive >= static_cast<int64_t>(rank)) throw std::runtime_error("axis " + std::to_string(axis));
  return static_cast<size_t>(positive);
}

// The shape that two shapes are broadcast to, aligned at their ends.
inline Dims broadcast(const Dims& a, const Dims& b) {
  Dims out(std::max(a.size(), b.size()), 1);
  for (size_t i = 0; i < out.size(); ++i) {
    const int64_t x = i < a.size() ? a[a.size() - 1 - i] : 1;
    const int64_t y = i < b.size() ? b[b.size() - 1 - i] : 1;
    if (x != y && x != 1 && y != 1) throw std::runtime_error("shapes cannot be broadcast");
    out[out.size() - 1 - i] = x == 1 ? y : x;
  }
  return out;
}

// Strides with which a row-major tensor is read as if it had the shape `out`; 0 where it is repeated.
inline Dims broadcast_strides(const Dims& dims, const Dims& out) {
  const Dims own = strides_of(dims);
  Dims strides(out.size(), 0);
  for (size_t i = 0; i < dims.size(); ++i) {
    if (dims[i] != 1) strides[out.size() - dims.size() + i] = own[i];
  }
  return strides;
}

// Walks tensors of one shape side by side and calls row(offsets, steps, n) for each stretch of n elements. Dimensions that lie
// one behind the other in all tensors are walked as one.
template <size_t N, typename Row>
void for_rows(const Dims& shape, const std::array<Dims, N>& strides, Row&& row) {
  Dims dims;
  std::array<Dims, N> walked;
  for (size_t i = 0; i < shape.size(); ++i) {
    if (shape[i] == 0) return;
    if (shape[i] == 1) continue;
    bool merges = !dims.empty();
    for (size_t t = 0; t < N && merges; ++t) merges = walked[t].back() == strides[t][i] * shape[i];
    if (!merges) {
      dims.push_back(1);
      for (size_t t = 0; t < N; ++t) walked[t].push_back(0);
    }
    dims.back() *= shape[i];
    for (size_t t = 0; t < N; ++t) walked[t].back() = strides[t][i];
  }
  std::array<int64_t, N> offsets{};
  std::array<int64_t, N> steps{};
  if (dims.empty()) return row(offsets, steps, int64_t{1});
  const size_t last = dims.size() - 1;
  for (size_t t = 0; t < N; ++t) steps[t] = walked[t][last];
  Dims position(last, 0);
  for (;;) {
    row(offsets, steps, dims[last]);
    size_t i = last;
    for (; i > 0; --i) {
      if (++position[i - 1] < dims[i - 1]) break;
      position[i - 1] = 0;
      for (size_t t = 0; t < N; ++t) offsets[t] -= walked[t][i - 1] * (dims[i - 1] - 1);
    }
    if (i == 0) return;
    for (size_t t = 0; t < N; ++t) offsets[t] += walked[t][i - 1];
  }
}

}  // namespace emulated
