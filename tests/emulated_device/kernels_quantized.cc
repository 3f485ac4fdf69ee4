// Paddle's quantised linear layers. This device's layouts are plain: INT8 weight [N, K], one scale for each of its N rows.
#include <algorithm>
#include <cmath>

#include "kernel.h"
#include "matmul.h"

namespace emulated {
namespace {

using OptionalTensor = paddle::optional<Tensor>;

// weight = integer * scale; the largest magnitude of a row becomes 127.
constexpr float kLargest = 127.0f;

template <typename T>
std::vector<float> floats(const Operand& from) {
  std::vector<float> values(static_cast<size_t>(from.size()));
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(from.as<T>()[i]);
  return values;
}

std::vector<float> read_floats(const Operand& from) {
  std::vector<float> values;
  if (from.data == nullptr) return values;
  visit_float(from.type, [&](auto type) { values = floats<decltype(type)>(from); });
  return values;
}

struct Layer {
  Operand x, weight, bias, scale, to;
  int64_t rows, inputs, outputs;
};

Layer read_layer(Launch& launch, const Tensor& x, const Tensor& weight, const OptionalTensor& bias, const Tensor& scale,
                 Tensor* out) {
  Layer layer{launch.input(x), launch.input(weight), bias ? launch.input(*bias) : Operand{}, launch.input(scale), {}, 0, 0, 0};
  layer.to = launch.output(out, layer.x.type);
  if (layer.weight.type != Type::INT8 || layer.weight.dims.size() != 2) throw std::runtime_error("weight: INT8 [N, K] is wanted");
  layer.outputs = layer.weight.dims[0];
  layer.inputs = layer.weight.dims[1];
  if (layer.x.dims.empty() || layer.x.dims.back() != layer.inputs)
    throw std::runtime_error("weight: not as many inputs as x has");
  if (layer.scale.size() != layer.outputs) throw std::runtime_error("weight_scale: not one for each output");
  layer.rows = layer.inputs == 0 ? 0 : layer.x.size() / layer.inputs;
  return layer;
}

// Row by row: compute(row of x, float32 [K]; index of an output) -> its value without bias.
template <typename Prepare>
void run_layer(const Layer& layer, Prepare prepare) {
  const std::vector<float> x = read_floats(layer.x), bias = read_floats(layer.bias), scale = read_floats(layer.scale);
  visit_float(layer.to.type, [&](auto type) {
    using T = decltype(type);
    for (int64_t row = 0; row < layer.rows; ++row) {
      const auto compute = prepare(x.data() + row * layer.inputs);
      for (int64_t n = 0; n < layer.outputs; ++n) {
        const double value = compute(layer.weight.as<int8_t>() + n * layer.inputs) * scale[static_cast<size_t>(n)];
        layer.to.as<T>()[row * layer.outputs + n] =
            static_cast<T>(static_cast<float>(value + (bias.empty() ? 0 : bias[static_cast<size_t>(n)])));
      }
    }
  });
}

// LLM.int8() (arXiv 2208.07339): inputs above the threshold are multiplied as floats, the others as INT8.
void llm_int8_linear(const Context& context, const Tensor& x, const Tensor& weight, const OptionalTensor& bias,
                     const Tensor& scale, float threshold, Tensor* out) {
  Launch launch(context, "llm_int8_linear");
  const Layer layer = read_layer(launch, x, weight, bias, scale, out);
  launch.run([=] {
    const std::vector<float> all = read_floats(layer.x);
    std::vector<bool> outlier(static_cast<size_t>(layer.inputs));
    for (size_t i = 0; i < all.size(); ++i) {
      if (std::fabs(all[i]) > threshold) outlier[i % outlier.size()] = true;
    }
    std::vector<int8_t> integers(outlier.size());
    run_layer(layer, [&](const float* row) {
      float largest = 0;
      for (size_t k = 0; k < outlier.size(); ++k) largest = outlier[k] ? largest : std::max(largest, std::fabs(row[k]));
      const float step = largest == 0 ? 1 : largest / kLargest;
      for (size_t k = 0; k < outlier.size(); ++k) {
        integers[k] = outlier[k] ? 0 : static_cast<int8_t>(std::nearbyint(row[k] * (1 / step)));
      }
      return [&integers, &outlier, row, step](const int8_t* weights) {
        double exact = 0;
        for (size_t k = 0; k < outlier.size(); ++k) exact += outlier[k] ? static_cast<double>(row[k]) * weights[k] : 0;
        return dot(integers.data(), weights, static_cast<int64_t>(integers.size())) * static_cast<double>(step) + exact;
      };
    });
  });
}

void weight_only_linear(const Context& context, const Tensor& x, const Tensor& weight, const OptionalTensor& bias,
                        const Tensor& scale, const std::string& weight_dtype, int, int group_size, Tensor* out) {
  Launch launch(context, "weight_only_linear");
  if (weight_dtype != "int8" || group_size != -1)
    throw std::runtime_error("weight_only_linear: int8 with a scale a channel only");
  const Layer layer = read_layer(launch, x, weight, bias, scale, out);
  launch.run([=] {
    run_layer(layer, [&](const float* row) {
      return [row, &layer](const int8_t* weights) {
        double sum = 0;
        for (int64_t k = 0; k < layer.inputs; ++k) sum += static_cast<double>(row[k]) * weights[k];
        return sum;
      };
    });
  });
}

// [K, N] floats -> [N, K] integers and the scales of their rows; the same for both INT8 algorithms.
void weight_quantize(const Context& context, const Tensor& x, const std::string& algorithm, int, int group_size, Tensor* out,
                     Tensor* scale) {
  Launch launch(context, "weight_quantize");
  const bool known = algorithm == "weight_only_int8" || algorithm == "llm.int8";
  if (!known || group_size != -1)
    throw std::runtime_error("weight_quantize: " + algorithm + " with groups is not for this device");
  const Operand from = launch.input(x), to = launch.output(out, Type::INT8), scales = launch.output(scale);
  launch.run([=] {
    const std::vector<float> values = read_floats(from);
    const int64_t inputs = from.dims[0], outputs = from.dims[1];
    for (int64_t n = 0; n < outputs; ++n) {
      float largest = 0;
      for (int64_t k = 0; k < inputs; ++k) largest = std::max(largest, std::fabs(values[static_cast<size_t>(k * outputs + n)]));
      const float step = largest == 0 ? 1 : largest / kLargest;
      for (int64_t k = 0; k < inputs; ++k) {
        to.as<int8_t>()[n * inputs + k] =
            static_cast<int8_t>(std::nearbyint(values[static_cast<size_t>(k * outputs + n)] / step));
      }
      visit_float(scales.type, [&](auto type) { scales.as<decltype(type)>()[n] = static_cast<decltype(type)>(step); });
    }
  });
}

}  // namespace

void register_quantized(Registry& registry) {
  registry.add<&llm_int8_linear>("llm_int8_linear", {Type::FLOAT32, Type::FLOAT16, Type::BFLOAT16});
  registry.add<&weight_only_linear>("weight_only_linear", {Type::FLOAT32, Type::FLOAT16, Type::BFLOAT16});
  registry.add<&weight_quantize>("weight_quantize", {Type::FLOAT32, Type::FLOAT16, Type::BFLOAT16});
}

}  // namespace emulated
