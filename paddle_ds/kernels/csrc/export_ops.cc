// The operators of exported programs (paddle_ds/export): what ops.cc does for the engine, without state. Weights are inputs, read
// where the program's parameters lie, and keys and values are rows that the host keeps. So they work in any process that loads
// this library, for any number of predictors.
//
//   x          [tokens][inputs]           one sequence's new tokens
//   past keys  [layers][capacity][kv_heads][head_dim], of which past_length rows a layer are read; values alike
//   keys       [layers][tokens][kv_heads][head_dim], what this call adds
#include <sstream>
#include <vector>

#include "decoder.h"
#include "grouped_linear.h"
#include "packed_products.h"
#include "paddle/common/enforce.h"
#include "paddle/phi/api/all.h"

namespace {

using Tensors = std::vector<paddle::Tensor>;
using Shape = std::vector<int64_t>;
using Shapes = std::vector<Shape>;
using Type = paddle::DataType;
using Types = std::vector<Type>;
using MaybeTensor = paddle::optional<paddle::Tensor>;
using MaybeShape = paddle::optional<Shape>;
using MaybeType = paddle::optional<Type>;

// Not PD_CHECK: of what that throws, Paddle's predictor passes on that there was an exception, and not what it says.
template <typename... Parts>
void require(bool holds, const Parts&... parts) {
  if (holds) return;
  std::ostringstream text;
  (text << ... << parts);
  PADDLE_THROW(common::errors::InvalidArgument("%s", text.str()));
}

paddle::Tensor floats(const Shape& shape, const paddle::Tensor& like) {
  return paddle::empty(shape, Type::FLOAT32, like.place());
}

template <typename T>
const T* data_or_null(const MaybeTensor& tensor) {
  return tensor ? tensor->data<T>() : nullptr;
}

void check_columns(const char* op, const paddle::Tensor& x, int64_t columns) {
  require(x.shape().size() == 2 && x.shape()[1] == columns, op, ": x has ", x.shape().back(), " columns, the weight ", columns);
}

// An INT8 layer over packed[n' / 64][k' / 4][64][4] and its zero points, [n'].
pds::Linear borrowed(const paddle::Tensor& packed, const paddle::Tensor& zero_point, const float* scale, const float* bias,
                     int64_t n, int64_t k) {
  const Shape wanted{pds::packed_size(n) / pds::kPackedGroup, pds::packed_size(k) / 4, pds::kPackedGroup, 4};
  require(packed.shape() == wanted, "a packed weight of ", n, " outputs and ", k, " inputs has another shape");
  require(zero_point.numel() == pds::packed_size(n), "zero points are not one a packed output");
  pds::Linear layer;
  layer.gemm.reset(new pds::Int8Gemm(n, k, packed.data<int8_t>(), zero_point.data<int32_t>()));
  layer.weight_scale = scale;
  layer.bias = bias;
  return layer;
}

// The host's keys and values, checked: what is wrong here would be read or written beyond their end.
struct Past {
  const float *keys, *values;
  int64_t layers, capacity, kv_heads, head_dim, length;

  Past(const paddle::Tensor& past_keys, const paddle::Tensor& past_values, const paddle::Tensor& past_length)
      : keys(past_keys.data<float>()), values(past_values.data<float>()), length(past_length.data<int64_t>()[0]) {
    const Shape shape = past_keys.shape();
    require(shape.size() == 4 && past_values.shape() == shape,
            "past_keys and past_values are [layers, capacity, kv_heads, head_dim], both alike");
    layers = shape[0];
    capacity = shape[1];
    kv_heads = shape[2];
    head_dim = shape[3];
    require(0 <= length && length <= capacity, "past_length is ", length, "; past_keys has room for ", capacity, " tokens");
  }

  pds::KvView layer(int64_t index, float* new_keys, float* new_values) const {
    const int64_t at = index * capacity * kv_heads * head_dim;
    pds::KvView view{};
    view.type = pds::KvType::kRows;
    view.rows = {keys + at, values + at, new_keys, new_values, length};
    return view;
  }
};

// One sequence as a batch.
struct Sequence {
  int32_t starts[2], context;
  std::vector<int64_t> slots;
  pds::Batch batch{};

  Sequence(int64_t tokens, int64_t past) : starts{0, static_cast<int32_t>(tokens)}, context(static_cast<int32_t>(past + tokens)) {
    for (int64_t t = 0; t < tokens; ++t) slots.push_back(past + t);
    batch.tokens = tokens;
    batch.requests = 1;
    batch.query_starts = starts;
    batch.context_lens = &context;
    batch.slots = slots.data();
  }
  Sequence(const Sequence&) = delete;
};

// Takes the parameters of a decoder from their list, in order.
class Parameters {
 public:
  explicit Parameters(const Tensors& list) : list_(list) {}
  const paddle::Tensor& next() { return list_.at(index_++); }
  pds::Linear linear(int64_t n, int64_t k, bool has_bias) {
    const paddle::Tensor &packed = next(), &zero_point = next(), &scale = next();
    require(scale.numel() == n, "a layer of ", scale.numel(), " outputs where the decoder has one of ", n);
    return borrowed(packed, zero_point, scale.data<float>(), has_bias ? next().data<float>() : nullptr, n, k);
  }

 private:
  const Tensors& list_;
  size_t index_ = 0;
};

}  // namespace

Tensors ExportInt8Linear(const paddle::Tensor& x, const paddle::Tensor& packed, const paddle::Tensor& zero_point,
                         const paddle::Tensor& scale, const MaybeTensor& bias) {
  const int64_t rows = x.shape()[0], k = x.shape()[1], n = scale.numel();
  auto out = floats({rows, n}, x);
  pds::linear(borrowed(packed, zero_point, scale.data<float>(), data_or_null<float>(bias), n, k), x.data<float>(), rows,
              out.data<float>());
  return {out};
}
Shapes ExportInt8LinearShape(const Shape& x, const Shape&, const Shape&, const Shape& scale, const MaybeShape&) {
  return {{x[0], scale[0]}};
}
Types ExportInt8LinearType(const Type& x, const Type&, const Type&, const Type&, const MaybeType&) { return {x}; }
PD_BUILD_OP(pds_export_int8_linear)
    .Inputs({"X", "Packed", "ZeroPoint", "Scale", paddle::Optional("Bias")})
    .Outputs({"Out"})
    .SetKernelFn(PD_KERNEL(ExportInt8Linear))
    .SetInferShapeFn(PD_INFER_SHAPE(ExportInt8LinearShape))
    .SetInferDtypeFn(PD_INFER_DTYPE(ExportInt8LinearType));

// Weights [n][k]: int8 with scales, bfloat16 or float32.
Tensors ExportFloatLinear(const paddle::Tensor& x, const paddle::Tensor& weight, const MaybeTensor& scale,
                          const MaybeTensor& bias) {
  const int64_t rows = x.shape()[0], n = weight.shape()[0], k = weight.shape()[1];
  check_columns("export_float_linear", x, k);
  pds::WeightType type = pds::WeightType::kFloat32;
  switch (weight.dtype()) {
    case Type::INT8: type = pds::WeightType::kInt8; break;
    case Type::BFLOAT16: type = pds::WeightType::kBfloat16; break;
    case Type::FLOAT32: break;
    default: require(false, "export_float_linear: a weight is int8, bfloat16 or float32");
  }
  auto out = floats({rows, n}, x);
  pds::float_product({x.data<float>(), rows, n, k, type, weight.data(), data_or_null<float>(scale), data_or_null<float>(bias),
                      out.data<float>()});
  return {out};
}
Shapes ExportFloatLinearShape(const Shape& x, const Shape& weight, const MaybeShape&, const MaybeShape&) {
  return {{x[0], weight[0]}};
}
Types ExportFloatLinearType(const Type& x, const Type&, const MaybeType&, const MaybeType&) { return {x}; }
PD_BUILD_OP(pds_export_float_linear)
    .Inputs({"X", "Weight", paddle::Optional("Scale"), paddle::Optional("Bias")})
    .Outputs({"Out"})
    .SetKernelFn(PD_KERNEL(ExportFloatLinear))
    .SetInferShapeFn(PD_INFER_SHAPE(ExportFloatLinearShape))
    .SetInferDtypeFn(PD_INFER_DTYPE(ExportFloatLinearType));

// Grouped integers as GroupedLinear keeps them: int8 [n][k], or nibbles in uint8 [n][(k + 1) / 2].
Tensors ExportGroupedLinear(const paddle::Tensor& x, const paddle::Tensor& values, const paddle::Tensor& scales,
                            const paddle::Tensor& starts, const MaybeTensor& zero_points, const MaybeTensor& order,
                            const MaybeTensor& bias) {
  const int64_t rows = x.shape()[0], k = x.shape()[1], n = values.shape()[0], groups = scales.shape()[1];
  const int bits = values.dtype() == Type::UINT8 ? 4 : 8;
  const pds::GroupedView layer{n,
                               k,
                               groups,
                               bits,
                               values.data(),
                               scales.data<float>(),
                               data_or_null<int16_t>(zero_points),
                               starts.data<int32_t>(),
                               data_or_null<int32_t>(order),
                               data_or_null<float>(bias)};
  require(values.shape()[1] == layer.row_bytes() && starts.numel() == groups + 1 && starts.data<int32_t>()[groups] == k,
          "export_grouped_linear: x has ", k, " columns, the weight others");
  auto out = floats({rows, n}, x);
  pds::grouped_linear(layer, x.data<float>(), rows, out.data<float>());
  return {out};
}
Shapes ExportGroupedLinearShape(const Shape& x, const Shape& values, const Shape&, const Shape&, const MaybeShape&,
                                const MaybeShape&, const MaybeShape&) {
  return {{x[0], values[0]}};
}
Types ExportGroupedLinearType(const Type& x, const Type&, const Type&, const Type&, const MaybeType&, const MaybeType&,
                              const MaybeType&) {
  return {x};
}
PD_BUILD_OP(pds_export_grouped_linear)
    .Inputs({"X", "Values", "Scales", "Starts", paddle::Optional("ZeroPoints"), paddle::Optional("Order"),
             paddle::Optional("Bias")})
    .Outputs({"Out"})
    .SetKernelFn(PD_KERNEL(ExportGroupedLinear))
    .SetInferShapeFn(PD_INFER_SHAPE(ExportGroupedLinearShape))
    .SetInferDtypeFn(PD_INFER_DTYPE(ExportGroupedLinearType));

// Query [tokens][heads][head_dim], new keys and values [tokens][kv_heads][head_dim]; queries and keys are rotated.
Tensors ExportAttention(const paddle::Tensor& query, const paddle::Tensor& key, const paddle::Tensor& value,
                        const paddle::Tensor& past_keys, const paddle::Tensor& past_values, const paddle::Tensor& past_length,
                        int64_t layer) {
  const Past past(past_keys, past_values, past_length);
  const int64_t tokens = query.shape()[0], heads = query.shape()[1], dim = query.shape()[2];
  require(0 <= layer && layer < past.layers, "past_keys has ", past.layers, " layers, the model more");
  require(past.head_dim == dim && key.shape() == (Shape{tokens, past.kv_heads, dim}) && value.shape() == key.shape(),
          "past_keys has ", past.kv_heads, " heads of ", past.head_dim, ", the model others");
  auto out = floats({tokens, heads * dim}, query);
  // nothing is written through the view here: the new rows are there already
  const pds::KvView view = past.layer(layer, const_cast<float*>(key.data<float>()), const_cast<float*>(value.data<float>()));
  const Sequence sequence(tokens, past.length);
  pds::paged_attention(query.data<float>(), heads * dim, view, sequence.batch, heads, past.kv_heads, dim, out.data<float>());
  return {out};
}
Shapes ExportAttentionShape(const Shape& query, const Shape&, const Shape&, const Shape&, const Shape&, const Shape&) {
  return {{query[0], query[1] * query[2]}};
}
Types ExportAttentionType(const Type& query, const Type&, const Type&, const Type&, const Type&, const Type&) { return {query}; }
PD_BUILD_OP(pds_export_attention)
    .Inputs({"Query", "Key", "Value", "PastKeys", "PastValues", "PastLength"})
    .Outputs({"Out"})
    .Attrs({"layer: int64_t"})
    .SetKernelFn(PD_KERNEL(ExportAttention))
    .SetInferShapeFn(PD_INFER_SHAPE(ExportAttentionShape))
    .SetInferDtypeFn(PD_INFER_DTYPE(ExportAttentionType));

// All layers, where every linear is INT8: X [tokens][hidden] -> Out alike, before the final norm. Parameters are, layer by layer,
// input norm, norm after attention, and of qkv, o, gate_up and down: packed weight, zero points, scales, and bias where bit 0, 1,
// 2 or 3 of `biases` says so.
Tensors ExportDecoder(const paddle::Tensor& x, const paddle::Tensor& cos, const paddle::Tensor& sin,
                      const paddle::Tensor& past_keys, const paddle::Tensor& past_values, const paddle::Tensor& past_length,
                      const Tensors& parameters, int64_t heads, int64_t inner, int64_t biases, float eps) {
  const Past past(past_keys, past_values, past_length);
  const int64_t tokens = x.shape()[0], hidden = x.shape()[1], dim = past.head_dim, kv_heads = past.kv_heads;
  const int64_t q_size = heads * dim, row = kv_heads * dim;
  constexpr int64_t kNorms = 2, kLinears = 4, kParts = 3, kFirstScale = 4;
  int64_t per_layer = kNorms + kLinears * kParts;
  for (int64_t bit = 0; bit < kLinears; ++bit) per_layer += (biases >> bit) & 1;
  const int64_t layers = static_cast<int64_t>(parameters.size()) / per_layer;
  require(layers == past.layers, "past_keys has ", past.layers, " layers, the model ", layers);
  require(cos.shape() == (Shape{tokens, dim / 2}) && sin.shape() == cos.shape() &&
              parameters.at(kFirstScale).numel() == q_size + 2 * row,
          "past_keys has ", kv_heads, " heads of ", dim, ", the model others");
  pds::Decoder decoder(pds::DecoderShape{hidden, inner, heads, kv_heads, dim, eps});
  Parameters next(parameters);
  for (int64_t i = 0; i < past.layers; ++i) {
    pds::DecoderLayer layer;
    layer.input_norm = next.next().data<float>();
    layer.post_norm = next.next().data<float>();
    layer.qkv = next.linear(q_size + 2 * row, hidden, (biases & 1) != 0);
    layer.o = next.linear(hidden, q_size, (biases & 2) != 0);
    layer.gate_up = next.linear(2 * inner, hidden, (biases & 4) != 0);
    layer.down = next.linear(hidden, inner, (biases & 8) != 0);
    decoder.add(std::move(layer));
  }
  auto out = x.copy_to(x.place(), true);
  auto keys = floats({past.layers, tokens, kv_heads, dim}, x), values = floats({past.layers, tokens, kv_heads, dim}, x);
  std::vector<pds::KvView> caches;
  for (int64_t i = 0; i < past.layers; ++i)
    caches.push_back(past.layer(i, keys.data<float>() + i * tokens * row, values.data<float>() + i * tokens * row));
  Sequence sequence(tokens, past.length);
  sequence.batch.cos = cos.data<float>();
  sequence.batch.sin = sin.data<float>();
  decoder.forward(out.data<float>(), sequence.batch, caches);
  return {out, keys, values};
}
Shapes ExportDecoderShape(const Shape& x, const Shape&, const Shape&, const Shape& past_keys, const Shape&, const Shape&,
                          const Shapes&) {
  const Shape rows{past_keys[0], x[0], past_keys[2], past_keys[3]};
  return {x, rows, rows};
}
Types ExportDecoderType(const Type& x, const Type&, const Type&, const Type&, const Type&, const Type&, const Types&) {
  return {x, x, x};
}
PD_BUILD_OP(pds_export_decoder)
    .Inputs({"X", "Cos", "Sin", "PastKeys", "PastValues", "PastLength", paddle::Vec("Parameters")})
    .Outputs({"Out", "Keys", "Values"})
    .Attrs({"heads: int64_t", "inner: int64_t", "biases: int64_t", "eps: float"})
    .SetKernelFn(PD_KERNEL(ExportDecoder))
    .SetInferShapeFn(PD_INFER_SHAPE(ExportDecoderShape))
    .SetInferDtypeFn(PD_INFER_DTYPE(ExportDecoderType));
