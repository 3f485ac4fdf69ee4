// A linear layer on integers of 4 or 8 bits with a scale, and perhaps a zero point, per output and group of inputs.
#pragma once

#include <cstdint>
#include <vector>

#include "int8_gemm.h"

namespace pds {

struct GroupedLinear {
  GroupedLinear(int64_t n, int64_t k, int64_t groups, int bits)
      : n(n), k(k), groups(groups), bits(bits), values(static_cast<size_t>(n * row_bytes())) {}

  int64_t row_bytes() const { return bits == 4 ? (k + 1) / 2 : k; }

  int64_t n, k, groups;
  int bits;
  PackedBytes values;                // [n][row_bytes()], see GroupedRow
  std::vector<float> scales;         // [n][groups]
  std::vector<int16_t> zero_points;  // [n][groups], empty: all 0
  std::vector<int32_t> starts;       // [groups + 1]: a group's inputs lie together
  std::vector<int32_t> order;        // [k]: which element of x goes with column i; empty: the i-th
  std::vector<float> bias;           // [n], empty: none
};

// Where the parts of such a layer lie; shapes as above.
struct GroupedView {
  int64_t n, k, groups;
  int bits;
  const void* values;
  const float* scales;
  const int16_t* zero_points;  // may be null
  const int32_t* starts;
  const int32_t* order;  // may be null
  const float* bias;     // may be null

  int64_t row_bytes() const { return bits == 4 ? (k + 1) / 2 : k; }
};

// y = x * weight^T + bias for rows of floats.
void grouped_linear(const GroupedLinear& layer, const float* x, int64_t rows, float* y);
void grouped_linear(const GroupedView& layer, const float* x, int64_t rows, float* y);

}  // namespace pds
