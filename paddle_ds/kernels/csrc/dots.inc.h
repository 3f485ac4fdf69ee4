// Products with weights row by row, [n][k]: floats against INT8, bfloat16 or float32, and exact INT8. Included by
// vector_kernels.inc.cc.

static void int8_columns(const uint8_t* a, int64_t m, const int8_t* weight, int64_t first, int64_t last, int64_t n, int64_t k,
                         int32_t* acc) {
  for (int64_t column = first; column < last; ++column) {
    const int8_t* w = weight + column * k;
    for (int64_t row = 0; row < m; ++row) {
      const uint8_t* x = a + row * k;
      int32_t sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int64_t i = 0; i < k; ++i) {
        int16_t left = x[i], right = w[i];  // 16 bits: two such products and their sum fit 32 without saturation
        sum += left * right;
      }
      acc[row * n + column] = sum;
    }
  }
}

typedef int8_t ByteLanes __attribute__((vector_size(kBlockTokens), aligned(1)));
typedef uint16_t HalfLanes __attribute__((vector_size(2 * kBlockTokens), aligned(2)));
typedef uint32_t WordLanes __attribute__((vector_size(4 * kBlockTokens), aligned(4)));

static inline Lanes widened(const float* w) { return load(w); }
static inline Lanes widened(const int8_t* w) {
  return __builtin_convertvector(*reinterpret_cast<const ByteLanes*>(w), Lanes);
}
// bfloat16 is the upper half of a float32
static inline Lanes widened(const uint16_t* w) {
  WordLanes bits = __builtin_convertvector(*reinterpret_cast<const HalfLanes*>(w), WordLanes) << 16;
  return reinterpret_cast<Lanes>(bits);
}

// The last `rest` elements of a row and zeros after them, so that they too go through a vector: a loop of single elements might be
// fused into multiply-adds for some tile sizes and not for others.
template <typename T>
static inline Lanes widened_rest(const T* x, int64_t rest) {
  T padded[kBlockTokens] = {};
  std::memcpy(padded, x, sizeof(T) * rest);
  return widened(padded);
}

// Rows and columns of one tile: its sums, its rows and a column should fit the registers.
#ifdef __AVX512F__
constexpr int kDot = 4;
#else
constexpr int kDot = 2;
#endif

// kRows rows by kColumns columns: a sum is added in the same order whatever the two are.
template <int kRows, int kColumns, typename W>
static inline void dot_tile(const float* x, const W* w, int64_t k, float (*sums)[kColumns]) {
  Lanes acc[kRows][kColumns];
  for (int r = 0; r < kRows; ++r)
    for (int c = 0; c < kColumns; ++c) acc[r][c] = Lanes{};
  int64_t i = 0;
  for (; i + kBlockTokens <= k; i += kBlockTokens) {
    Lanes left[kRows];
    for (int r = 0; r < kRows; ++r) left[r] = load(x + r * k + i);
    for (int c = 0; c < kColumns; ++c) {
      Lanes right = widened(w + c * k + i);
      for (int r = 0; r < kRows; ++r) acc[r][c] += left[r] * right;
    }
  }
  if (i < k)
    for (int c = 0; c < kColumns; ++c) {
      Lanes right = widened_rest(w + c * k + i, k - i);
      for (int r = 0; r < kRows; ++r) acc[r][c] += widened_rest(x + r * k + i, k - i) * right;
    }
  for (int r = 0; r < kRows; ++r)
    for (int c = 0; c < kColumns; ++c) sums[r][c] = add_lanes(acc[r][c]);
}

// Scale and bias in loops of their own: within the tiles a compiler may fuse the two for some tile sizes and not for others.
static void finish_columns(const FloatProduct& p, int64_t first, int64_t last) {
  for (int64_t row = 0; row < p.m; ++row) {
    float* y = p.y + row * p.n;
    if (p.scale != nullptr)
      for (int64_t c = first; c < last; ++c) y[c] *= p.scale[c];
    if (p.bias != nullptr)
      for (int64_t c = first; c < last; ++c) y[c] += p.bias[c];
  }
}

template <typename W>
static void typed_columns(const FloatProduct& p, const W* weight, int64_t first, int64_t last) {
  for (int64_t column = first; column < last; column += kDot) {
    int columns = static_cast<int>(last - column < kDot ? last - column : kDot);
    for (int64_t row = 0; row < p.m; row += kDot) {
      int rows = static_cast<int>(p.m - row < kDot ? p.m - row : kDot);
      of_count<kDot>(rows, [&](auto num_rows) {
        of_count<kDot>(columns, [&](auto num_columns) {
          constexpr int kRows = decltype(num_rows)::value, kColumns = decltype(num_columns)::value;
          float sums[kRows][kColumns];
          dot_tile<kRows, kColumns>(p.x + row * p.k, weight + column * p.k, p.k, sums);
          for (int r = 0; r < kRows; ++r)
            for (int c = 0; c < kColumns; ++c) p.y[(row + r) * p.n + column + c] = sums[r][c];
        });
      });
    }
  }
  finish_columns(p, first, last);
}

static void float_columns(const FloatProduct& p, int64_t first, int64_t last) {
  switch (p.type) {
    case WeightType::kInt8: return typed_columns(p, static_cast<const int8_t*>(p.weight), first, last);
    case WeightType::kBfloat16: return typed_columns(p, static_cast<const uint16_t*>(p.weight), first, last);
    case WeightType::kFloat32: return typed_columns(p, static_cast<const float*>(p.weight), first, last);
  }
}
