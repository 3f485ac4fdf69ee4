// From one type to another, and tensors full of one value.
#include "kernel.h"

namespace emulated {
namespace {

template <typename From, typename To>
To converted(From value) {
  return static_cast<To>(static_cast<typename Wide<From>::type>(value));
}

void cast(const Context& context, const Tensor& x, Type type, Tensor* out) {
  Launch launch(context, "cast");
  const Operand from = launch.input(x), to = launch.output(out, type);
  launch.run([=] {
    const int64_t size = from.size();
    visit_any(from.type, [&](auto source) {
      visit_any(to.type, [&](auto target) {
        using From = decltype(source);
        using To = decltype(target);
        for (int64_t i = 0; i < size; ++i) to.as<To>()[i] = converted<From, To>(from.as<From>()[i]);
      });
    });
  });
}

void fill_with(Launch& launch, const Operand& to, const Scalar& value) {
  const bool whole = value.dtype() == Type::INT64 || value.dtype() == Type::INT32;
  const int64_t integer = whole ? value.to<int64_t>() : 0;
  const double number = whole ? 0 : value.to<double>();
  launch.run([=] {
    const int64_t size = to.size();
    visit_any(to.type, [&](auto type) {
      using T = decltype(type);
      // a double does not hold every integer
      const T constant = whole ? converted<int64_t, T>(integer) : converted<double, T>(number);
      for (int64_t i = 0; i < size; ++i) to.as<T>()[i] = constant;
    });
  });
}

void full(const Context& context, const IntArray& shape, const Scalar& value, Type type, Tensor* out) {
  Launch launch(context, "full");
  out->Resize(shape.GetData());
  fill_with(launch, launch.output(out, type), value);
}

void full_like(const Context& context, const Tensor&, const Scalar& value, Type type, Tensor* out) {
  Launch launch(context, "full_like");
  fill_with(launch, type == Type::UNDEFINED ? launch.output(out) : launch.output(out, type), value);
}

void fill(const Context& context, const Tensor&, const Scalar& value, Tensor* out) {
  Launch launch(context, "fill");
  fill_with(launch, launch.output(out), value);
}

}  // namespace

void register_casts(Registry& registry) {
  registry.add<&cast>("cast", kAny);
  registry.add<&full>("full", kAny);
  registry.add<&full_like>("full_like", kAny);
  registry.add<&fill>("fill", kAny);
}

}  // namespace emulated
