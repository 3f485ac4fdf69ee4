// Chooses the compiled variant once, by what the processor has and what PADDLE_DS_MAX_ISA allows.
#include <cstdlib>
#include <cstring>

#include "vector_kernels.h"
#include "vnni_products.h"

namespace pds {

#if defined(__x86_64__)
namespace avx512 { extern const VectorKernels kKernels; }
namespace avx2 { extern const VectorKernels kKernels; }
#endif
namespace baseline { extern const VectorKernels kKernels; }

static const VectorKernels& choose() {
#if defined(__x86_64__)
  const char* cap = std::getenv("PADDLE_DS_MAX_ISA");
  bool below512 = cap != nullptr && std::strcmp(cap, "avx512") != 0 && *cap != '\0';
  bool below2 = below512 && std::strcmp(cap, "avx2") != 0;
  __builtin_cpu_init();
  if (!below512 && __builtin_cpu_supports("x86-64-v4")) return avx512::kKernels;
  if (!below2 && __builtin_cpu_supports("x86-64-v3")) return avx2::kKernels;
#endif
  return baseline::kKernels;
}

const VectorKernels& vector_kernels() {
  static const VectorKernels& chosen = choose();
  return chosen;
}

bool vnni_available() {
#if defined(__x86_64__)
  return std::strcmp(vector_kernels().name, "avx512") == 0 && __builtin_cpu_supports("avx512vnni");
#else
  return false;
#endif
}

}  // namespace pds
