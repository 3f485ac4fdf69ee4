// One input, one output, element by element.
#include <cmath>
#include <limits>

#include "kernel.h"

namespace emulated {
namespace {

// Source and target may be one memory, when the operation is in place.
template <typename Visit, typename Function>
void run_map(Launch& launch, const Operand& from, const Operand& to, Visit visit, Function function) {
  launch.run([=] {
    const Type type = wide_type(from.type);
    const WideOperand source = WideOperand::of(from, type), target = WideOperand::for_result(to, type);
    visit(type, [&](auto of) {
      using T = decltype(of);
      const int64_t size = from.size();
      for (int64_t i = 0; i < size; ++i) target->as<T>()[i] = function(source->as<T>()[i]);
    });
    target.write_to(to);
  });
}

template <typename Function>
void launch_floats(const Context& context, const char* name, const Tensor& x, Tensor* out, Function function) {
  Launch launch(context, name);
  const Operand from = launch.input(x), to = launch.output(out);
  const auto visit = [](Type type, auto body) { type == Type::FLOAT64 ? body(double{}) : body(float{}); };
  run_map(launch, from, to, visit, function);
}

template <typename Function>
void launch_numbers(const Context& context, const char* name, const Tensor& x, Tensor* out, Function function) {
  Launch launch(context, name);
  const Operand from = launch.input(x), to = launch.output(out);
  run_map(launch, from, to, [](Type type, auto body) { visit_wide(type, body); }, function);
}

// Every type fits into a double well enough to tell what is asked here.
template <typename Function>
void launch_test(const Context& context, const char* name, const Tensor& x, Tensor* out, Function function) {
  Launch launch(context, name);
  const Operand from = launch.input(x), to = launch.output(out, Type::BOOL);
  launch.run([=] {
    const WideOperand source = WideOperand::of(from, Type::FLOAT64);
    const int64_t size = from.size();
    for (int64_t i = 0; i < size; ++i) to.as<bool>()[i] = function(source->as<double>()[i]);
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
    return bias_after ? static_cast<T>(v * static_cast<T>(by)) + static_cast<T>(plus)
                      : (v + static_cast<T>(plus)) * static_cast<T>(by);
  });
}

// What `tensor / number` calls.
void div_scale(const Context& context, const Tensor& x, const Scalar& divisor, Tensor* out) {
  const double by = divisor.to<double>();
  launch_floats(context, "div_scale", x, out, [=](auto v) { return v / static_cast<decltype(v)>(by); });
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
  launch_test(context, "isfinite", x, out, [](double v) { return std::isfinite(v); });
}

void isnan(const Context& context, const Tensor& x, Tensor* out) {
  launch_test(context, "isnan", x, out, [](double v) { return std::isnan(v); });
}

void isinf(const Context& context, const Tensor& x, Tensor* out) {
  launch_test(context, "isinf", x, out, [](double v) { return std::isinf(v); });
}

void logical_not(const Context& context, const Tensor& x, Tensor* out) {
  launch_test(context, "logical_not", x, out, [](double v) { return v == 0; });
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
  registry.add<&div_scale>("div_scale", kFloats);
  registry.add<&clip>("clip", kNumbers);
  registry.add<&isfinite>("isfinite", kNumbers, Type::BOOL);
  registry.add<&isnan>("isnan", kNumbers, Type::BOOL);
  registry.add<&isinf>("isinf", kNumbers, Type::BOOL);
  registry.add<&logical_not>("logical_not", kAny, Type::BOOL);
}

}  // namespace emulated
