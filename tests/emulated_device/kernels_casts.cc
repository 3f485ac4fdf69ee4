// From one type to another, and tensors full of one value.
#include <algorithm>

#include "kernel.h"

namespace emulated {

Type wide_type(Type type) {
  switch (type) {
    case Type::FLOAT32:
    case Type::FLOAT64:
    case Type::INT32:
    case Type::INT64: return type;
    case Type::FLOAT16:
    case Type::BFLOAT16: return Type::FLOAT32;
    default: return Type::INT32;
  }
}

Type widest_type(Type type) {
  return std::find(kFloats.begin(), kFloats.end(), type) != kFloats.end() ? Type::FLOAT64 : Type::INT64;
}

namespace {

// float16 and bfloat16 convert to and from float only
template <typename From, typename To>
To converted(From value) {
  if constexpr (std::is_class_v<From>) {
    return converted<float, To>(static_cast<float>(value));
  } else if constexpr (std::is_class_v<To>) {
    return static_cast<To>(static_cast<float>(value));
  } else {
    return static_cast<To>(value);
  }
}

}  // namespace

void convert(const Operand& from, const Operand& to) {
  const int64_t size = from.size();
  visit_any(from.type, [&](auto source) {
    visit_any(to.type, [&](auto target) {
      using From = decltype(source);
      using To = decltype(target);
      for (int64_t i = 0; i < size; ++i) to.as<To>()[i] = converted<From, To>(from.as<From>()[i]);
    });
  });
}

WideOperand::WideOperand(const Operand& like, Type type) : operand_(like) {
  operand_.type = type;
  if (type == like.type) return;
  storage_.resize(static_cast<size_t>(like.size()) * size_of(type) + 1);
  operand_.data = storage_.data();
}

WideOperand WideOperand::of(const Operand& source, Type type) {
  WideOperand result(source, type);
  if (result->type != source.type) convert(source, *result);
  return result;
}

WideOperand WideOperand::for_result(const Operand& target, Type type) { return WideOperand(target, type); }

void WideOperand::write_to(const Operand& target) const {
  if (operand_.type != target.type) convert(operand_, target);
}

namespace {

void cast(const Context& context, const Tensor& x, Type type, Tensor* out) {
  Launch launch(context, "cast");
  const Operand from = launch.input(x), to = launch.output(out, type);
  launch.run([=] { convert(from, to); });
}

void fill_with(Launch& launch, const Operand& to, const Scalar& value) {
  // a double does not hold every integer
  const bool integers = widest_type(to.type) == Type::INT64;
  const int64_t integer = integers ? value.to<int64_t>() : 0;
  const double number = integers ? 0 : value.to<double>();
  launch.run([=] {
    const int64_t size = to.size();
    visit_any(to.type, [&](auto type) {
      using T = decltype(type);
      std::fill_n(to.as<T>(), size, integers ? converted<int64_t, T>(integer) : converted<double, T>(number));
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
