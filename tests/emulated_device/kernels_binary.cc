// Two inputs that are broadcast against each other, and `where`.
#include <cmath>

#include "kernel.h"

namespace emulated {
namespace {

// The common strides get loops of their own, which the compiler can vectorise.
template <typename T, typename Result, typename Function>
void combine(const Operand& a, const Operand& b, const Operand& to, Function function) {
  using W = typename Wide<T>::type;
  const auto apply = [&](T x, T y) { return static_cast<Result>(function(static_cast<W>(x), static_cast<W>(y))); };
  const std::array<Dims, 3> strides = {broadcast_strides(a.dims, to.dims), broadcast_strides(b.dims, to.dims), to.strides};
  for_rows<3>(to.dims, strides, [&](const auto& offsets, const auto& steps, int64_t n) {
    const T* x = a.as<T>() + offsets[0];
    const T* y = b.as<T>() + offsets[1];
    Result* z = to.as<Result>() + offsets[2];
    if (steps[0] == 1 && steps[1] == 1) {
      for (int64_t i = 0; i < n; ++i) z[i] = apply(x[i], y[i]);
    } else if (steps[0] == 1 && steps[1] == 0) {
      const T second = *y;
      for (int64_t i = 0; i < n; ++i) z[i] = apply(x[i], second);
    } else if (steps[0] == 0 && steps[1] == 1) {
      const T first = *x;
      for (int64_t i = 0; i < n; ++i) z[i] = apply(first, y[i]);
    } else {
      for (int64_t i = 0; i < n; ++i) z[i * steps[2]] = apply(x[i * steps[0]], y[i * steps[1]]);
    }
  });
}

template <typename Function>
void launch_arithmetic(const Context& context, const char* name, const Tensor& x, const Tensor& y, Tensor* out, Function function) {
  Launch launch(context, name);
  const Operand a = launch.input(x), b = launch.input(y), to = launch.output(out);
  launch.run([=] {
    visit_number(a.type, [&](auto type) { combine<decltype(type), decltype(type)>(a, b, to, function); });
  });
}

template <typename Function>
void launch_comparison(const Context& context, const char* name, const Tensor& x, const Tensor& y, Tensor* out, Function function) {
  Launch launch(context, name);
  const Operand a = launch.input(x), b = launch.input(y), to = launch.output(out, Type::BOOL);
  launch.run([=] {
    visit_any(a.type, [&](auto type) { combine<decltype(type), bool>(a, b, to, function); });
  });
}

// On bits: the sign matters to shifts only.
template <typename Function>
void launch_bits(const Context& context, const char* name, const Tensor& x, const Tensor& y, Tensor* out, Function function) {
  Launch launch(context, name);
  const Operand a = launch.input(x), b = launch.input(y), to = launch.output(out);
  launch.run([=] {
    switch (a.type) {
      case Type::BOOL: return combine<bool, bool>(a, b, to, function);
      case Type::INT8: return combine<int8_t, int8_t>(a, b, to, function);
      case Type::UINT8: return combine<uint8_t, uint8_t>(a, b, to, function);
      case Type::INT16: return combine<int16_t, int16_t>(a, b, to, function);
      case Type::INT32: return combine<int32_t, int32_t>(a, b, to, function);
      default: return combine<int64_t, int64_t>(a, b, to, function);
    }
  });
}

#define BINARY(name, kind, expression)                                                                     \
  void name(const Context& context, const Tensor& x, const Tensor& y, Tensor* out) {                       \
    launch_##kind(context, #name, x, y, out, [](auto a, auto b) { return expression; });                   \
  }

BINARY(add, arithmetic, a + b)
BINARY(subtract, arithmetic, a - b)
BINARY(multiply, arithmetic, a * b)
BINARY(maximum, arithmetic, a > b || a != a ? a : b)
BINARY(minimum, arithmetic, a < b || a != a ? a : b)
BINARY(equal, comparison, a == b)
BINARY(not_equal, comparison, a != b)
BINARY(less_than, comparison, a < b)
BINARY(less_equal, comparison, a <= b)
BINARY(greater_than, comparison, a > b)
BINARY(greater_equal, comparison, a >= b)
BINARY(logical_and, comparison, a != decltype(a){} && b != decltype(b){})
BINARY(logical_or, comparison, a != decltype(a){} || b != decltype(b){})
BINARY(bitwise_and, bits, a & b)
BINARY(bitwise_or, bits, a | b)
#undef BINARY

template <typename T>
T quotient(T a, T b) {
  if constexpr (std::is_integral_v<T>) {
    if (b == 0) throw std::runtime_error("integer division by zero");
  }
  return a / b;
}

void divide(const Context& context, const Tensor& x, const Tensor& y, Tensor* out) {
  launch_arithmetic(context, "divide", x, y, out, [](auto a, auto b) { return quotient(a, b); });
}

// Arithmetic or logical, as the caller says; a shift by all bits or more leaves what an endless one would.
template <typename T>
T shifted_right(T a, T by, bool arithmetic) {
  if constexpr (std::is_same_v<T, bool>) {
    return a && !by;
  } else {
    using Bits = std::make_unsigned_t<T>;
    const bool all = by < 0 || static_cast<size_t>(by) >= 8 * sizeof(T);
    if (arithmetic) return all ? (a < 0 ? T(-1) : T(0)) : static_cast<T>(a >> by);
    return all ? T(0) : static_cast<T>(static_cast<Bits>(a) >> by);
  }
}

void bitwise_right_shift(const Context& context, const Tensor& x, const Tensor& y, bool arithmetic, Tensor* out) {
  launch_bits(context, "bitwise_right_shift", x, y, out, [=](auto a, auto b) { return shifted_right(a, b, arithmetic); });
}

void where(const Context& context, const Tensor& condition, const Tensor& x, const Tensor& y, Tensor* out) {
  Launch launch(context, "where");
  const Operand test = launch.input(condition), a = launch.input(x), b = launch.input(y), to = launch.output(out);
  launch.run([=] {
    const std::array<Dims, 4> strides = {broadcast_strides(test.dims, to.dims), broadcast_strides(a.dims, to.dims),
                                         broadcast_strides(b.dims, to.dims), to.strides};
    visit_size(a.type, [&](auto type) {
      using T = decltype(type);
      for_rows<4>(to.dims, strides, [&](const auto& at, const auto& steps, int64_t n) {
        for (int64_t i = 0; i < n; ++i) {
          const bool first = test.as<bool>()[at[0] + i * steps[0]];
          to.as<T>()[at[3] + i * steps[3]] = first ? a.as<T>()[at[1] + i * steps[1]] : b.as<T>()[at[2] + i * steps[2]];
        }
      });
    });
  });
}

}  // namespace

void register_binary(Registry& registry) {
  registry.add<&add>("add", kNumbers);
  registry.add<&subtract>("subtract", kNumbers);
  registry.add<&multiply>("multiply", kNumbers);
  registry.add<&divide>("divide", kNumbers);
  registry.add<&maximum>("maximum", kNumbers);
  registry.add<&minimum>("minimum", kNumbers);
  registry.add<&equal>("equal", kAny, Type::BOOL);
  registry.add<&not_equal>("not_equal", kAny, Type::BOOL);
  registry.add<&less_than>("less_than", kAny, Type::BOOL);
  registry.add<&less_equal>("less_equal", kAny, Type::BOOL);
  registry.add<&greater_than>("greater_than", kAny, Type::BOOL);
  registry.add<&greater_equal>("greater_equal", kAny, Type::BOOL);
  registry.add<&logical_and>("logical_and", kAny, Type::BOOL);
  registry.add<&logical_or>("logical_or", kAny, Type::BOOL);
  std::vector<Type> bits = kIntegers;
  bits.push_back(Type::BOOL);
  registry.add<&bitwise_and>("bitwise_and", bits);
  registry.add<&bitwise_or>("bitwise_or", bits);
  registry.add<&bitwise_right_shift>("bitwise_right_shift", kIntegers);
  registry.add<&where>("where", kAny);
}

}  // namespace emulated
