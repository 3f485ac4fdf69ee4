// One input, one output, element by element.
#include <cmath>
#include <limits>

#include "kernel.h"

namespace emulated {
namespace {

template <typename T, typename Result, typename Function>
void map(const Operand& from, const Operand& to, Function function) {
  const T* __restrict source = from.as<T>();
  Result* __restrict target = to.as<Result>();
  const int64_t size = from.size();
  for (int64_t i = 0; i < size; ++i) target[i] = static_cast<Result>(function(static_cast<typename Wide<T>::type>(source[i])));
}

// Not restrict: an operation in place has one memory for both.
template <typename T, typename Function>
void map_to_same(const Operand& from, const Operand& to, Function function) {
  const T* source = from.as<T>();
  T* target = to.as<T>();
  const int64_t size = from.size();
  for (int64_t i = 0; i < size; ++i) target[i] = static_cast<T>(function(static_cast<typename Wide<T>::type>(source[i])));
}

template <typename Function>
void launch_floats(const Context& context, const char* name, const Tensor& x, Tensor* out, Function function) {
  Launch launch(context, name);
  const Operand from = launch.input(x), to = launch.output(out);
  launch.run([=] { visit_float(from.type, [&](auto type) { map_to_same<decltype(type)>(from, to, function); }); });
}

template <typename Function>
void launch_numbers(const Context& context, const char* name, const Tensor& x, Tensor* out, Function function) {
  Launch launch(context, name);
  const Operand from = launch.input(x), to = launch.output(out);
  launch.run([=] { visit_number(from.type, [&](auto type) { map_to_same<decltype(type)>(from, to, function); }); });
}

template <typename Function>
void launch_test(const Context& context, const char* name, const Tensor& x, Tensor* out, Function function) {
  Launch launch(context, name);
  const Operand from = launch.input(x), to = launch.output(out, Type::BOOL);
  launch.run([=] {
    visit_any(from.type, [&](auto type) { map<decltype(type), bool>(from, to, function); });
  });
}

void abs(const Context& context, const Tensor& x, Tensor* out) {
  launch_numbers(context, "abs", x, out, [](auto v) { return v < 0 ? -v : v == 0 ? decltype(v){} : v; });
}

void exp(const Context& context, const Tensor& x, Tensor* out) {
  launch_floats(context, "exp", x, out, [](auto v) { return std::exp(v); });
}

void sqrt(const Context& context, const Tensor& x, Tensor* out) {
  launch_floats(context, "sqrt", x, out, [](auto v) { return std::sqrt(v); });
}

void rsqrt(const Context& context, const Tensor& x, Tensor* out) {
  launch_floats(context, "rsqrt", x, out, [](auto v) { return decltype(v)(1) / std::sqrt(v); });
}

void silu(const Context& context, const Tensor& x, Tensor* out) {
  launch_floats(context, "silu", x, out, [](auto v) { return v / (decltype(v)(1) + std::exp(-v)); });
}

// Ties go to the even neighbour.
void round(const Context& context, const Tensor& x, int decimals, Tensor* out) {
  const double power = std::pow(10.0, decimals);
  launch_floats(context, "round", x, out, [=](auto v) {
    using T = decltype(v);
    return decimals == 0 ? std::nearbyint(v) : static_cast<T>(std::nearbyint(static_cast<double>(v) * power) / power);
  });
}

void scale(const Context& context, const Tensor& x, const Scalar& factor, const Scalar& bias, bool bias_after, Tensor* out) {
  const double by = factor.to<double>(), plus = bias.to<double>();
  launch_numbers(context, "scale", x, out, [=](auto v) {
    using T = decltype(v);
    return bias_after ? static_cast<T>(v * static_cast<T>(by)) + static_cast<T>(plus) : (v + static_cast<T>(plus)) * static_cast<T>(by);
  });
}

// NaN stays NaN.
void clip(const Context& context, const Tensor& x, const Scalar& low, const Scalar& high, Tensor* out) {
  const double least = low.to<double>(), most = high.to<double>();
  launch_numbers(context, "clip", x, out, [=](auto v) {
    using T = decltype(v);
    return v < static_cast<T>(least) ? static_cast<T>(least) : v > static_cast<T>(most) ? static_cast<T>(most) : v;
  });
}

void isfinite(const Context& context, const Tensor& x, Tensor* out) {
  launch_test(context, "isfinite", x, out, [](auto v) { return std::isfinite(static_cast<double>(v)); });
}

void isnan(const Context& context, const Tensor& x, Tensor* out) {
  launch_test(context, "isnan", x, out, [](auto v) { return std::isnan(static_cast<double>(v)); });
}

void isinf(const Context& context, const Tensor& x, Tensor* out) {
  launch_test(context, "isinf", x, out, [](auto v) { return std::isinf(static_cast<double>(v)); });
}

void logical_not(const Context& context, const Tensor& x, Tensor* out) {
  launch_test(context, "logical_not", x, out, [](auto v) { return v == decltype(v){}; });
}

}  // namespace

void register_elementwise(Registry& registry) {
  registry.add<&abs>("abs", kNumbers);
  registry.add<&exp>("exp", kFloats);
  registry.add<&sqrt>("sqrt", kFloats);
  registry.add<&rsqrt>("rsqrt", kFloats);
  registry.add<&silu>("silu", kFloats);
  registry.add<&round>("round", kFloats);
  registry.add<&scale>("scale", kNumbers);
  registry.add<&clip>("clip", kNumbers);
  registry.add<&isfinite>("isfinite", kNumbers, Type::BOOL);
  registry.add<&isnan>("isnan", kNumbers, Type::BOOL);
  registry.add<&isinf>("isinf", kNumbers, Type::BOOL);
  registry.add<&logical_not>("logical_not", kAny, Type::BOOL);
}

}  // namespace emulated
