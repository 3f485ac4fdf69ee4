// Rows and elements by index. An index that is out of range fails when the kernel runs, as on a real device.
#include <algorithm>
#include <cstring>
#include <memory>

#include "kernel.h"

namespace emulated {
namespace {

// int32 or int64, as the device finds them when it runs; checked against the length of the axis.
std::vector<int64_t> read_indices(const Operand& index, int64_t length) {
  std::vector<int64_t> values(static_cast<size_t>(index.size()));
  for (size_t i = 0; i < values.size(); ++i) {
    int64_t value = index.type == Type::INT32 ? index.as<int32_t>()[i] : index.as<int64_t>()[i];
    if (value < 0) value += length;
    if (value < 0 || value >= length)
      throw std::runtime_error("index " + std::to_string(value) + " of " + std::to_string(length));
    values[i] = value;
  }
  return values;
}

void require_integers(const Operand& index) {
  if (index.type != Type::INT32 && index.type != Type::INT64) throw std::runtime_error("indices are neither int32 nor int64");
}

void take(Launch& launch, const Tensor& x, const Tensor& indices, int64_t axis_value, Tensor* out) {
  const Operand from = launch.input(x), index = launch.input(indices), to = launch.output(out);
  require_integers(index);
  const size_t axis = axis_of(axis_value, from.dims.size());
  launch.run([=] {
    const std::vector<int64_t> rows = read_indices(index, from.dims[axis]);
    const size_t bytes = static_cast<size_t>(count(from.dims, axis + 1, from.dims.size())) * size_of(from.type);
    if (bytes == 0) return;
    const int64_t outer = count(from.dims, 0, axis);
    char* target = to.data;
    for (int64_t block = 0; block < outer; ++block) {
      for (const int64_t row : rows) {
        std::memcpy(target, from.data + static_cast<size_t>(block * from.dims[axis] + row) * bytes, bytes);
        target += bytes;
      }
    }
  });
}

void gather(const Context& context, const Tensor& x, const Tensor& index, const Scalar& axis, Tensor* out) {
  Launch launch(context, "gather");
  take(launch, x, index, axis.to<int64_t>(), out);
}

void index_select(const Context& context, const Tensor& x, const Tensor& index, int axis, Tensor* out) {
  Launch launch(context, "index_select");
  take(launch, x, index, axis, out);
}

// The row `padding_idx` reads as zeros; -1 means that there is none.
void embedding(const Context& context, const Tensor& ids, const Tensor& weight, int64_t padding_idx, Tensor* out) {
  Launch launch(context, "embedding");
  const Operand index = launch.input(ids), table = launch.input(weight), to = launch.output(out);
  require_integers(index);
  launch.run([=] {
    const size_t bytes = static_cast<size_t>(table.dims[1]) * size_of(table.type);
    char* target = to.data;
    for (const int64_t row : read_indices(index, table.dims[0])) {
      if (row == padding_idx) {
        std::memset(target, 0, bytes);
      } else {
        std::memcpy(target, table.data + static_cast<size_t>(row) * bytes, bytes);
      }
      target += bytes;
    }
  });
}

// One index for each of the first axes; a mask stands for as many as it has dimensions.
struct Place {
  std::vector<std::vector<int64_t>> values;  // by axis
  std::vector<Dims> dims;                    // before broadcasting
};

void add_mask(Place& place, const Operand& mask) {
  std::vector<std::vector<int64_t>> found(mask.dims.size());
  const Dims strides = strides_of(mask.dims);
  for (int64_t i = 0; i < mask.size(); ++i) {
    if (!mask.as<bool>()[i]) continue;
    for (size_t axis = 0; axis < strides.size(); ++axis) found[axis].push_back(i / strides[axis] % mask.dims[axis]);
  }
  for (std::vector<int64_t>& axis : found) {
    place.dims.push_back({static_cast<int64_t>(axis.size())});
    place.values.push_back(std::move(axis));
  }
}

Place read_place(const std::vector<Operand>& indices, const Dims& dims) {
  Place place;
  for (const Operand& index : indices) {
    if (index.type == Type::BOOL) {
      add_mask(place, index);
    } else {
      place.values.push_back(read_indices(index, dims.at(place.values.size())));
      place.dims.push_back(index.dims);
    }
  }
  return place;
}

void put(const std::vector<Operand>& indices, const Operand& value, const Operand& to) {
  const Place place = read_place(indices, to.dims);
  Dims picked;
  for (const Dims& dims : place.dims) picked = broadcast(picked, dims);
  const size_t axes = place.values.size();
  Dims shape = picked;
  shape.insert(shape.end(), to.dims.begin() + static_cast<int64_t>(axes), to.dims.end());
  const Dims value_strides = broadcast_strides(value.dims, shape);
  const Dims picked_strides = strides_of(picked), to_strides = strides_of(to.dims);
  const Dims inner(shape.begin() + static_cast<int64_t>(picked.size()), shape.end());
  const Dims inner_value(value_strides.begin() + static_cast<int64_t>(picked.size()), value_strides.end());
  visit_size(to.type, [&](auto type) {
    using T = decltype(type);
    for (int64_t n = 0; n < count(picked); ++n) {
      int64_t target = 0, source = 0;
      for (size_t i = 0; i < picked.size(); ++i) source += n / picked_strides[i] % picked[i] * value_strides[i];
      for (size_t axis = 0; axis < axes; ++axis) {
        const Dims strides = broadcast_strides(place.dims[axis], picked);
        int64_t at = 0;
        for (size_t i = 0; i < picked.size(); ++i) at += n / picked_strides[i] % picked[i] * strides[i];
        target += place.values[axis][static_cast<size_t>(at)] * to_strides[axis];
      }
      for_rows<2>(inner, {inner_value, strides_of(inner)}, [&](const auto& at, const auto& steps, int64_t length) {
        for (int64_t i = 0; i < length; ++i) {
          to.as<T>()[target + at[1] + i * steps[1]] = value.as<T>()[source + at[0] + i * steps[0]];
        }
      });
    }
  });
}

void index_put(const Context& context, const Tensor& x, const Tensors& indices, const Tensor& value, bool accumulate,
               Tensor* out) {
  Launch launch(context, "index_put");
  if (accumulate) throw std::runtime_error("index_put: accumulate is not for this device");
  const Operand from = launch.input(x), what = launch.input(value);
  std::vector<Operand> where;
  for (const Tensor* index : indices) where.push_back(launch.input(*index));
  for (const Operand& index : where) {
    if (index.type != Type::BOOL) require_integers(index);
  }
  const Operand to = launch.output(out);
  launch.run([=] {
    // in place, input and output are one
    if (to.data != from.data) std::memcpy(to.data, from.data, static_cast<size_t>(to.size()) * size_of(to.type));
    if (to.size() != 0) put(where, what, to);
  });
}

}  // namespace

void register_indexing(Registry& registry) {
  registry.add<&gather>("gather", kAny);
  registry.add<&index_select>("index_select", kAny);
  registry.add<&embedding>("embedding", kAny);
  registry.add<&index_put>("index_put", kAny);
}

}  // namespace emulated
