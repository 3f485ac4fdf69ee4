// Matrix products. Sums of floats are made in double, in an order that depends on the shape alone; INT8 sums in int32 are exact.
#include <algorithm>

#include "kernel.h"
#include "matmul.h"

namespace emulated {
namespace {

// Elements of a tensor of the type they are multiplied in, row by row, whatever way it lies.
template <typename T>
using Factor =
    std::conditional_t<std::is_same_v<T, int8_t>, int8_t, std::conditional_t<std::is_same_v<T, double>, double, float>>;

template <typename T>
void pack(const T* source, int64_t row_step, int64_t column_step, int64_t rows, int64_t columns, Factor<T>* target) {
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < columns; ++c)
      target[r * columns + c] = static_cast<Factor<T>>(source[r * row_step + c * column_step]);
  }
}

struct Shape {
  int64_t m, k, n;
  bool transpose_x, transpose_y;
  Dims batch, x_strides, y_strides;  // of whole matrices
};

// Vectors count as matrices of one row or one column, and are never transposed (Paddle's documentation of matmul).
Shape shape_of(const Operand& x, const Operand& y, bool transpose_x, bool transpose_y) {
  Dims a = x.dims, b = y.dims;
  if (a.size() == 1) a.insert(a.begin(), 1), transpose_x = false;
  if (b.size() == 1) b.push_back(1), transpose_y = false;
  if (a.size() < 2 || b.size() < 2) throw std::runtime_error("matmul: an operand has no dimensions");
  const size_t p = a.size(), q = b.size();
  Shape shape{transpose_x ? a[p - 1] : a[p - 2],
              transpose_x ? a[p - 2] : a[p - 1],
              transpose_y ? b[q - 2] : b[q - 1],
              transpose_x,
              transpose_y,
              {},
              {},
              {}};
  if (shape.k != (transpose_y ? b[q - 1] : b[q - 2])) throw std::runtime_error("matmul: inner lengths differ");
  const Dims a_batch(a.begin(), a.end() - 2), b_batch(b.begin(), b.end() - 2);
  shape.batch = broadcast(a_batch, b_batch);
  shape.x_strides = broadcast_strides(a_batch, shape.batch);
  shape.y_strides = broadcast_strides(b_batch, shape.batch);
  return shape;
}

template <typename T, typename Result>
void multiply(const T* x, const T* y, Result* out, const Shape& s, std::vector<Factor<T>>& left, std::vector<Factor<T>>& right) {
  using F = Factor<T>;
  const F* a = reinterpret_cast<const F*>(x);
  const F* b = reinterpret_cast<const F*>(y);
  if (!std::is_same_v<T, F> || s.transpose_x) {
    left.resize(static_cast<size_t>(s.m * s.k));
    s.transpose_x ? pack<T>(x, 1, s.m, s.m, s.k, left.data()) : pack<T>(x, s.k, 1, s.m, s.k, left.data());
    a = left.data();
  }
  // rows of the second factor's transpose lie as the sums run
  if (!std::is_same_v<T, F> || !s.transpose_y) {
    right.resize(static_cast<size_t>(s.n * s.k));
    s.transpose_y ? pack<T>(y, s.k, 1, s.n, s.k, right.data()) : pack<T>(y, 1, s.n, s.n, s.k, right.data());
    b = right.data();
  }
  for (int64_t row = 0; row < s.m; ++row) {
    for (int64_t column = 0; column < s.n; ++column) {
      out[row * s.n + column] = static_cast<Result>(dot(a + row * s.k, b + column * s.k, s.k));
    }
  }
}

template <typename T, typename Result>
void multiply_all(const Operand& x, const Operand& y, const Operand& to, const Shape& s) {
  std::vector<Factor<T>> left, right;
  int64_t next = 0;
  for_rows<2>(s.batch, {s.x_strides, s.y_strides}, [&](const auto& at, const auto& steps, int64_t n) {
    for (int64_t i = 0; i < n; ++i) {
      const T* a = x.as<T>() + (at[0] + i * steps[0]) * s.m * s.k;
      const T* b = y.as<T>() + (at[1] + i * steps[1]) * s.k * s.n;
      multiply<T, Result>(a, b, to.as<Result>() + next++ * s.m * s.n, s, left, right);
    }
  });
}

void matmul(const Context& context, const Tensor& x, const Tensor& y, bool transpose_x, bool transpose_y, Tensor* out) {
  Launch launch(context, "matmul");
  const Operand a = launch.input(x), b = launch.input(y);
  const Shape shape = shape_of(a, b, transpose_x, transpose_y);
  // where one operand has more dimensions than the other, Paddle infers its batch and leaves broadcasting to the kernel
  Dims dims = shape.batch;
  if (a.dims.size() > 1) dims.push_back(shape.m);
  if (b.dims.size() > 1) dims.push_back(shape.n);
  out->Resize(dims);
  const Operand to = launch.output(out, a.type == Type::INT8 ? Type::INT32 : a.type);
  launch.run([=] {
    if (to.size() == 0) return;
    if (a.type == Type::INT8) return multiply_all<int8_t, int32_t>(a, b, to, shape);
    visit_float(a.type, [&](auto type) { multiply_all<decltype(type), decltype(type)>(a, b, to, shape); });
  });
}

}  // namespace

void register_matmul(Registry& registry) {
  std::vector<Type> types = kFloats;
  types.push_back(Type::INT8);
  registry.add<&matmul>("matmul", types);
}

}  // namespace emulated
