#include "grouped_linear.h"

#include <algorithm>

#include "vector_kernels.h"

namespace pds {

namespace {

// Rows that go through a layer together: what is multiplied by a column should stay in the cache.
constexpr int64_t kRows = 128;
// Columns that one thread takes at a time, and of these so many as floats at once: they should stay in the nearest cache. The
// second is a multiple of what a tile of the product takes; a sum's bits do not depend on either.
constexpr int64_t kColumns = 32;
constexpr int64_t kWidened = 4;
// Below this many elements a parallel region costs more than it saves.
constexpr int64_t kSerialElements = 16384;

// Scratch that grows and is kept by each thread.
struct Scratch {
  std::vector<float> weights;
  std::vector<int8_t> integers;
};

Scratch& scratch(int64_t k) {
  static thread_local Scratch kept;
  if (static_cast<int64_t>(kept.integers.size()) < k) {
    kept.weights.resize(kWidened * k);
    kept.integers.resize(k);
  }
  return kept;
}

// Columns first .. last of the product: a few at a time are widened and multiplied by all rows.
void columns(const GroupedView& layer, const float* x, int64_t rows, int64_t first, int64_t last, float* y) {
  const VectorKernels& v = vector_kernels();
  Scratch& s = scratch(layer.k);
  GroupedRow row{layer.bits, nullptr, layer.k, layer.groups, layer.starts, nullptr, nullptr};
  for (int64_t column = first; column < last; column += kWidened) {
    const int64_t count = std::min(kWidened, last - column);
    for (int64_t c = 0; c < count; ++c) {
      row.values = static_cast<const char*>(layer.values) + (column + c) * layer.row_bytes();
      row.scales = layer.scales + (column + c) * layer.groups;
      if (layer.zero_points != nullptr) row.zero_points = layer.zero_points + (column + c) * layer.groups;
      v.widen_grouped(row, s.integers.data(), s.weights.data() + c * layer.k);
    }
    const float* bias = layer.bias == nullptr ? nullptr : layer.bias + column;
    // columns of this product count from 0, its rows of y are those of the whole
    v.float_columns({x, rows, layer.n, layer.k, WeightType::kFloat32, s.weights.data(), nullptr, bias, y + column}, 0, count);
  }
}

// Rows of x with their elements in the order of the columns.
const float* ordered(const GroupedView& layer, const float* x, int64_t rows) {
  static thread_local std::vector<float> kept;
  if (layer.order == nullptr) return x;
  if (static_cast<int64_t>(kept.size()) < rows * layer.k) kept.resize(rows * layer.k);
  float* out = kept.data();
#pragma omp parallel for if (rows > 1 && rows * layer.k > kSerialElements)
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t i = 0; i < layer.k; ++i) out[r * layer.k + i] = x[r * layer.k + layer.order[i]];
  return out;
}

template <typename T>
const T* start_of(const std::vector<T>& values) {
  return values.empty() ? nullptr : values.data();
}

}  // namespace

void grouped_linear(const GroupedLinear& layer, const float* x, int64_t rows, float* y) {
  const GroupedView view{layer.n,
                         layer.k,
                         layer.groups,
                         layer.bits,
                         layer.values.data(),
                         layer.scales.data(),
                         start_of(layer.zero_points),
                         layer.starts.data(),
                         start_of(layer.order),
                         start_of(layer.bias)};
  grouped_linear(view, x, rows, y);
}

void grouped_linear(const GroupedView& layer, const float* x, int64_t rows, float* y) {
  for (int64_t first_row = 0; first_row < rows; first_row += kRows) {
    const int64_t count = std::min(kRows, rows - first_row);
    const float* in = ordered(layer, x + first_row * layer.k, count);
    float* out = y + first_row * layer.n;
#pragma omp parallel for schedule(monotonic : dynamic) if (layer.n * layer.k > kSerialElements)
    for (int64_t first = 0; first < layer.n; first += kColumns)
      columns(layer, in, count, first, std::min(first + kColumns, layer.n), out);
  }
}

}  // namespace pds
