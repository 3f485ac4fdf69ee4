// Sums, largest elements, softmax: what runs along axes. Sums of floats are made in double.
#include <algorithm>
#include <cmath>
#include <limits>

#include "kernel.h"

namespace emulated {
namespace {

// A tensor seen as what is kept and what is reduced.
struct Reduction {
  Dims kept, kept_strides, reduced, reduced_strides;
};

Reduction along(const Operand& from, const std::vector<int64_t>& axes) {
  std::vector<bool> reduces(from.dims.size(), axes.empty());
  for (const int64_t axis : axes) reduces[axis_of(axis, from.dims.size())] = true;
  Reduction result;
  for (size_t i = 0; i < from.dims.size(); ++i) {
    (reduces[i] ? result.reduced : result.kept).push_back(from.dims[i]);
    (reduces[i] ? result.reduced_strides : result.kept_strides).push_back(from.strides[i]);
  }
  return result;
}

// Calls finish(i, fold of all elements that belong to result i, from `start`; number of them).
template <typename T, typename Sum, typename Fold, typename Finish>
void reduce(const Operand& from, const Reduction& shape, Sum start, Fold fold, Finish finish) {
  const int64_t each = count(shape.reduced);
  int64_t next = 0;
  for_rows<1>(shape.kept, {shape.kept_strides}, [&](const auto& kept, const auto& kept_steps, int64_t rows) {
    for (int64_t row = 0; row < rows; ++row) {
      const T* first = from.as<T>() + kept[0] + row * kept_steps[0];
      Sum sum = start;
      for_rows<1>(shape.reduced, {shape.reduced_strides}, [&](const auto& at, const auto& steps, int64_t n) {
        for (int64_t i = 0; i < n; ++i) sum = fold(sum, first[at[0] + i * steps[0]]);
      });
      finish(next++, sum, each);
    }
  });
}

void sum_into(const Operand& from, const Operand& to, const Reduction& shape, bool divides) {
  const Type type = widest_type(from.type);
  const WideOperand source = WideOperand::of(from, type), result = WideOperand::for_result(to, type);
  visit_widest(type, [&](auto of) {
    using T = decltype(of);
    reduce<T>(
        *source, shape, T{0}, [](T sum, T value) { return sum + value; },
        [&](int64_t at, T sum, int64_t n) { result->as<T>()[at] = divides ? sum / static_cast<T>(n) : sum; });
  });
  result.write_to(to);
}

// The type of the result is inferred: that of the argument, int64 for small integers.
void sum(const Context& context, const Tensor& x, const IntArray& axes, Type, bool, Tensor* out) {
  Launch launch(context, "sum");
  const Operand from = launch.input(x), to = launch.output(out);
  const Reduction shape = along(from, axes.GetData());
  launch.run([=] { sum_into(from, to, shape, false); });
}

void mean(const Context& context, const Tensor& x, const IntArray& axes, bool, Tensor* out) {
  Launch launch(context, "mean");
  const Operand from = launch.input(x), to = launch.output(out);
  const Reduction shape = along(from, axes.GetData());
  launch.run([=] { sum_into(from, to, shape, true); });
}

template <typename Better>
void extreme(const Context& context, const char* name, const Tensor& x, const IntArray& axes, Tensor* out, Better better) {
  Launch launch(context, name);
  const Operand from = launch.input(x), to = launch.output(out);
  const Reduction shape = along(from, axes.GetData());
  if (from.size() == 0) throw std::runtime_error(std::string(name) + ": of no elements");
  launch.run([=] {
    const Type type = widest_type(from.type);
    const WideOperand source = WideOperand::of(from, type), result = WideOperand::for_result(to, type);
    visit_widest(type, [&](auto of) {
      using T = decltype(of);
      struct Best {
        bool found;
        T value;
      };
      // once NaN, always NaN
      const auto fold = [&](Best best, T value) {
        const bool takes = !best.found || value != value || (best.value == best.value && better(value, best.value));
        return Best{true, takes ? value : best.value};
      };
      reduce<T>(*source, shape, Best{false, T{}}, fold,
                [&](int64_t at, Best best, int64_t) { result->as<T>()[at] = best.value; });
    });
    result.write_to(to);
  });
}

void max(const Context& context, const Tensor& x, const IntArray& axes, bool, Tensor* out) {
  extreme(context, "max", x, axes, out, [](auto a, auto b) { return a > b; });
}

void min(const Context& context, const Tensor& x, const IntArray& axes, bool, Tensor* out) {
  extreme(context, "min", x, axes, out, [](auto a, auto b) { return a < b; });
}

template <typename Fold>
void truth(const Context& context, const char* name, const Tensor& x, const std::vector<int64_t>& axes, Tensor* out, bool start,
           Fold fold) {
  Launch launch(context, name);
  const Operand from = launch.input(x), to = launch.output(out, Type::BOOL);
  const Reduction shape = along(from, axes);
  launch.run([=] {
    const WideOperand source = WideOperand::of(from, Type::FLOAT64);
    reduce<double>(
        *source, shape, start, [&](bool so_far, double value) { return fold(so_far, value != 0); },
        [&](int64_t at, bool value, int64_t) { to.as<bool>()[at] = value; });
  });
}

void all(const Context& context, const Tensor& x, const std::vector<int64_t>& axes, bool, Tensor* out) {
  truth(context, "all", x, axes, out, true, [](bool a, bool b) { return a && b; });
}

void any(const Context& context, const Tensor& x, const std::vector<int64_t>& axes, bool, Tensor* out) {
  truth(context, "any", x, axes, out, false, [](bool a, bool b) { return a || b; });
}

// The first of equal ones; a NaN counts as larger than all.
void argmax(const Context& context, const Tensor& x, const Scalar& axis, bool, bool flatten, Type type, Tensor* out) {
  Launch launch(context, "argmax");
  const Operand from = launch.input(x);
  const Operand to = launch.output(out, type == Type::INT32 ? Type::INT32 : Type::INT64);
  const Reduction shape = along(from, flatten ? std::vector<int64_t>{} : std::vector<int64_t>{axis.to<int64_t>()});
  if (from.size() == 0) throw std::runtime_error("argmax: of no elements");
  launch.run([=] {
    const Type wide = widest_type(from.type);
    const WideOperand source = WideOperand::of(from, wide), result = WideOperand::for_result(to, Type::INT64);
    visit_widest(wide, [&](auto of) {
      using T = decltype(of);
      struct Best {
        int64_t at, next;
        T value;
      };
      const auto fold = [](Best best, T value) {
        const bool takes = best.at < 0 || (best.value == best.value && (value != value || value > best.value));
        return takes ? Best{best.next, best.next + 1, value} : Best{best.at, best.next + 1, best.value};
      };
      reduce<T>(*source, shape, Best{-1, 0, T{}}, fold,
                [&](int64_t at, Best best, int64_t) { result->as<int64_t>()[at] = best.at; });
    });
    result.write_to(to);
  });
}

template <typename T>
void softmax_row(const T* source, T* target, int64_t n, int64_t step) {
  T largest = -std::numeric_limits<T>::infinity();
  for (int64_t i = 0; i < n; ++i) largest = std::max(largest, source[i * step]);
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += std::exp(source[i * step] - largest);
  for (int64_t i = 0; i < n; ++i) target[i * step] = std::exp(source[i * step] - largest) / static_cast<T>(sum);
}

void softmax(const Context& context, const Tensor& x, int axis_value, Tensor* out) {
  Launch launch(context, "softmax");
  const Operand from = launch.input(x), to = launch.output(out);
  launch.run([=] {
    if (from.size() == 0) return;
    const size_t axis = from.dims.empty() ? 0 : axis_of(axis_value, from.dims.size());
    const int64_t n = from.dims.empty() ? 1 : from.dims[axis];
    const int64_t step = from.dims.empty() ? 1 : from.strides[axis];
    const Type type = wide_type(from.type);
    const WideOperand source = WideOperand::of(from, type), result = WideOperand::for_result(to, type);
    const auto rows = [&](auto of) {
      using T = decltype(of);
      for (int64_t row = 0; row < from.size() / n; ++row) {
        const int64_t first = row / step * step * n + row % step;
        softmax_row(source->as<T>() + first, result->as<T>() + first, n, step);
      }
    };
    type == Type::FLOAT64 ? rows(double{}) : rows(float{});
    result.write_to(to);
  });
}

}  // namespace

void register_reductions(Registry& registry) {
  registry.add<&sum>("sum", kAny);
  registry.add<&mean>("mean", kFloats);
  registry.add<&max>("max", kAny);
  registry.add<&min>("min", kAny);
  registry.add<&all>("all", kAny, Type::BOOL);
  registry.add<&any>("any", kAny, Type::BOOL);
  registry.add<&argmax>("argmax", kNumbers, Type::INT64);
  registry.add<&softmax>("softmax", kFloats);
}

}  // namespace emulated
