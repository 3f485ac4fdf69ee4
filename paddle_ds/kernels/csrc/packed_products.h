// u8 x s8 -> s32 over packed weights that somebody else keeps, on whatever this processor has.
//
// The layout is that of vnni_products.h, with zeros behind the last column and input up to whole groups of 64:
//   packed[n' / 64][k' / 4][64][4], n' and k' multiples of 64
#pragma once

#include <cstdint>

namespace pds {

constexpr int64_t kPackedGroup = 64;

static inline int64_t packed_size(int64_t size) { return (size + kPackedGroup - 1) / kPackedGroup * kPackedGroup; }

// acc[m][n] = a[m][k] * w[n][k], exact.
void packed_products(const uint8_t* a, int64_t m, const int8_t* packed, int64_t n, int64_t k, int32_t* acc);

}  // namespace pds
