// Compiled with AVX-512 VNNI where the compiler and the architecture know it (build.py); nothing here runs elsewhere.
#include "vnni_products.h"

#include <cstring>
#include <type_traits>

#ifdef __AVX512VNNI__
#include <immintrin.h>

// Accumulators must stay in registers: without the unrolling GCC keeps them on the stack.
#define PDS_UNROLL _Pragma("GCC unroll 8")

namespace pds {

namespace {

// 6 rows x 4 vectors of columns are 24 of the 32 registers.
constexpr int kRows = 6;
constexpr int kVectors = 4;
constexpr int64_t kColumns = 16 * kVectors;
// Inputs of one piece of weights, of 64 columns: a piece (128 kB) and the next one fit a core's second-level cache.
constexpr int64_t kPieceInputs = 2048;
// With more groups of rows than this a piece is computed on for so long that the hardware's prefetcher is early enough.
constexpr int64_t kFetchingGroups = 8;

// Calls body(std::integral_constant<int, count>).
template <int kMost, class Body>
inline void of_count(int count, Body&& body) {
  if (count == kMost)
    body(std::integral_constant<int, kMost>{});
  else if constexpr (kMost > 1)
    of_count<kMost - 1>(count, body);
}

struct Piece {
  const uint8_t* a;
  const int8_t* weight;
  int32_t* acc;
  int64_t k, n, quads;  // inputs of a row, columns of acc, groups of four inputs in this piece
  bool first;           // nothing to add to yet
  const int8_t* fetched;
  int64_t fetch_step;
};

// kRowCount rows by 64 columns over one piece, fetching kLines cache lines of the next one for each four inputs.
template <int kRowCount, int kLines>
inline void tile(Piece p) {
  __m512i sums[kRowCount][kVectors];
  PDS_UNROLL
  for (int r = 0; r < kRowCount; ++r)
    PDS_UNROLL
    for (int j = 0; j < kVectors; ++j) sums[r][j] = p.first ? _mm512_setzero_si512() : _mm512_loadu_si512(p.acc + r * p.n + 16 * j);
  for (int64_t quad = 0; quad < p.quads; ++quad, p.weight += 4 * kColumns, p.fetched += p.fetch_step) {
    PDS_UNROLL
    for (int line = 0; line < kLines; ++line) _mm_prefetch(reinterpret_cast<const char*>(p.fetched) + 64 * line, _MM_HINT_T1);
    __m512i weights[kVectors];
    PDS_UNROLL
    for (int j = 0; j < kVectors; ++j) weights[j] = _mm512_loadu_si512(p.weight + 64 * j);
    PDS_UNROLL
    for (int r = 0; r < kRowCount; ++r) {
      int32_t four;
      std::memcpy(&four, p.a + r * p.k + 4 * quad, sizeof(four));
      __m512i inputs = _mm512_set1_epi32(four);
      PDS_UNROLL
      for (int j = 0; j < kVectors; ++j) sums[r][j] = _mm512_dpbusd_epi32(sums[r][j], inputs, weights[j]);
    }
  }
  PDS_UNROLL
  for (int r = 0; r < kRowCount; ++r)
    PDS_UNROLL
    for (int j = 0; j < kVectors; ++j) _mm512_storeu_si512(p.acc + r * p.n + 16 * j, sums[r][j]);
}

// All rows over one piece; the next piece, which lies behind it, is fetched meanwhile in equal shares.
inline void all_rows(Piece piece, int64_t m) {
  const int64_t groups = (m + kRows - 1) / kRows;
  const bool fetching = groups > 1 && groups <= kFetchingGroups;
  piece.fetch_step = 4 * kColumns / groups;
  const int8_t* next = piece.weight + piece.quads * 4 * kColumns;
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t row = m * g / groups, rows = m * (g + 1) / groups - row;
    Piece p = piece;
    p.a += row * p.k;
    p.acc += row * p.n;
    p.fetched = next + g * p.quads * p.fetch_step;
    of_count<kRows>(static_cast<int>(rows), [&](auto count) {
      if (!fetching)
        tile<decltype(count)::value, 0>(p);
      else if (groups < 4)
        tile<decltype(count)::value, 2>(p);
      else
        tile<decltype(count)::value, 1>(p);
    });
  }
}

}  // namespace

void vnni_products(const uint8_t* a, int64_t m, const int8_t* packed, int64_t first, int64_t last, int64_t n, int64_t k,
                   int32_t* acc) {
  for (int64_t block = first; block < last; ++block)
    for (int64_t start = 0; start < k; start += kPieceInputs) {
      Piece piece{};
      piece.a = a + start;
      piece.weight = packed + kColumns * (block * k + start);
      piece.acc = acc + block * kColumns;
      piece.k = k;
      piece.n = n;
      piece.quads = (k - start < kPieceInputs ? k - start : kPieceInputs) / 4;
      piece.first = start == 0;
      all_rows(piece, m);
    }
}

}  // namespace pds

#else

namespace pds {
void vnni_products(const uint8_t*, int64_t, const int8_t*, int64_t, int64_t, int64_t, int64_t, int32_t*) {}
}  // namespace pds

#endif
