// Comparisons, logic and bits, of two inputs that are broadcast against each other.
#include "combine.h"
#include "kernel.h"

namespace emulated {
namespace {

template <typename Function>
void launch_comparison(const Context& context, const char* name, const Tensor& x, const Tensor& y, Tensor* out,
                       Function function) {
  Launch launch(context, name);
  const Operand a = launch.input(x), b = launch.input(y), to = launch.output(out, Type::BOOL);
  launch.run([=] {
    const Type type = widest_type(a.type);
    const WideOperand left = WideOperand::of(a, type), right = WideOperand::of(b, type);
    visit_widest(type, [&](auto of) { combine<decltype(of), bool>(*left, *right, to, function); });
  });
}

template <typename Function>
void launch_bits(const Context& context, const char* name, const Tensor& x, const Tensor& y, Tensor* out, Function function) {
  Launch launch(context, name);
  const Operand a = launch.input(x), b = launch.input(y), to = launch.output(out);
  launch.run([=] {
    const WideOperand left = WideOperand::of(a, Type::INT64), right = WideOperand::of(b, Type::INT64);
    const WideOperand result = WideOperand::for_result(to, Type::INT64);
    combine<int64_t, int64_t>(*left, *right, *result, function);
    result.write_to(to);
  });
}

#define BINARY(name, kind, expression)                                                   \
  void name(const Context& context, const Tensor& x, const Tensor& y, Tensor* out) {     \
    launch_##kind(context, #name, x, y, out, [](auto a, auto b) { return expression; }); \
  }

BINARY(equal, comparison, a == b)
BINARY(not_equal, comparison, a != b)
BINARY(less_than, comparison, a < b)
BINARY(less_equal, comparison, a <= b)
BINARY(greater_than, comparison, a > b)
BINARY(greater_equal, comparison, a >= b)
BINARY(logical_and, comparison, a != decltype(a){} && b != decltype(b){})
BINARY(logical_or, comparison, a != decltype(a){} || b != decltype(b){})
BINARY(bitwise_and, bits, a& b)
BINARY(bitwise_or, bits, a | b)
#undef BINARY

// Arithmetic or logical, as the caller says; a shift by all bits or more leaves what an endless one would.
void bitwise_right_shift(const Context& context, const Tensor& x, const Tensor& y, bool arithmetic, Tensor* out) {
  const int bits = 8 * static_cast<int>(size_of(x.dtype()));
  const uint64_t mask = bits == 64 ? ~uint64_t{0} : (uint64_t{1} << bits) - 1;
  launch_bits(context, "bitwise_right_shift", x, y, out, [=](int64_t a, int64_t by) -> int64_t {
    const bool all = by < 0 || by >= bits;
    if (arithmetic) return all ? (a < 0 ? -1 : 0) : a >> by;
    return all ? 0 : static_cast<int64_t>((static_cast<uint64_t>(a) & mask) >> by);
  });
}

}  // namespace

void register_comparison(Registry& registry) {
  std::vector<Type> bits = kIntegers;
  bits.push_back(Type::BOOL);
  registry.add<&equal>("equal", kAny, Type::BOOL);
  registry.add<&not_equal>("not_equal", kAny, Type::BOOL);
  registry.add<&less_than>("less_than", kAny, Type::BOOL);
  registry.add<&less_equal>("less_equal", kAny, Type::BOOL);
  registry.add<&greater_than>("greater_than", kAny, Type::BOOL);
  registry.add<&greater_equal>("greater_equal", kAny, Type::BOOL);
  registry.add<&logical_and>("logical_and", kAny, Type::BOOL);
  registry.add<&logical_or>("logical_or", kAny, Type::BOOL);
  registry.add<&bitwise_and>("bitwise_and", bits);
  registry.add<&bitwise_or>("bitwise_or", bits);
  registry.add<&bitwise_right_shift>("bitwise_right_shift", kIntegers);
}

}  // namespace emulated
