// Vectors of sixteen floats and what is computed on them. Included by vector_kernels.inc.cc inside the namespace of one variant.

typedef float Lanes __attribute__((vector_size(kBlockTokens * sizeof(float)), aligned(4)));

// Adding and subtracting 1.5 * 2^23 rounds to the nearest whole number, ties to even, as the reference does.
constexpr float kRoundMagic = 12582912.0f;
constexpr int32_t kRoundMagicBits = 0x4B400000;

static inline int32_t round_even(float x) {
  float shifted = x + kRoundMagic;
  int32_t bits;
  std::memcpy(&bits, &shifted, sizeof(bits));
  return bits - kRoundMagicBits;
}

// exp(x) for x <= 88, relative error below 2e-7: 2^n * p(r), r = x - n ln 2 in [-0.35, 0.35] (Cephes expf).
static inline float exp_fast(float x) {
  x = x < -87.0f ? -87.0f : x;
  float n = (x * 1.44269504088896341f + kRoundMagic) - kRoundMagic;
  float r = x - n * 0.693359375f;
  r = r - n * -2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  int32_t exponent = (static_cast<int32_t>(n) + 127) << 23;
  float scale;
  std::memcpy(&scale, &exponent, sizeof(scale));
  return p * scale;
}

static inline Lanes load(const float* x) { return *reinterpret_cast<const Lanes*>(x); }
static inline void store(float* x, Lanes v) { *reinterpret_cast<Lanes*>(x) = v; }

static inline float add_lanes(Lanes v) {
  float total = 0.0f;
  for (int l = 0; l < kBlockTokens; ++l) total += v[l];
  return total;
}

// Calls body(std::integral_constant<int, count>) for a count between 1 and kMost: loops of a fixed length stay in registers.
template <int kMost, class Body>
static inline void of_count(int count, Body&& body) {
  if (count == kMost)
    body(std::integral_constant<int, kMost>{});
  else if constexpr (kMost > 1)
    of_count<kMost - 1>(count, body);
}
