// All layers of a decoder in one call, on the operators of this directory.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "int8_gemm.h"
#include "vector_kernels.h"

namespace pds {

// An INT8 linear layer: packed weights, scales per output channel, bias or none.
struct Linear {
  std::unique_ptr<Int8Gemm> gemm;
  const float* weight_scale = nullptr;
  const float* bias = nullptr;  // null: none
  std::vector<float> kept;      // what the two point into, where nobody else keeps it

  Dequant dequant(const int32_t* acc, float row_scale) const { return {acc, gemm->zero_point(), weight_scale, bias, row_scale}; }
};

// A layer in floating point: weights [n][k] as they came, INT8 with scales or bfloat16 or float32.
struct FloatLinear {
  std::unique_ptr<PackedBytes> owned;  // null: somebody else keeps `weight` alive
  const void* weight;
  WeightType type;
  std::vector<float> weight_scale;  // empty: none
  std::vector<float> bias;          // empty: none
  int64_t n, k;
};

struct DecoderShape {
  int64_t hidden, inner, heads, kv_heads, head_dim;
  float eps;
};

struct DecoderLayer {
  const float *input_norm = nullptr, *post_norm = nullptr;
  std::vector<float> kept;  // as in Linear
  Linear qkv, o, gate_up, down;
};

// A ragged batch; see kernels/layout.py.
struct Batch {
  int64_t tokens, requests, max_blocks;
  const int32_t* query_starts;  // [requests + 1]
  const int32_t* context_lens;  // [requests]
  const int32_t* block_tables;  // [requests][max_blocks]
  const int64_t* slots;         // [tokens]
  const float* cos;             // [tokens][head_dim / 2]
  const float* sin;
};

// Attention of every token of the batch: query [tokens][query_stride], out [tokens][heads * head_dim].
void paged_attention(const float* query, int64_t query_stride, const KvView& cache, const Batch& batch, int64_t heads,
                     int64_t kv_heads, int64_t head_dim, float* out);

// Quantise `rows` rows of n floats; `q` has room for padded_rows(rows) rows.
void quantize_rows(const float* x, int64_t rows, int64_t n, uint8_t* q, float* scales);

// y = x * weight^T + bias for rows of floats.
void linear(const Linear& layer, const float* x, int64_t rows, float* y);

void float_linear(const FloatLinear& layer, const float* x, int64_t rows, float* y);

// The same of a product of any size; x, m and y are those of all rows.
void float_product(const FloatProduct& whole);

// The layers in order; `x` [tokens][hidden] is read and becomes the result. One cache a layer.
class Decoder {
 public:
  explicit Decoder(DecoderShape shape) : shape_(shape) {}
  void add(DecoderLayer layer) { layers_.push_back(std::move(layer)); }
  size_t size() const { return layers_.size(); }
  const DecoderShape& shape() const { return shape_; }
  void forward(float* x, const Batch& batch, const std::vector<KvView>& caches) const;

 private:
  void attention(const DecoderLayer& layer, float* x, const Batch& batch, const KvView& cache) const;
  void mlp(const DecoderLayer& layer, float* x, int64_t tokens) const;

  DecoderShape shape_;
  std::vector<DecoderLayer> layers_;
};

}  // namespace pds
