// u8 x s8 products over weights in the layout of vnni_products.h without its instructions, exact. Included by
// vector_kernels.inc.cc.
//
// Four neighbouring bytes of a vector belong to one column. Widened to 16 bits, the even and the odd ones of them are each
// multiplied by two inputs and added in 32 bits: no product saturates, and every lane stays with its column.

#if defined(__AVX512BW__)
typedef __m512i Integers;
static inline Integers load_integers(const void* from) { return _mm512_loadu_si512(from); }
static inline void store_integers(void* to, Integers v) { _mm512_storeu_si512(to, v); }
static inline Integers every_word(int32_t word) { return _mm512_set1_epi32(word); }
static inline Integers even_bytes(Integers v) { return _mm512_srai_epi16(_mm512_slli_epi16(v, 8), 8); }
static inline Integers odd_bytes(Integers v) { return _mm512_srai_epi16(v, 8); }
static inline Integers multiply_pairs(Integers a, Integers b) { return _mm512_madd_epi16(a, b); }
static inline Integers add_words(Integers a, Integers b) { return _mm512_add_epi32(a, b); }
#elif defined(__AVX2__)
typedef __m256i Integers;
static inline Integers load_integers(const void* from) { return _mm256_loadu_si256(static_cast<const Integers*>(from)); }
static inline void store_integers(void* to, Integers v) { _mm256_storeu_si256(static_cast<Integers*>(to), v); }
static inline Integers every_word(int32_t word) { return _mm256_set1_epi32(word); }
static inline Integers even_bytes(Integers v) { return _mm256_srai_epi16(_mm256_slli_epi16(v, 8), 8); }
static inline Integers odd_bytes(Integers v) { return _mm256_srai_epi16(v, 8); }
static inline Integers multiply_pairs(Integers a, Integers b) { return _mm256_madd_epi16(a, b); }
static inline Integers add_words(Integers a, Integers b) { return _mm256_add_epi32(a, b); }
#elif defined(__SSE2__)
typedef __m128i Integers;
static inline Integers load_integers(const void* from) { return _mm_loadu_si128(static_cast<const Integers*>(from)); }
static inline void store_integers(void* to, Integers v) { _mm_storeu_si128(static_cast<Integers*>(to), v); }
static inline Integers every_word(int32_t word) { return _mm_set1_epi32(word); }
static inline Integers even_bytes(Integers v) { return _mm_srai_epi16(_mm_slli_epi16(v, 8), 8); }
static inline Integers odd_bytes(Integers v) { return _mm_srai_epi16(v, 8); }
static inline Integers multiply_pairs(Integers a, Integers b) { return _mm_madd_epi16(a, b); }
static inline Integers add_words(Integers a, Integers b) { return _mm_add_epi32(a, b); }
#endif

// One row by the 64 columns of one group; weights [k / 4][64][4].
static void packed_row(const uint8_t* a, const int8_t* weight, int64_t k, int32_t* acc) {
  constexpr int kColumns = 64;
#ifdef __SSE2__
  constexpr int kVectors = 4 * kColumns / static_cast<int>(sizeof(Integers));
  // as many sums as the registers hold beside what they are made of
  constexpr int kSums = kVectors < 8 ? kVectors : 8;
  for (int first = 0; first < kVectors; first += kSums) {
    Integers sums[kSums];
#pragma GCC unroll 8
    for (int j = 0; j < kSums; ++j) sums[j] = every_word(0);
    for (int64_t i = 0; i < k; i += 4) {
      uint32_t four;
      std::memcpy(&four, a + i, sizeof(four));
      const Integers even = every_word(static_cast<int32_t>(four & 0x00FF00FFu));
      const Integers odd = every_word(static_cast<int32_t>((four >> 8) & 0x00FF00FFu));
      const int8_t* from = weight + i * kColumns + first * static_cast<int>(sizeof(Integers));
#pragma GCC unroll 8
      for (int j = 0; j < kSums; ++j) {
        const Integers w = load_integers(from + j * static_cast<int>(sizeof(Integers)));
        sums[j] = add_words(sums[j], multiply_pairs(even_bytes(w), even));
        sums[j] = add_words(sums[j], multiply_pairs(odd_bytes(w), odd));
      }
    }
    for (int j = 0; j < kSums; ++j) store_integers(acc + (first + j) * static_cast<int>(sizeof(Integers)) / 4, sums[j]);
  }
#else
  for (int c = 0; c < kColumns; ++c) acc[c] = 0;
  for (int64_t i = 0; i < k; i += 4)
    for (int c = 0; c < kColumns; ++c)
      for (int b = 0; b < 4; ++b) acc[c] += static_cast<int32_t>(a[i + b]) * weight[(i * kColumns) + 4 * c + b];
#endif
}

static void int8_packed(const uint8_t* a, int64_t m, const int8_t* packed, int64_t first, int64_t last, int64_t n, int64_t k,
                        int32_t* acc) {
  constexpr int64_t kColumns = 64;
  for (int64_t group = first; group < last; ++group)
    for (int64_t row = 0; row < m; ++row)
      packed_row(a + row * k, packed + group * kColumns * k, k, acc + row * n + group * kColumns);
}
