// Loops over rows and over the KV cache, compiled once for each instruction set (vector_kernels.inc.cc) and chosen at run time.
//
// Every function computes one row (or one tile of rows of one request) by itself and in a fixed order, so its bits do not depend
// on what else is in the batch, on how a prompt was cut, or on the number of threads.
#pragma once

#include <cstdint>

namespace pds {

// Tokens of one cache block. Keys of a block lie as [head_dim][kBlockTokens], so that one vector holds one element of 16 tokens;
// values lie as [kBlockTokens][padded head_dim].
constexpr int kBlockTokens = 16;
constexpr int kValuePad = 16;

static inline int64_t padded_dim(int64_t head_dim) { return (head_dim + kValuePad - 1) / kValuePad * kValuePad; }

// int32 accumulators of one row of a u8 x s8 product, and what turns them into floats:
//   y[n] = float(acc[n] - 128 * column_sum[n]) * row_scale * weight_scale[n] (+ bias[n])
struct Dequant {
  const int32_t* acc;
  const int32_t* zero_point;  // 128 * column_sum
  const float* weight_scale;
  const float* bias;  // may be null
  float row_scale;
};

// What the cache holds. INT8 has one scale per token and head, for keys and for values: x = q * scale. Rows are float32, in no
// blocks.
enum class KvType { kFloat32, kBfloat16, kInt8, kRows };

// Keys and values of one layer as an exported program has them (export_ops.cc), [tokens][kv_heads][head_dim] each: what earlier
// calls have given, and what this one adds.
struct KvRows {
  const float *past_keys, *past_values;
  float *new_keys, *new_values;
  int64_t past;  // tokens of the first two; the slot of a new token is its position
};

// The cache of one layer.
struct KvView {
  KvType type;
  void* keys;    // [blocks][kv_heads][head_dim][kBlockTokens]
  void* values;  // [blocks][kv_heads][kBlockTokens][padded head_dim]
  float* key_scales;  // INT8 only: [blocks][kv_heads][kBlockTokens]
  float* value_scales;
  const float* static_key_scales;  // [kv_heads], copied to the above as tokens are written; null: each finds its own
  const float* static_value_scales;
  KvRows rows;  // of kRows, in place of all above
};

// Tokens of the context that attention walks over at a time.
constexpr int kChunkTokens = 64;

// One tile of attention: `rows` consecutive query rows of one request, one key-value head, `group` query heads a row.
struct AttentionTile {
  const float* query;       // [rows][heads][head_dim], already rotated, not yet scaled
  int64_t query_stride;     // floats between rows
  float* out;               // [rows][heads][head_dim]
  int64_t out_stride;
  KvView cache;
  const int32_t* block_table;
  int64_t first_context;    // tokens that the tile's first row attends to; each further row one more
  int rows;
  int group;
  int kv_head;
  int num_kv_heads;
  int head_dim;
  float* scratch;           // attention_scratch_floats(...) floats
};

static inline int64_t attention_scratch_floats(int64_t vectors, int64_t head_dim) {
  int64_t stride = padded_dim(head_dim);
  return vectors * (kChunkTokens + head_dim + stride + kBlockTokens + 1) + kChunkTokens * (head_dim + stride);
}

// y = (x * weight^T) * scale + bias in floating point; weights [n][k] in one of three types.
enum class WeightType { kInt8, kBfloat16, kFloat32 };

struct FloatProduct {
  const float* x;  // [m][k]
  int64_t m, n, k;
  WeightType type;
  const void* weight;
  const float* scale;  // [n], may be null
  const float* bias;   // [n], may be null
  float* y;            // [m][n]
};

// The weights of one output as grouped integers: w[i] = (q[i] - zero_points[g]) * scales[g] for starts[g] <= i < starts[g + 1].
struct GroupedRow {
  int bits;
  const void* values;          // 8 bits: int8 [k]; 4 bits: nibbles [(k + 1) / 2] of q + 8, the row's first half in the low ones
  int64_t k, groups;
  const int32_t* starts;       // [groups + 1], from 0 to k
  const float* scales;         // [groups]
  const int16_t* zero_points;  // [groups], may be null
};

struct VectorKernels {
  const char* name;
  // q[k] = round_half_even(x[k] * (127 / max|x|)) + 128, scale = max|x| / 127 (1 for a row of zeros)
  void (*quantize)(const float* x, int64_t n, uint8_t* q, float* scale);
  // the same of x * rsqrt(mean(x^2) + eps) * weight; `normed` is scratch of n floats
  void (*rms_norm_quantize)(const float* x, const float* weight, float eps, int64_t n, float* normed, uint8_t* q, float* scale);
  void (*rms_norm)(const float* x, const float* weight, float eps, int64_t n, float* out);
  void (*dequantize)(const Dequant& d, int64_t n, float* out);
  // out[n] = residual[n] + y[n]
  void (*dequantize_add)(const Dequant& d, const float* residual, int64_t n, float* out);
  // quantise silu(gate) * up; `d` describes 2 * n columns, gate first; `gated` is scratch of n floats
  void (*silu_mul_quantize)(const Dequant& d, int64_t n, float* gated, uint8_t* q, float* scale);
  void (*silu_mul)(const float* gate, const float* up, int64_t n, float* out);
  // rotate one head in place: pairs (i, i + dim/2)
  void (*rotate)(float* x, const float* cos, const float* sin, int64_t dim);
  // put one token's rotated keys and its values, [kv_heads][head_dim], into the cache
  void (*write_kv)(const float* key, const float* value, const KvView& cache, int64_t slot, int64_t kv_heads, int64_t dim);
  void (*attend)(const AttentionTile& tile);
  // columns first .. last of a product
  void (*float_columns)(const FloatProduct& product, int64_t first, int64_t last);
  // a row of weights as floats, out[k]; `integers` is scratch of k bytes
  void (*widen_grouped)(const GroupedRow& row, int8_t* integers, float* out);
  // acc[m][first .. last) = a * weight^T: exact products for processors whose INT8 instructions saturate; weight is [n][k]
  void (*int8_columns)(const uint8_t* a, int64_t m, const int8_t* weight, int64_t first, int64_t last, int64_t n, int64_t k,
                       int32_t* acc);
  // columns 64 * first .. 64 * last of the same, over weights as in vnni_products.h; exact on every processor
  void (*int8_packed)(const uint8_t* a, int64_t m, const int8_t* packed, int64_t first, int64_t last, int64_t n, int64_t k,
                      int32_t* acc);
  // index of the largest element, the first of equals; of a NaN where there is one
  int64_t (*argmax)(const float* x, int64_t n);
  // the largest element of each run of `size`
  void (*block_peaks)(const float* x, int64_t n, int64_t size, float* out);
  // sum of exp((x - peak) * inverse_temperature)
  double (*exp_sum)(const float* x, int64_t n, float peak, float inverse_temperature);
};

// The best set the processor has, not above the cap in PADDLE_DS_MAX_ISA (avx512, avx2 or baseline).
const VectorKernels& vector_kernels();

}  // namespace pds
