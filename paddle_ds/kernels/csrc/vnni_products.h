// u8 x s8 -> s32 with AVX-512 VNNI, over weights as oneDNN packs them for it.
//
// oneDNN's own products read memory at four fifths of its speed for few rows, and for 8 to 32 rows they wait for memory and
// compute by turns. This loop fetches the next piece of weights while it computes on one. Its sums are exact, so its bits are
// oneDNN's bits. The layout is oneDNN's business: callers compare results once before they rely on this loop (Int8Gemm::finish).
#pragma once

#include <cstdint>

namespace pds {

// Whether the processor has the instructions, and PADDLE_DS_MAX_ISA allows them.
bool vnni_available();

// acc[m][64 * first .. 64 * last) of acc[m][n] = a[m][k] * w[n][k]. `packed` has [n / 64][k / 4][64][4] bytes; k is a multiple of 64.
void vnni_products(const uint8_t* a, int64_t m, const int8_t* packed, int64_t first, int64_t last, int64_t n, int64_t k, int32_t* acc);

}  // namespace pds
