#include "kernel.h"

#include <algorithm>
#include <stdexcept>

#include "paddle/common/enforce.h"
#include "settings.h"

namespace emulated {

const std::vector<Type> kFloats = {Type::FLOAT32, Type::FLOAT64, Type::FLOAT16, Type::BFLOAT16};
const std::vector<Type> kIntegers = {Type::INT8, Type::UINT8, Type::INT16, Type::INT32, Type::INT64};
const std::vector<Type> kNumbers = {Type::FLOAT32, Type::FLOAT64, Type::FLOAT16, Type::BFLOAT16, Type::INT8,
                                    Type::UINT8,   Type::INT16,   Type::INT32,   Type::INT64};
const std::vector<Type> kAny = {Type::FLOAT32, Type::FLOAT64, Type::FLOAT16, Type::BFLOAT16, Type::INT8,
                                Type::UINT8,   Type::INT16,   Type::INT32,   Type::INT64,    Type::BOOL};

size_t size_of(Type type) {
  switch (type) {
    case Type::BOOL:
    case Type::INT8:
    case Type::UINT8: return 1;
    case Type::INT16:
    case Type::FLOAT16:
    case Type::BFLOAT16: return 2;
    case Type::INT32:
    case Type::FLOAT32: return 4;
    case Type::INT64:
    case Type::FLOAT64: return 8;
    default: throw std::runtime_error("no kernel knows type " + std::to_string(type));
  }
}

void refuse(const std::string& why) { PADDLE_THROW(common::errors::External("CustomDevice error: %s", why)); }

Launch::Launch(const Context& context, const char* kernel)
    : context_(context), kernel_(kernel), stream_(*static_cast<Stream*>(context.stream())) {}

Operand Launch::operand(const Tensor& tensor) {
  Operand result{nullptr, tensor.dims(), tensor.strides(), tensor.dtype()};
  if (result.size() == 0) return result;
  int64_t last = 0;  // the element that lies farthest
  for (size_t i = 0; i < result.dims.size(); ++i) last += (result.dims[i] - 1) * result.strides[i];
  result.data = stream_.device().translate(tensor.data<void>(), static_cast<size_t>(last + 1) * size_of(result.type), kernel_);
  if (result.data == nullptr) throw std::runtime_error(kernel_ + ": an operand is not in this device's memory");
  return result;
}

Operand Launch::strided_input(const Tensor& tensor) { return operand(tensor); }

Operand Launch::input(const Tensor& tensor) {
  Operand result = operand(tensor);
  const Dims expected = strides_of(result.dims);
  for (size_t i = 0; i < expected.size(); ++i) {
    const bool fits = result.strides[i] == expected[i] || result.dims[i] == 1 || result.data == nullptr;
    if (!fits) throw std::runtime_error(kernel_ + ": an operand is not contiguous");
  }
  result.strides = expected;
  return result;
}

Operand Launch::output(Tensor* tensor) { return output(tensor, tensor->dtype()); }

Operand Launch::output(Tensor* tensor, Type type) {
  context_.Alloc(tensor, type);
  const Operand result = input(*tensor);
  const bool floats = std::find(kFloats.begin(), kFloats.end(), type) != kFloats.end();
  if (floats) written_.push_back({result.data, static_cast<size_t>(result.size()) * size_of(type)});
  return result;
}

Operand Launch::view(Tensor* tensor) { return operand(*tensor); }

void Launch::run(std::function<void()> work) {
  const C_Status status =
      stream_.device().submit(stream_, kernel_, 0, std::move(written_), [work = std::move(work), name = kernel_] {
        try {
          work();
          return C_SUCCESS;
        } catch (const std::exception& error) {
          complain(name + ": " + error.what());
          return C_ERROR;
        }
      });
  if (status != C_SUCCESS) {
    const std::string why = stream_.device().lost() ? "the device is lost" : "the launch was refused";
    throw std::runtime_error("kernel " + kernel_ + ": " + why);
  }
}

Registry::Registry(const std::string& chosen) {
  if (chosen.empty()) throw std::runtime_error("EMULATED_DEVICE_KERNELS is empty");
  for (const std::string& piece : split(chosen, ',')) {
    if (piece == "full") {
      full_ = true;
    } else if (piece.rfind('-', 0) == 0) {
      removed_.insert(piece.substr(1));
    } else if (piece != "none") {
      added_.insert(piece);
    }
  }
  // Paddle has no fallback for these: without them a transposed tensor cannot be used at all
  added_.insert({"contiguous", "strided_copy"});
}

bool Registry::wants(const char* name) {
  known_.insert(name);
  return (full_ || added_.count(name) != 0) && removed_.count(name) == 0;
}

void Registry::finish() const {
  for (const auto& names : {added_, removed_}) {
    for (const std::string& name : names) {
      if (known_.count(name) == 0) throw std::runtime_error("EMULATED_DEVICE_KERNELS: no kernel '" + name + "'");
    }
  }
}

namespace {

// Paddle asks with plain functions what the outputs' type is, so there is one function a type.
template <Type result>
void set_result(const PD_KernelKey*, PD_Kernel* kernel) {
  for (auto& output : phi::capi::Kernel(kernel).args_def().output_defs()) output.SetDataType(result);
}

using Definition = void (*)(const PD_KernelKey*, PD_Kernel*);

Definition definition(Type result) {
  if (result == Type::BOOL) return set_result<Type::BOOL>;
  if (result == Type::INT64) return set_result<Type::INT64>;
  return [](const PD_KernelKey*, PD_Kernel*) {};
}

}  // namespace

void Registry::offer(const char* name, const std::vector<Type>& types, Type result, Arguments& arguments,
                     void (*compute)(PD_KernelContext*), void* variadic) {
  for (const Type type : types) {
    PD_RegisterPhiKernel(name, settings().type.c_str(), type, PD_DataLayout::ALL_LAYOUT, arguments.inputs.size(),
                         arguments.inputs.data(), arguments.attributes.size(), arguments.attributes.data(),
                         arguments.outputs.size(), arguments.outputs.data(), definition(result), compute, variadic);
  }
}

void register_kernels() {
  Registry registry(settings().kernels);
  register_elementwise(registry);
  register_binary(registry);
  register_comparison(registry);
  register_casts(registry);
  register_indexing(registry);
  register_layout(registry);
  register_matmul(registry);
  register_quantized(registry);
  register_reductions(registry);
  registry.finish();
}

}  // namespace emulated
