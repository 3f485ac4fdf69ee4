// The loops behind VectorKernels. Compiled several times with PDS_ISA set to a namespace and different -march flags.
//
// No function of the standard library that is not inlined may be used in here: the linker keeps one copy of it, which might be
// the one for a processor that this is not.
#include <cmath>
#include <cstring>
#include <type_traits>

#ifdef __SSE2__
#include <immintrin.h>
#endif

#include "vector_kernels.h"

namespace pds {
namespace PDS_ISA {

#include "lanes.inc.h"
#include "rows.inc.h"
#include "dots.inc.h"
#include "packed.inc.h"
#include "grouped.inc.h"
#include "attention.inc.h"
#include "select.inc.h"

extern const VectorKernels kKernels;
const VectorKernels kKernels = {PDS_NAME,  quantize, rms_norm_quantize, rms_norm, dequantize,    dequantize_add,
                                silu_mul_quantize, silu_mul, rotate,    write_kv, attend,        float_columns,
                                widen_grouped,     int8_columns, int8_packed, argmax, block_peaks, exp_sum};

}  // namespace PDS_ISA
}  // namespace pds
