#include "packed_products.h"

#include <omp.h>

#include <cstring>
#include <vector>

#include "vector_kernels.h"
#include "vnni_products.h"

namespace pds {

namespace {

void whole_groups(const uint8_t* a, int64_t m, const int8_t* packed, int64_t n, int64_t k, int32_t* acc) {
  const auto products = vnni_available() ? vnni_products : vector_kernels().int8_packed;
  const int64_t groups = n / kPackedGroup;
#pragma omp parallel
  {
    // neighbouring groups to one thread, as in Int8Gemm
    const int64_t thread = omp_get_thread_num(), threads = omp_get_num_threads();
    products(a, m, packed, groups * thread / threads, groups * (thread + 1) / threads, n, k, acc);
  }
}

}  // namespace

void packed_products(const uint8_t* a, int64_t m, const int8_t* packed, int64_t n, int64_t k, int32_t* acc) {
  const int64_t wide_n = packed_size(n), wide_k = packed_size(k);
  if (wide_n == n && wide_k == k) return whole_groups(a, m, packed, n, k, acc);
  // sizes of tiny models: through copies with room for the padding
  std::vector<uint8_t> rows(m * wide_k);
  std::vector<int32_t> sums(m * wide_n);
  for (int64_t r = 0; r < m; ++r) std::memcpy(rows.data() + r * wide_k, a + r * k, k);
  whole_groups(rows.data(), m, packed, wide_n, wide_k, sums.data());
  for (int64_t r = 0; r < m; ++r) std::memcpy(acc + r * n, sums.data() + r * wide_n, sizeof(int32_t) * n);
}

}  // namespace pds
