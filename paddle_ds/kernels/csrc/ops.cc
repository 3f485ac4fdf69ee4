// The operators Paddle sees, and the C functions that pack weights (called through ctypes with plain arrays).
//
// A packed layer lives here for as long as Python holds it; operators name it by a handle that goes with the call.
#include <cstring>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "decoder.h"
#include "paddle/extension.h"

namespace {

template <typename T>
class Registry {
 public:
  int64_t put(std::shared_ptr<T> object) {
    std::lock_guard<std::mutex> lock(mutex_);
    objects_[++last_] = std::move(object);
    return last_;
  }
  std::shared_ptr<T> get(int64_t handle) {
    std::lock_guard<std::mutex> lock(mutex_);
    auto found = objects_.find(handle);
    PD_CHECK(found != objects_.end(), "no packed layer with handle ", handle);
    return found->second;
  }
  void drop(int64_t handle) {
    std::lock_guard<std::mutex> lock(mutex_);
    objects_.erase(handle);
  }

 private:
  std::mutex mutex_;
  int64_t last_ = 0;
  std::unordered_map<int64_t, std::shared_ptr<T>> objects_;
};

Registry<pds::Linear>& linears() {
  static Registry<pds::Linear> registry;
  return registry;
}

Registry<pds::WeightOnlyLinear>& weight_only_linears() {
  static Registry<pds::WeightOnlyLinear> registry;
  return registry;
}

struct PackedDecoder {
  pds::Decoder decoder;
  pds::DecoderShape shape;
};

Registry<PackedDecoder>& decoders() {
  static Registry<PackedDecoder> registry;
  return registry;
}

thread_local std::string last_error;

template <typename F>
int64_t guarded(F&& body) {
  try {
    return body();
  } catch (const std::exception& error) {
    last_error = error.what();
    return -1;
  }
}

std::vector<float> copied(const float* values, int64_t count) {
  return values == nullptr ? std::vector<float>() : std::vector<float>(values, values + count);
}

pds::Batch batch_of(int64_t tokens, const paddle::Tensor& query_starts, const paddle::Tensor& context_lens,
                    const paddle::Tensor& block_tables) {
  pds::Batch batch{};
  batch.tokens = tokens;
  batch.requests = context_lens.shape()[0];
  batch.max_blocks = block_tables.shape()[1];
  batch.query_starts = query_starts.data<int32_t>();
  batch.context_lens = context_lens.data<int32_t>();
  batch.block_tables = block_tables.data<int32_t>();
  return batch;
}

}  // namespace

extern "C" {

const char* pds_last_error() { return last_error.c_str(); }
const char* pds_vector_isa() { return pds::vector_kernels().name; }

// weight int8 [n][k], scales float [n], bias float [n] or null -> handle, or -1
int64_t pds_pack_linear(const int8_t* weight, const float* scales, const float* bias, int64_t n, int64_t k) {
  return guarded([&] {
    auto layer = std::make_shared<pds::Linear>();
    layer->gemm.reset(new pds::Int8Gemm(weight, n, k));
    layer->weight_scale = copied(scales, n);
    layer->bias = copied(bias, n);
    return linears().put(std::move(layer));
  });
}

void pds_free_linear(int64_t handle) { linears().drop(handle); }

// The same for a layer whose activations stay in floating point.
int64_t pds_pack_weight_only(const int8_t* weight, const float* scales, const float* bias, int64_t n, int64_t k) {
  return guarded([&] {
    auto layer = std::make_shared<pds::WeightOnlyLinear>();
    layer->weight.reset(new pds::PackedBytes(static_cast<size_t>(n) * k));
    std::memcpy(layer->weight->data(), weight, static_cast<size_t>(n) * k);
    layer->weight_scale = copied(scales, n);
    layer->bias = copied(bias, n);
    layer->n = n;
    layer->k = k;
    return weight_only_linears().put(std::move(layer));
  });
}

void pds_free_weight_only(int64_t handle) { weight_only_linears().drop(handle); }

int64_t pds_linear_bytes(int64_t handle) {
  return guarded([&] { return static_cast<int64_t>(linears().get(handle)->gemm->packed_bytes()); });
}

// Writes oneDNN's implementation name; returns its length.
int64_t pds_linear_implementation(int64_t handle, char* text, int64_t room) {
  return guarded([&] {
    std::string name = linears().get(handle)->gemm->implementation();
    std::snprintf(text, room, "%s", name.c_str());
    return static_cast<int64_t>(name.size());
  });
}

int64_t pds_new_decoder(int64_t hidden, int64_t inner, int64_t heads, int64_t kv_heads, int64_t head_dim, float eps) {
  return guarded([&] {
    pds::DecoderShape shape{hidden, inner, heads, kv_heads, head_dim, eps};
    return decoders().put(std::make_shared<PackedDecoder>(PackedDecoder{pds::Decoder(shape), shape}));
  });
}

// Adds one layer that shares nothing with Python: the four linears move from their handles into the decoder.
int64_t pds_add_layer(int64_t decoder, const float* input_norm, const float* post_norm, int64_t qkv, int64_t o,
                      int64_t gate_up, int64_t down) {
  return guarded([&] {
    auto packed = decoders().get(decoder);
    pds::DecoderLayer layer;
    layer.input_norm = copied(input_norm, packed->shape.hidden);
    layer.post_norm = copied(post_norm, packed->shape.hidden);
    layer.qkv = std::move(*linears().get(qkv));
    layer.o = std::move(*linears().get(o));
    layer.gate_up = std::move(*linears().get(gate_up));
    layer.down = std::move(*linears().get(down));
    packed->decoder.add(std::move(layer));
    for (int64_t handle : {qkv, o, gate_up, down}) linears().drop(handle);
    return int64_t{0};
  });
}

void pds_free_decoder(int64_t handle) { decoders().drop(handle); }

}  // extern "C"

using Tensors = std::vector<paddle::Tensor>;

Tensors QuantizeRows(const paddle::Tensor& x) {
  int64_t rows = x.shape()[0], n = x.shape()[1];
  auto q = paddle::empty({rows, n}, paddle::DataType::UINT8, x.place());
  auto scales = paddle::empty({rows, 1}, paddle::DataType::FLOAT32, x.place());
  pds::quantize_rows(x.data<float>(), rows, n, q.data<uint8_t>(), scales.data<float>());
  return {q, scales};
}
PD_BUILD_OP(pds_quantize_rows).Inputs({"X"}).Outputs({"Q", "Scale"}).SetKernelFn(PD_KERNEL(QuantizeRows));

Tensors RmsNorm(const paddle::Tensor& x, const paddle::Tensor& weight, float eps) {
  int64_t rows = x.shape()[0], n = x.shape()[1];
  auto out = paddle::empty_like(x);
  const float *in = x.data<float>(), *w = weight.data<float>();
  float* y = out.data<float>();
#pragma omp parallel for if (rows * n > 16384)
  for (int64_t r = 0; r < rows; ++r) pds::vector_kernels().rms_norm(in + r * n, w, eps, n, y + r * n);
  return {out};
}
PD_BUILD_OP(pds_rms_norm).Inputs({"X", "Weight"}).Outputs({"Out"}).Attrs({"eps: float"}).SetKernelFn(PD_KERNEL(RmsNorm));

Tensors SiluMul(const paddle::Tensor& gate_up) {
  int64_t rows = gate_up.shape()[0], n = gate_up.shape()[1] / 2;
  auto out = paddle::empty({rows, n}, paddle::DataType::FLOAT32, gate_up.place());
  const float* in = gate_up.data<float>();
  float* y = out.data<float>();
#pragma omp parallel for if (rows * n > 16384)
  for (int64_t r = 0; r < rows; ++r) pds::vector_kernels().silu_mul(in + r * 2 * n, in + r * 2 * n + n, n, y + r * n);
  return {out};
}
PD_BUILD_OP(pds_silu_mul).Inputs({"GateUp"}).Outputs({"Out"}).SetKernelFn(PD_KERNEL(SiluMul));

Tensors Rotary(const paddle::Tensor& x, const paddle::Tensor& cos, const paddle::Tensor& sin) {
  int64_t tokens = x.shape()[0], heads = x.shape()[1], dim = x.shape()[2];
  auto out = x.copy_to(x.place(), true);
  float* y = out.data<float>();
  const float *c = cos.data<float>(), *s = sin.data<float>();
#pragma omp parallel for if (tokens * heads * dim > 16384)
  for (int64_t t = 0; t < tokens; ++t)
    for (int64_t h = 0; h < heads; ++h)
      pds::vector_kernels().rotate(y + (t * heads + h) * dim, c + t * (dim / 2), s + t * (dim / 2), dim);
  return {out};
}
PD_BUILD_OP(pds_rotary).Inputs({"X", "Cos", "Sin"}).Outputs({"Out"}).SetKernelFn(PD_KERNEL(Rotary));

void KvWrite(paddle::Tensor& keys, paddle::Tensor& values, const paddle::Tensor& key, const paddle::Tensor& value,
             const paddle::Tensor& slots) {
  int64_t tokens = key.shape()[0], kv_heads = key.shape()[1], dim = key.shape()[2];
  const float *k = key.data<float>(), *v = value.data<float>();
  const int64_t* slot = slots.data<int64_t>();
  for (int64_t t = 0; t < tokens; ++t)
    pds::write_kv(k + t * kv_heads * dim, v + t * kv_heads * dim, slot[t], kv_heads, dim, keys.data<float>(),
                  values.data<float>());
}
PD_BUILD_OP(pds_kv_write)
    .Inputs({"Keys", "Values", "Key", "Value", "Slots"})
    .Outputs({"KeysOut", "ValuesOut"})
    .SetInplaceMap({{"Keys", "KeysOut"}, {"Values", "ValuesOut"}})
    .SetKernelFn(PD_KERNEL(KvWrite));

Tensors PagedAttention(const paddle::Tensor& query, const paddle::Tensor& keys, const paddle::Tensor& values,
                       const paddle::Tensor& query_starts, const paddle::Tensor& context_lens,
                       const paddle::Tensor& block_tables) {
  int64_t tokens = query.shape()[0], heads = query.shape()[1], dim = query.shape()[2], kv_heads = keys.shape()[1];
  auto out = paddle::empty({tokens, heads * dim}, paddle::DataType::FLOAT32, query.place());
  pds::paged_attention(query.data<float>(), heads * dim, keys.data<float>(), values.data<float>(),
                       batch_of(tokens, query_starts, context_lens, block_tables), heads, kv_heads, dim, out.data<float>());
  return {out};
}
PD_BUILD_OP(pds_paged_attention)
    .Inputs({"Query", "Keys", "Values", "QueryStarts", "ContextLens", "BlockTables"})
    .Outputs({"Out"})
    .SetKernelFn(PD_KERNEL(PagedAttention));

Tensors Int8Linear(const paddle::Tensor& x, int64_t handle) {
  auto layer = linears().get(handle);
  PD_CHECK(x.shape()[1] == layer->gemm->k(), "int8_linear: x has ", x.shape()[1], " columns, the weight ", layer->gemm->k());
  int64_t rows = x.shape()[0];
  auto out = paddle::empty({rows, layer->gemm->n()}, paddle::DataType::FLOAT32, x.place());
  pds::linear(*layer, x.data<float>(), rows, out.data<float>());
  return {out};
}
PD_BUILD_OP(pds_int8_linear).Inputs({"X"}).Outputs({"Out"}).Attrs({"handle: int64_t"}).SetKernelFn(PD_KERNEL(Int8Linear));

Tensors WeightOnly(const paddle::Tensor& x, int64_t handle) {
  auto layer = weight_only_linears().get(handle);
  PD_CHECK(x.shape()[1] == layer->k, "weight_only_linear: x has ", x.shape()[1], " columns, the weight ", layer->k);
  auto out = paddle::empty({x.shape()[0], layer->n}, paddle::DataType::FLOAT32, x.place());
  pds::weight_only_linear(*layer, x.data<float>(), x.shape()[0], out.data<float>());
  return {out};
}
PD_BUILD_OP(pds_weight_only_linear)
    .Inputs({"X"})
    .Outputs({"Out"})
    .Attrs({"handle: int64_t"})
    .SetKernelFn(PD_KERNEL(WeightOnly));

Tensors DecoderForward(const paddle::Tensor& x, const paddle::Tensor& keys, const paddle::Tensor& values,
                       const paddle::Tensor& query_starts, const paddle::Tensor& context_lens,
                       const paddle::Tensor& block_tables, const paddle::Tensor& slots, const paddle::Tensor& cos,
                       const paddle::Tensor& sin, int64_t handle) {
  auto packed = decoders().get(handle);
  auto out = x.copy_to(x.place(), true);
  pds::Batch batch = batch_of(x.shape()[0], query_starts, context_lens, block_tables);
  batch.slots = slots.data<int64_t>();
  batch.cos = cos.data<float>();
  batch.sin = sin.data<float>();
  // caches are [layers][blocks]...: one pointer a layer
  size_t layers = packed->decoder.size();
  std::vector<float*> k(layers), v(layers);
  for (size_t i = 0; i < layers; ++i) {
    k[i] = const_cast<float*>(keys.data<float>()) + i * (keys.numel() / layers);
    v[i] = const_cast<float*>(values.data<float>()) + i * (values.numel() / layers);
  }
  packed->decoder.forward(out.data<float>(), batch, k, v);
  return {out};
}
PD_BUILD_OP(pds_decoder)
    .Inputs({"X", "Keys", "Values", "QueryStarts", "ContextLens", "BlockTables", "Slots", "Cos", "Sin"})
    .Outputs({"Out"})
    .Attrs({"handle: int64_t"})
    .SetKernelFn(PD_KERNEL(DecoderForward));
