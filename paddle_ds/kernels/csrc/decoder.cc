#include "decoder.h"

#include <algorithm>

namespace pds {

namespace {

// Rows that go through the MLP together: their accumulators should stay in the last-level cache.
constexpr int64_t kMlpRows = 128;
// Query vectors of one attention tile; more share keys that were read, fewer spread better over threads.
constexpr int64_t kTileVectors = 64;
// Below this many elements a parallel region costs more than it saves.
constexpr int64_t kSerialElements = 16384;

// Scratch that grows and is kept. One engine thread computes at a time; each thread that does has its own.
template <typename T>
T* scratch(std::vector<T>& buffer, int64_t count) {
  if (static_cast<int64_t>(buffer.size()) < count) buffer.resize(count);
  return buffer.data();
}

struct Buffers {
  std::vector<uint8_t> quantized;
  std::vector<float> scales, normed, query_key_value, attended;
  std::vector<int32_t> acc;
};

Buffers& buffers() {
  static thread_local Buffers kept;
  return kept;
}

std::vector<float>& tile_scratch() {
  static thread_local std::vector<float> kept;
  return kept;
}

struct Tile {
  int32_t request, first_row, rows;
};

std::vector<Tile> tiles_of(const Batch& batch, int64_t tile_rows) {
  std::vector<Tile> tiles;
  for (int32_t r = 0; r < batch.requests; ++r)
    for (int32_t row = batch.query_starts[r]; row < batch.query_starts[r + 1]; row += tile_rows)
      tiles.push_back({r, row, static_cast<int32_t>(std::min<int64_t>(tile_rows, batch.query_starts[r + 1] - row))});
  return tiles;
}

}  // namespace

void paged_attention(const float* query, int64_t query_stride, const KvView& cache, const Batch& batch, int64_t heads,
                     int64_t kv_heads, int64_t head_dim, float* out) {
  const int64_t group = heads / kv_heads;
  std::vector<Tile> tiles = tiles_of(batch, std::max<int64_t>(1, kTileVectors / group));
  const int64_t work = static_cast<int64_t>(tiles.size()) * kv_heads;
// monotonic: the other kind asks for functions that Paddle's OpenMP runtime lacks; a second runtime, where one is loaded, would
// answer, and every thread would do all of the work
#pragma omp parallel for schedule(monotonic : dynamic) if (work > 1)
  for (int64_t item = 0; item < work; ++item) {
    const Tile& tile = tiles[item / kv_heads];
    int32_t request_end = batch.query_starts[tile.request + 1];
    AttentionTile t;
    t.query = query + tile.first_row * query_stride;
    t.query_stride = query_stride;
    t.out = out + tile.first_row * heads * head_dim;
    t.out_stride = heads * head_dim;
    t.cache = cache;
    t.block_table = batch.block_tables + static_cast<int64_t>(tile.request) * batch.max_blocks;
    // the request's last row attends to its whole context, each row before it to one token less
    t.first_context = batch.context_lens[tile.request] - (request_end - 1 - tile.first_row);
    t.rows = tile.rows;
    t.group = static_cast<int>(group);
    t.kv_head = static_cast<int>(item % kv_heads);
    t.num_kv_heads = static_cast<int>(kv_heads);
    t.head_dim = static_cast<int>(head_dim);
    t.scratch = scratch(tile_scratch(), attention_scratch_floats(tile.rows * group, head_dim));
    vector_kernels().attend(t);
  }
}

void quantize_rows(const float* x, int64_t rows, int64_t n, uint8_t* q, float* scales) {
#pragma omp parallel for if (rows > 1 && rows * n > kSerialElements)
  for (int64_t r = 0; r < rows; ++r) vector_kernels().quantize(x + r * n, n, q + r * n, scales + r);
}

void linear(const Linear& layer, const float* x, int64_t rows, float* y) {
  Buffers& b = buffers();
  int64_t n = layer.gemm->n(), k = layer.gemm->k();
  // a long batch is cut, so that accumulators of a wide layer do not fill the memory
  for (int64_t first = 0; first < rows; first += kMlpRows) {
    int64_t count = std::min(kMlpRows, rows - first), padded = padded_rows(count);
    uint8_t* q = scratch(b.quantized, padded * k);
    float* scales = scratch(b.scales, padded);
    int32_t* acc = scratch(b.acc, padded * n);
    quantize_rows(x + first * k, count, k, q, scales);
    layer.gemm->run(q, count, acc);
#pragma omp parallel for if (count * n > kSerialElements)
    for (int64_t r = 0; r < count; ++r)
      vector_kernels().dequantize(layer.dequant(acc + r * n, scales[r]), n, y + (first + r) * n);
  }
}

void float_linear(const FloatLinear& layer, const float* x, int64_t rows, float* y) {
  const float* scale = layer.weight_scale.empty() ? nullptr : layer.weight_scale.data();
  const float* bias = layer.bias.empty() ? nullptr : layer.bias.data();
  float_product({x, rows, layer.n, layer.k, layer.type, layer.weight, scale, bias, y});
}

void float_product(const FloatProduct& whole) {
  constexpr int64_t kColumns = 32;
  // rows are cut so that what is multiplied by a column stays in the cache
  for (int64_t first_row = 0; first_row < whole.m; first_row += kMlpRows) {
    FloatProduct product = whole;
    product.x = whole.x + first_row * whole.k;
    product.m = std::min(kMlpRows, whole.m - first_row);
    product.y = whole.y + first_row * whole.n;
#pragma omp parallel for schedule(static) if (whole.n * whole.k > kSerialElements)
    for (int64_t first = 0; first < whole.n; first += kColumns)
      vector_kernels().float_columns(product, first, std::min(first + kColumns, whole.n));
  }
}

void Decoder::forward(float* x, const Batch& batch, const std::vector<KvView>& caches) const {
  for (size_t i = 0; i < layers_.size(); ++i) {
    attention(layers_[i], x, batch, caches[i]);
    mlp(layers_[i], x, batch.tokens);
  }
}

void Decoder::attention(const DecoderLayer& layer, float* x, const Batch& batch, const KvView& cache) const {
  Buffers& b = buffers();
  const VectorKernels& v = vector_kernels();
  const int64_t tokens = batch.tokens, hidden = shape_.hidden, dim = shape_.head_dim;
  const int64_t q_size = shape_.heads * dim, kv_size = shape_.kv_heads * dim, qkv_size = q_size + 2 * kv_size;
  const int64_t padded = padded_rows(tokens);
  uint8_t* quantized = scratch(b.quantized, padded * std::max(hidden, q_size));
  float* scales = scratch(b.scales, padded);
  float* normed = scratch(b.normed, tokens * hidden);
  float* qkv = scratch(b.query_key_value, tokens * qkv_size);
  float* attended = scratch(b.attended, tokens * q_size);
  int32_t* acc = scratch(b.acc, padded * std::max(qkv_size, hidden));
  const bool parallel = tokens * hidden > kSerialElements;

#pragma omp parallel for if (parallel)
  for (int64_t t = 0; t < tokens; ++t)
    v.rms_norm_quantize(x + t * hidden, layer.input_norm, shape_.eps, hidden, normed + t * hidden,
                        quantized + t * hidden, scales + t);
  layer.qkv.gemm->run(quantized, tokens, acc);
#pragma omp parallel for if (parallel)
  for (int64_t t = 0; t < tokens; ++t) {
    float* row = qkv + t * qkv_size;
    v.dequantize(layer.qkv.dequant(acc + t * qkv_size, scales[t]), qkv_size, row);
    const float *cos = batch.cos + t * (dim / 2), *sin = batch.sin + t * (dim / 2);
    for (int64_t h = 0; h < shape_.heads + shape_.kv_heads; ++h) v.rotate(row + h * dim, cos, sin, dim);
    v.write_kv(row + q_size, row + q_size + kv_size, cache, batch.slots[t], shape_.kv_heads, dim);
  }
  paged_attention(qkv, qkv_size, cache, batch, shape_.heads, shape_.kv_heads, dim, attended);
  quantize_rows(attended, tokens, q_size, quantized, scales);
  layer.o.gemm->run(quantized, tokens, acc);
#pragma omp parallel for if (parallel)
  for (int64_t t = 0; t < tokens; ++t)
    v.dequantize_add(layer.o.dequant(acc + t * hidden, scales[t]), x + t * hidden, hidden, x + t * hidden);
}

void Decoder::mlp(const DecoderLayer& layer, float* x, int64_t tokens) const {
  Buffers& b = buffers();
  const VectorKernels& v = vector_kernels();
  const int64_t hidden = shape_.hidden, inner = shape_.inner;
  for (int64_t first = 0; first < tokens; first += kMlpRows) {
    const int64_t count = std::min(kMlpRows, tokens - first), padded = padded_rows(count);
    uint8_t* quantized = scratch(b.quantized, padded * std::max(hidden, inner));
    float* scales = scratch(b.scales, padded);
    float* normed = scratch(b.normed, count * std::max(hidden, inner));
    int32_t* acc = scratch(b.acc, padded * std::max(2 * inner, hidden));
    float* rows = x + first * hidden;
    const bool parallel = count * hidden > kSerialElements;
#pragma omp parallel for if (parallel)
    for (int64_t t = 0; t < count; ++t)
      v.rms_norm_quantize(rows + t * hidden, layer.post_norm, shape_.eps, hidden, normed + t * hidden,
                          quantized + t * hidden, scales + t);
    layer.gate_up.gemm->run(quantized, count, acc);
#pragma omp parallel for if (count > 1)
    for (int64_t t = 0; t < count; ++t)
      v.silu_mul_quantize(layer.gate_up.dequant(acc + t * 2 * inner, scales[t]), inner, normed + t * inner,
                          quantized + t * inner, scales + t);
    layer.down.gemm->run(quantized, count, acc);
#pragma omp parallel for if (parallel)
    for (int64_t t = 0; t < count; ++t)
      v.dequantize_add(layer.down.dequant(acc + t * hidden, scales[t]), rows + t * hidden, hidden, rows + t * hidden);
  }
}

}  // namespace pds
