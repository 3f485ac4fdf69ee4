// The C functions that pack weights, called through ctypes with plain arrays. They answer -1 where they fail.
#include <cstring>
#include <string>
#include <vector>

#include "handles.h"
#include "onednn_abi.h"

namespace pds {

Handles<Linear>& linears() {
  static Handles<Linear> handles;
  return handles;
}

Handles<FloatLinear>& float_linears() {
  static Handles<FloatLinear> handles;
  return handles;
}

Handles<GroupedLinear>& grouped_linears() {
  static Handles<GroupedLinear> handles;
  return handles;
}

Handles<Decoder>& decoders() {
  static Handles<Decoder> handles;
  return handles;
}

}  // namespace pds

namespace {

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

template <typename T>
std::vector<T> copied(const T* values, int64_t count) {
  return values == nullptr ? std::vector<T>() : std::vector<T>(values, values + count);
}

}  // namespace

extern "C" {

const char* pds_last_error() { return last_error.c_str(); }
const char* pds_vector_isa() { return pds::vector_kernels().name; }
const char* pds_onednn_version() {
  const dnnl_version_t& v = *dnnl_version();
  static const std::string text = std::to_string(v.major) + "." + std::to_string(v.minor) + "." + std::to_string(v.patch);
  return text.c_str();
}

// scales float [n], bias float [n] or null -> handle; then pds_pack_rows for all rows in any pieces, then pds_finish_linear
int64_t pds_new_linear(const float* scales, const float* bias, int64_t n, int64_t k) {
  return guarded([&] {
    auto layer = std::make_shared<pds::Linear>();
    layer->gemm.reset(new pds::Int8Gemm(n, k));
    layer->kept = copied(scales, n);
    if (bias != nullptr) layer->kept.insert(layer->kept.end(), bias, bias + n);
    layer->weight_scale = layer->kept.data();
    layer->bias = bias == nullptr ? nullptr : layer->kept.data() + n;
    return pds::linears().put(std::move(layer));
  });
}

int64_t pds_pack_rows(int64_t handle, const int8_t* weight, int64_t first, int64_t count) {
  return guarded([&] {
    pds::linears().get(handle)->gemm->pack_rows(weight, first, count);
    return int64_t{0};
  });
}

int64_t pds_finish_linear(int64_t handle) {
  return guarded([&] {
    pds::linears().get(handle)->gemm->finish();
    return int64_t{0};
  });
}

void pds_free_linear(int64_t handle) { pds::linears().drop(handle); }

// The same for a layer whose activations stay in floating point. Its INT8 weights are copied.
int64_t pds_pack_weight_only(const int8_t* weight, const float* scales, const float* bias, int64_t n, int64_t k) {
  return guarded([&] {
    auto layer = std::make_shared<pds::FloatLinear>();
    layer->owned.reset(new pds::PackedBytes(static_cast<size_t>(n) * k));
    std::memcpy(layer->owned->data(), weight, static_cast<size_t>(n) * k);
    layer->weight = layer->owned->data();
    layer->type = pds::WeightType::kInt8;
    layer->weight_scale = copied(scales, n);
    layer->bias = copied(bias, n);
    layer->n = n;
    layer->k = k;
    return pds::float_linears().put(std::move(layer));
  });
}

// A layer over weights that the caller keeps alive: bfloat16 where `half` is not 0, else float32.
int64_t pds_borrow_dense(const void* weight, int64_t half, const float* bias, int64_t n, int64_t k) {
  return guarded([&] {
    auto layer = std::make_shared<pds::FloatLinear>();
    layer->weight = weight;
    layer->type = half != 0 ? pds::WeightType::kBfloat16 : pds::WeightType::kFloat32;
    layer->bias = copied(bias, n);
    layer->n = n;
    layer->k = k;
    return pds::float_linears().put(std::move(layer));
  });
}

void pds_free_float_linear(int64_t handle) { pds::float_linears().drop(handle); }

// Grouped integers as grouped_linear.h keeps them, all copied. Zero points [n][groups], order [k] and bias [n] may be null.
int64_t pds_pack_grouped(const void* values, const float* scales, const int16_t* zero_points, const int32_t* starts,
                         const int32_t* order, const float* bias, int64_t n, int64_t k, int64_t groups, int64_t bits) {
  return guarded([&] {
    auto layer = std::make_shared<pds::GroupedLinear>(n, k, groups, static_cast<int>(bits));
    std::memcpy(layer->values.data(), values, layer->values.size());
    layer->scales = copied(scales, n * groups);
    layer->zero_points = copied(zero_points, n * groups);
    layer->starts = copied(starts, groups + 1);
    layer->order = copied(order, k);
    layer->bias = copied(bias, n);
    return pds::grouped_linears().put(std::move(layer));
  });
}

void pds_free_grouped(int64_t handle) { pds::grouped_linears().drop(handle); }

int64_t pds_linear_bytes(int64_t handle) {
  return guarded([&] { return static_cast<int64_t>(pds::linears().get(handle)->gemm->packed_bytes()); });
}

// Writes the name of the implementation; returns its length.
int64_t pds_linear_implementation(int64_t handle, char* text, int64_t room) {
  return guarded([&] {
    std::string name = pds::linears().get(handle)->gemm->implementation();
    std::snprintf(text, room, "%s", name.c_str());
    return static_cast<int64_t>(name.size());
  });
}

int64_t pds_new_decoder(int64_t hidden, int64_t inner, int64_t heads, int64_t kv_heads, int64_t head_dim, float eps) {
  return guarded([&] {
    return pds::decoders().put(
        std::make_shared<pds::Decoder>(pds::DecoderShape{hidden, inner, heads, kv_heads, head_dim, eps}));
  });
}

// Adds one layer that shares nothing with Python: the four linears move from their handles into the decoder.
int64_t pds_add_layer(int64_t decoder, const float* input_norm, const float* post_norm, int64_t qkv, int64_t o,
                      int64_t gate_up, int64_t down) {
  return guarded([&] {
    auto target = pds::decoders().get(decoder);
    pds::DecoderLayer layer;
    const int64_t hidden = target->shape().hidden;
    layer.kept = copied(input_norm, hidden);
    layer.kept.insert(layer.kept.end(), post_norm, post_norm + hidden);
    layer.input_norm = layer.kept.data();
    layer.post_norm = layer.kept.data() + hidden;
    layer.qkv = std::move(*pds::linears().get(qkv));
    layer.o = std::move(*pds::linears().get(o));
    layer.gate_up = std::move(*pds::linears().get(gate_up));
    layer.down = std::move(*pds::linears().get(down));
    target->add(std::move(layer));
    for (int64_t handle : {qkv, o, gate_up, down}) pds::linears().drop(handle);
    return int64_t{0};
  });
}

void pds_free_decoder(int64_t handle) { pds::decoders().drop(handle); }

}  // extern "C"
