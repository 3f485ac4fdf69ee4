// Arithmetic of two inputs that are broadcast against each other, and `where`.
#include <cmath>

#include "combine.h"
#include "kernel.h"

namespace emulated {
namespace {

template <typename Function>
void launch_arithmetic(const Context& context, const char* name, const Tensor& x, const Tensor& y, Tensor* out,
                       Function function) {
  Launch launch(context, name);
  const Operand a = launch.input(x), b = launch.input(y), to = launch.output(out);
  launch.run([=] {
    const Type type = wide_type(a.type);
    const WideOperand left = WideOperand::of(a, type), right = WideOperand::of(b, type),
                      result = WideOperand::for_result(to, type);
    visit_wide(type, [&](auto of) { combine<decltype(of), decltype(of)>(*left, *right, *result, function); });
    result.write_to(to);
  });
}

#define BINARY(name, kind, expression)                                                   \
  void name(const Context& context, const Tensor& x, const Tensor& y, Tensor* out) {     \
    launch_##kind(context, #name, x, y, out, [](auto a, auto b) { return expression; }); \
  }

BINARY(add, arithmetic, a + b)
BINARY(subtract, arithmetic, a - b)
BINARY(multiply, arithmetic, a* b)
BINARY(maximum, arithmetic, a > b || a != a ? a : b)
BINARY(minimum, arithmetic, a < b || a != a ? a : b)
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
  registry.add<&where>("where", kAny);
}

}  // namespace emulated
