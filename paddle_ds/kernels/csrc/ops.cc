// The operators Paddle sees. A packed layer is named by the handle that c_api.cc gave for it.
#include <vector>

#include "candidates.h"
#include "handles.h"
#include "paddle/phi/api/all.h"

namespace {

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

pds::KvType kv_type(const paddle::Tensor& cache) {
  switch (cache.dtype()) {
    case paddle::DataType::FLOAT32: return pds::KvType::kFloat32;
    case paddle::DataType::BFLOAT16: return pds::KvType::kBfloat16;
    case paddle::DataType::INT8: return pds::KvType::kInt8;
    default: PD_THROW("a KV cache holds float32, bfloat16 or int8");
  }
}

// Layer `index` of `layers` in caches [layers][blocks]...; the scales are not looked at where the type has none.
pds::KvView kv_view(const paddle::Tensor& keys, const paddle::Tensor& values, const paddle::Tensor& key_scales,
                    const paddle::Tensor& value_scales, int64_t index, int64_t layers) {
  auto at = [&](const paddle::Tensor& tensor) -> void* {
    auto* first = const_cast<char*>(static_cast<const char*>(tensor.data()));
    return first + index * (tensor.numel() / layers) * phi::SizeOf(tensor.dtype());
  };
  auto *key_scale = static_cast<float*>(at(key_scales)), *value_scale = static_cast<float*>(at(value_scales));
  return {kv_type(keys), at(keys), at(values), key_scale, value_scale, nullptr, nullptr};
}

// The same for who writes: with the layer's static scales, [layers][kv_heads], where there are any.
pds::KvView with_static(pds::KvView view, const paddle::Tensor& keys, const paddle::Tensor& values, int64_t index,
                        int64_t layers, int64_t kv_heads) {
  if (keys.numel() == 0 && values.numel() == 0) return view;
  const std::vector<int64_t> shape{layers, kv_heads};
  PD_CHECK(keys.shape() == shape && values.shape() == shape && view.type == pds::KvType::kInt8,
           "static scales are [layers, kv_heads] of an int8 cache");
  view.static_key_scales = keys.data<float>() + index * kv_heads;
  view.static_value_scales = values.data<float>() + index * kv_heads;
  return view;
}

}  // namespace

using Tensors = std::vector<paddle::Tensor>;
using Shape = std::vector<int64_t>;
using Shapes = std::vector<Shape>;
using Type = paddle::DataType;
using Types = std::vector<Type>;

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
// Shapes and types are for exported programs, which are built before anything is computed.
Shapes RmsNormShape(const Shape& x, const Shape&) { return {x}; }
Types RmsNormType(const Type& x, const Type&) { return {x}; }
PD_BUILD_OP(pds_rms_norm)
    .Inputs({"X", "Weight"})
    .Outputs({"Out"})
    .Attrs({"eps: float"})
    .SetKernelFn(PD_KERNEL(RmsNorm))
    .SetInferShapeFn(PD_INFER_SHAPE(RmsNormShape))
    .SetInferDtypeFn(PD_INFER_DTYPE(RmsNormType));

Tensors SiluMul(const paddle::Tensor& gate_up) {
  int64_t rows = gate_up.shape()[0], n = gate_up.shape()[1] / 2;
  auto out = paddle::empty({rows, n}, paddle::DataType::FLOAT32, gate_up.place());
  const float* in = gate_up.data<float>();
  float* y = out.data<float>();
#pragma omp parallel for if (rows * n > 16384)
  for (int64_t r = 0; r < rows; ++r) pds::vector_kernels().silu_mul(in + r * 2 * n, in + r * 2 * n + n, n, y + r * n);
  return {out};
}
Shapes SiluMulShape(const Shape& gate_up) { return {{gate_up[0], gate_up[1] / 2}}; }
Types SiluMulType(const Type& gate_up) { return {gate_up}; }
PD_BUILD_OP(pds_silu_mul)
    .Inputs({"GateUp"})
    .Outputs({"Out"})
    .SetKernelFn(PD_KERNEL(SiluMul))
    .SetInferShapeFn(PD_INFER_SHAPE(SiluMulShape))
    .SetInferDtypeFn(PD_INFER_DTYPE(SiluMulType));

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
Shapes RotaryShape(const Shape& x, const Shape&, const Shape&) { return {x}; }
Types RotaryType(const Type& x, const Type&, const Type&) { return {x}; }
PD_BUILD_OP(pds_rotary)
    .Inputs({"X", "Cos", "Sin"})
    .Outputs({"Out"})
    .SetKernelFn(PD_KERNEL(Rotary))
    .SetInferShapeFn(PD_INFER_SHAPE(RotaryShape))
    .SetInferDtypeFn(PD_INFER_DTYPE(RotaryType));

// The caches are written in place, [layers][blocks]... whole; `layer` says where.
void KvWrite(paddle::Tensor& keys, paddle::Tensor& values, paddle::Tensor& key_scales, paddle::Tensor& value_scales,
             const paddle::Tensor& static_key_scales, const paddle::Tensor& static_value_scales, const paddle::Tensor& key,
             const paddle::Tensor& value, const paddle::Tensor& slots, int64_t layer) {
  int64_t tokens = key.shape()[0], kv_heads = key.shape()[1], dim = key.shape()[2];
  const float *k = key.data<float>(), *v = value.data<float>();
  const int64_t* slot = slots.data<int64_t>();
  const int64_t layers = keys.shape()[0];
  pds::KvView cache = with_static(kv_view(keys, values, key_scales, value_scales, layer, layers), static_key_scales,
                                  static_value_scales, layer, layers, kv_heads);
  for (int64_t t = 0; t < tokens; ++t)
    pds::vector_kernels().write_kv(k + t * kv_heads * dim, v + t * kv_heads * dim, cache, slot[t], kv_heads, dim);
}
PD_BUILD_OP(pds_kv_write)
    .Inputs({"Keys", "Values", "KeyScales", "ValueScales", "StaticKeyScales", "StaticValueScales", "Key", "Value", "Slots"})
    .Outputs({"KeysOut", "ValuesOut", "KeyScalesOut", "ValueScalesOut"})
    .Attrs({"layer: int64_t"})
    .SetInplaceMap({{"Keys", "KeysOut"},
                    {"Values", "ValuesOut"},
                    {"KeyScales", "KeyScalesOut"},
                    {"ValueScales", "ValueScalesOut"}})
    .SetKernelFn(PD_KERNEL(KvWrite));

Tensors PagedAttention(const paddle::Tensor& query, const paddle::Tensor& keys, const paddle::Tensor& values,
                       const paddle::Tensor& key_scales, const paddle::Tensor& value_scales,
                       const paddle::Tensor& query_starts, const paddle::Tensor& context_lens,
                       const paddle::Tensor& block_tables, int64_t layer) {
  int64_t tokens = query.shape()[0], heads = query.shape()[1], dim = query.shape()[2], kv_heads = keys.shape()[2];
  auto out = paddle::empty({tokens, heads * dim}, paddle::DataType::FLOAT32, query.place());
  pds::paged_attention(query.data<float>(), heads * dim,
                       kv_view(keys, values, key_scales, value_scales, layer, keys.shape()[0]),
                       batch_of(tokens, query_starts, context_lens, block_tables), heads, kv_heads, dim, out.data<float>());
  return {out};
}
PD_BUILD_OP(pds_paged_attention)
    .Inputs({"Query", "Keys", "Values", "KeyScales", "ValueScales", "QueryStarts", "ContextLens", "BlockTables"})
    .Outputs({"Out"})
    .Attrs({"layer: int64_t"})
    .SetKernelFn(PD_KERNEL(PagedAttention));

Tensors Int8Linear(const paddle::Tensor& x, int64_t handle) {
  auto layer = pds::linears().get(handle);
  PD_CHECK(x.shape()[1] == layer->gemm->k(), "int8_linear: x has ", x.shape()[1], " columns, the weight ", layer->gemm->k());
  int64_t rows = x.shape()[0];
  auto out = paddle::empty({rows, layer->gemm->n()}, paddle::DataType::FLOAT32, x.place());
  pds::linear(*layer, x.data<float>(), rows, out.data<float>());
  return {out};
}
PD_BUILD_OP(pds_int8_linear).Inputs({"X"}).Outputs({"Out"}).Attrs({"handle: int64_t"}).SetKernelFn(PD_KERNEL(Int8Linear));

Tensors FloatLinear(const paddle::Tensor& x, int64_t handle) {
  auto layer = pds::float_linears().get(handle);
  PD_CHECK(x.shape()[1] == layer->k, "float_linear: x has ", x.shape()[1], " columns, the weight ", layer->k);
  auto out = paddle::empty({x.shape()[0], layer->n}, paddle::DataType::FLOAT32, x.place());
  pds::float_linear(*layer, x.data<float>(), x.shape()[0], out.data<float>());
  return {out};
}
PD_BUILD_OP(pds_float_linear).Inputs({"X"}).Outputs({"Out"}).Attrs({"handle: int64_t"}).SetKernelFn(PD_KERNEL(FloatLinear));

Tensors GroupedLinear(const paddle::Tensor& x, int64_t handle) {
  auto layer = pds::grouped_linears().get(handle);
  PD_CHECK(x.shape()[1] == layer->k, "grouped_linear: x has ", x.shape()[1], " columns, the weight ", layer->k);
  auto out = paddle::empty({x.shape()[0], layer->n}, paddle::DataType::FLOAT32, x.place());
  pds::grouped_linear(*layer, x.data<float>(), x.shape()[0], out.data<float>());
  return {out};
}
PD_BUILD_OP(pds_grouped_linear).Inputs({"X"}).Outputs({"Out"}).Attrs({"handle: int64_t"}).SetKernelFn(PD_KERNEL(GroupedLinear));

Tensors DecoderForward(const paddle::Tensor& x, const paddle::Tensor& keys, const paddle::Tensor& values,
                       const paddle::Tensor& key_scales, const paddle::Tensor& value_scales,
                       const paddle::Tensor& static_key_scales, const paddle::Tensor& static_value_scales,
                       const paddle::Tensor& query_starts, const paddle::Tensor& context_lens,
                       const paddle::Tensor& block_tables, const paddle::Tensor& slots, const paddle::Tensor& cos,
                       const paddle::Tensor& sin, int64_t handle) {
  auto decoder = pds::decoders().get(handle);
  auto out = x.copy_to(x.place(), true);
  pds::Batch batch = batch_of(x.shape()[0], query_starts, context_lens, block_tables);
  batch.slots = slots.data<int64_t>();
  batch.cos = cos.data<float>();
  batch.sin = sin.data<float>();
  const int64_t layers = decoder->size();
  std::vector<pds::KvView> caches;
  for (int64_t i = 0; i < layers; ++i)
    caches.push_back(with_static(kv_view(keys, values, key_scales, value_scales, i, layers), static_key_scales,
                                 static_value_scales, i, layers, decoder->shape().kv_heads));
  decoder->forward(out.data<float>(), batch, caches);
  return {out};
}
PD_BUILD_OP(pds_decoder)
    .Inputs({"X", "Keys", "Values", "KeyScales", "ValueScales", "StaticKeyScales", "StaticValueScales", "QueryStarts",
             "ContextLens", "BlockTables", "Slots", "Cos", "Sin"})
    .Outputs({"Out"})
    .Attrs({"handle: int64_t"})
    .SetKernelFn(PD_KERNEL(DecoderForward));

// The `count` most likely tokens of each row, see candidates.h; ids from num_tokens up are padding and are not looked at.
Tensors Candidates(const paddle::Tensor& logits, const paddle::Tensor& temperatures, int64_t num_tokens, int64_t count) {
  int64_t rows = logits.shape()[0], stride = logits.shape()[1];
  PD_CHECK(1 <= count && count <= num_tokens && num_tokens <= stride, "candidates: ", count, " of ", num_tokens, " of ", stride);
  auto ids = paddle::empty({rows, count}, paddle::DataType::INT64, logits.place());
  auto values = paddle::empty({rows, count}, paddle::DataType::FLOAT32, logits.place());
  auto totals = paddle::empty({rows}, paddle::DataType::FLOAT64, logits.place());
  const float *x = logits.data<float>(), *temperature = temperatures.data<float>();
  int64_t* id = ids.data<int64_t>();
  float* value = values.data<float>();
  double* total = totals.data<double>();
#pragma omp parallel for schedule(monotonic : dynamic) if (rows > 1)
  for (int64_t r = 0; r < rows; ++r)
    pds::candidates(x + r * stride, num_tokens, temperature[r], count, id + r * count, value + r * count, total + r);
  return {ids, values, totals};
}
PD_BUILD_OP(pds_candidates)
    .Inputs({"Logits", "Temperatures"})
    .Outputs({"Ids", "Values", "Totals"})
    .Attrs({"num_tokens: int64_t", "count: int64_t"})
    .SetKernelFn(PD_KERNEL(Candidates));
