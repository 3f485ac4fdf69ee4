// What moves elements without looking at them: copies of strided views, transpose, slice, concat, split, pad.
#include <algorithm>

#include "kernel.h"

namespace emulated {
namespace {

void copy(const Operand& from, const Operand& to) {
  visit_size(from.type, [&](auto type) {
    using T = decltype(type);
    for_rows<2>(to.dims, {from.strides, to.strides}, [&](const auto& at, const auto& steps, int64_t n) {
      const T* source = from.as<T>() + at[0];
      T* target = to.as<T>() + at[1];
      if (steps[0] == 1 && steps[1] == 1) {
        std::copy(source, source + n, target);
      } else {
        for (int64_t i = 0; i < n; ++i) target[i * steps[1]] = source[i * steps[0]];
      }
    });
  });
}

// A part of a tensor, seen as a tensor.
Operand part(Operand whole, size_t axis, int64_t start, int64_t stop) {
  whole.dims[axis] = stop - start;
  if (whole.data != nullptr) whole.data += start * whole.strides[axis] * static_cast<int64_t>(size_of(whole.type));
  return whole;
}

void contiguous(const Context& context, const Tensor& input, Tensor* out) {
  Launch launch(context, "contiguous");
  const Operand from = launch.strided_input(input);
  out->Resize(from.dims);
  const Operand to = launch.output(out, from.type);
  launch.run([=] { copy(from, to); });
}

// Into a view: shape, strides and offset of `out` are given.
void strided_copy(const Context& context, const Tensor& input, const std::vector<int64_t>& dims,
                  const std::vector<int64_t>& strides, int64_t offset, Tensor* out) {
  Launch launch(context, "strided_copy");
  Operand from = launch.strided_input(input);
  out->Resize(dims);
  out->set_strides(strides);
  out->set_offset(offset);
  const Operand to = launch.view(out);
  if (count(from.dims) != count(to.dims)) throw std::runtime_error("strided_copy: shapes of different sizes");
  if (from.dims != to.dims) {
    if (from.strides != strides_of(from.dims)) throw std::runtime_error("strided_copy: a view of another shape");
    from.strides = strides_of(to.dims);
  }
  launch.run([=] { copy(from, to); });
}

void assign(const Context& context, const Tensor& x, Tensor* out) {
  Launch launch(context, "assign");
  const Operand from = launch.input(x), to = launch.output(out);
  launch.run([=] { copy(from, to); });
}

void transpose(const Context& context, const Tensor& x, const std::vector<int>& axes, Tensor* out) {
  Launch launch(context, "transpose");
  const Operand from = launch.input(x), to = launch.output(out);
  Operand turned = from;
  for (size_t i = 0; i < axes.size(); ++i) turned.strides[i] = from.strides[axis_of(axes[i], axes.size())];
  launch.run([=] { copy(turned, to); });
}

// Elements stay in their order: only the shape, which Paddle has inferred, is another.
void unsqueeze(const Context& context, const Tensor& x, const IntArray&, Tensor* out) {
  Launch launch(context, "unsqueeze");
  Operand from = launch.input(x);
  const Operand to = launch.output(out);
  from.strides = to.strides;
  launch.run([=] { copy(from, to); });
}

// Axes that are dropped have length 1, so the elements are those of the box.
void slice(const Context& context, const Tensor& input, const std::vector<int64_t>& axes, const IntArray& starts,
           const IntArray& ends, const std::vector<int64_t>&, const std::vector<int64_t>&, Tensor* out) {
  Launch launch(context, "slice");
  Operand box = launch.input(input);
  const std::vector<int64_t> from = starts.GetData(), until = ends.GetData();
  for (size_t i = 0; i < axes.size(); ++i) {
    const size_t axis = axis_of(axes[i], box.dims.size());
    const int64_t length = box.dims[axis];
    const auto clamp = [length](int64_t at) { return std::clamp<int64_t>(at < 0 ? at + length : at, 0, length); };
    box = part(box, axis, clamp(from[i]), std::max(clamp(from[i]), clamp(until[i])));
  }
  Operand to = launch.output(out);
  to.dims = box.dims;
  to.strides = strides_of(box.dims);
  launch.run([=] { copy(box, to); });
}

void concat(const Context& context, const Tensors& inputs, const Scalar& axis_value, Tensor* out) {
  Launch launch(context, "concat");
  std::vector<Operand> from;
  for (const Tensor* input : inputs) from.push_back(launch.input(*input));
  const Operand to = launch.output(out);
  const size_t axis = axis_of(axis_value.to<int64_t>(), to.dims.size());
  launch.run([=] {
    int64_t start = 0;
    for (const Operand& piece : from) {
      if (piece.dims.size() != to.dims.size()) continue;  // Paddle lets an empty tensor of shape [0] stand among the others
      copy(piece, part(to, axis, start, start + piece.dims[axis]));
      start += piece.dims[axis];
    }
  });
}

void stack(const Context& context, const Tensors& inputs, int axis_value, Tensor* out) {
  Launch launch(context, "stack");
  std::vector<Operand> from;
  for (const Tensor* input : inputs) from.push_back(launch.input(*input));
  const Operand to = launch.output(out);
  const size_t axis = axis_of(axis_value, to.dims.size());
  launch.run([=] {
    for (size_t i = 0; i < from.size(); ++i) {
      Operand piece = from[i];
      piece.strides.insert(piece.strides.begin() + static_cast<int64_t>(axis), 0);
      copy(piece, part(to, axis, static_cast<int64_t>(i), static_cast<int64_t>(i) + 1));
    }
  });
}

void split_into(Launch& launch, const Tensor& x, const Scalar& axis_value, const std::vector<Tensor*>& outs) {
  const Operand from = launch.input(x);
  const size_t axis = axis_of(axis_value.to<int64_t>(), from.dims.size());
  std::vector<Operand> to;
  for (Tensor* out : outs) to.push_back(launch.output(out));
  launch.run([=] {
    int64_t start = 0;
    for (const Operand& piece : to) {
      copy(part(from, axis, start, start + piece.dims[axis]), piece);
      start += piece.dims[axis];
    }
  });
}

// Paddle has inferred the lengths from the sections already.
void split(const Context& context, const Tensor& x, const IntArray&, const Scalar& axis, std::vector<Tensor*> outs) {
  Launch launch(context, "split");
  split_into(launch, x, axis, outs);
}

void split_with_num(const Context& context, const Tensor& x, int, const Scalar& axis, std::vector<Tensor*> outs) {
  Launch launch(context, "split_with_num");
  split_into(launch, x, axis, outs);
}

void expand(const Context& context, const Tensor& x, const IntArray&, Tensor* out) {
  Launch launch(context, "expand");
  Operand from = launch.input(x);
  const Operand to = launch.output(out);
  from.strides = broadcast_strides(from.dims, to.dims);
  launch.run([=] { copy(from, to); });
}

// `paddings`: before and after, axis by axis.
void pad(const Context& context, const Tensor& x, const std::vector<int>& paddings, const Scalar& value, Tensor* out) {
  Launch launch(context, "pad");
  const Operand from = launch.input(x), to = launch.output(out);
  const double constant = value.to<double>();
  launch.run([=] {
    const int64_t size = to.size();
    visit_any(to.type, [&](auto type) { std::fill_n(to.as<decltype(type)>(), size, static_cast<decltype(type)>(constant)); });
    Operand middle = to;
    for (size_t axis = 0; axis < from.dims.size(); ++axis) {
      const int64_t before = paddings[2 * axis];
      if (before < 0 || paddings[2 * axis + 1] < 0) throw std::runtime_error("negative padding");
      middle = part(middle, axis, before, before + from.dims[axis]);
    }
    copy(from, middle);
  });
}

}  // namespace

void register_layout(Registry& registry) {
  registry.add<&contiguous>("contiguous", kAny);
  registry.add<&strided_copy>("strided_copy", kAny);
  registry.add<&assign>("assign", kAny);
  // with FLAGS_use_stride_kernel=0 only, or in exported programs; else Paddle makes views of these by itself
  registry.add<&transpose>("transpose", kAny);
  registry.add<&unsqueeze>("unsqueeze", kAny);
  registry.add<&slice>("slice", kAny);
  registry.add<&split>("split", kAny);
  registry.add<&split_with_num>("split_with_num", kAny);
  registry.add<&concat>("concat", kAny);
  registry.add<&stack>("stack", kAny);
  registry.add<&expand>("expand", kAny);
  registry.add<&pad>("pad", kAny);
}

}  // namespace emulated
