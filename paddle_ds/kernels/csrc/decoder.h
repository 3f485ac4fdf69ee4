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
  std::vector<float> weight_scale;
  std::vector<float> bias;  // empty: none

  Dequant dequant(const int32_t* acc, float row_scale) const {
    return {acc, gemm->zero_point(), weight_scale.data(), bias.empty() ? nullptr : bias.data(), row_scale};
  }
};

// The same with activations left in floating point; weights stay as they came, [n][k].
struct WeightOnlyLinear {
  std::unique_ptr<PackedBytes> weight;
  std::vector<float> weight_scale;
  std::vector<float> bias;  // empty: none
  int64_t n, k;
};

struct DecoderShape {
  int64_t hidden, inner, heads, kv_heads, head_dim;
  float eps;
};

struct DecoderLayer {
  std::vector<float> input_norm, post_norm;
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

// Put one token's rotated keys and its values into the cache; `key` and `value` are [kv_heads][head_dim].
void write_kv(const float* key, const float* value, int64_t slot, int64_t kv_heads, int64_t head_dim, float* keys, float* values);

// Attention of every token of the batch: query [tokens][query_stride], out [tokens][heads * head_dim].
void paged_attention(const float* query, int64_t query_stride, const float* keys, const float* values, const Batch& batch,
                     int64_t heads, int64_t kv_heads, int64_t head_dim, float* out);

// Quantise `rows` rows of n floats; `q` has room for padded_rows(rows) rows.
void quantize_rows(const float* x, int64_t rows, int64_t n, uint8_t* q, float* scales);

// y = x * weight^T + bias for rows of floats.
void linear(const Linear& layer, const float* x, int64_t rows, float* y);

void weight_only_linear(const WeightOnlyLinear& layer, const float* x, int64_t rows, float* y);

// The layers in order; `x` [tokens][hidden] is read and becomes the result. Caches: one pointer a layer.
class Decoder {
 public:
  explicit Decoder(DecoderShape shape) : shape_(shape) {}
  void add(DecoderLayer layer) { layers_.push_back(std::move(layer)); }
  size_t size() const { return layers_.size(); }
  const DecoderLayer& layer(size_t index) const { return layers_[index]; }
  void forward(float* x, const Batch& batch, const std::vector<float*>& keys, const std::vector<float*>& values) const;

 private:
  void attention(const DecoderLayer& layer, float* x, const Batch& batch, float* keys, float* values) const;
  void mlp(const DecoderLayer& layer, float* x, int64_t tokens) const;

  DecoderShape shape_;
  std::vector<DecoderLayer> layers_;
};

}  // namespace pds
