// How a kernel is written: it reads the tensors it is given, allocates its outputs and hands its work over, to be run later.
//
//   void kernel(const Context& context, const Tensor& x, Tensor* out) {
//     Launch launch(context, "name");
//     const Operand from = launch.input(x), to = launch.output(out);
//     launch.run([=] { … });             // on the stream's worker; the tensors may be gone by then, the operands are not
//   }
#pragma once
#include <functional>
#include <initializer_list>
#include <set>
#include <string>
#include <vector>

#include "device.h"
#include "paddle/phi/capi/all.h"
#include "shapes.h"

namespace emulated {

using Context = phi::capi::DeviceContext;
using IntArray = phi::capi::IntArray;
using Scalar = phi::capi::Scalar;
using Tensor = phi::capi::DenseTensor;
using Tensors = std::vector<const Tensor*>;
using Type = PD_DataType;
using float16 = phi::dtype::float16;
using bfloat16 = phi::dtype::bfloat16;

size_t size_of(Type type);

// A tensor as the device sees it.
struct Operand {
  char* data = nullptr;  // in the backing mapping; null where there are no elements
  Dims dims;
  Dims strides;  // row-major, but for strided_input()
  Type type = Type::UNDEFINED;

  int64_t size() const { return count(dims); }
  template <typename T>
  T* as() const {
    return reinterpret_cast<T*>(data);
  }
};

// Throws an exception of Paddle's: it ends the process on others.
[[noreturn]] void refuse(const std::string& why);

// A kernel whose std::runtime_error becomes one.
template <auto kernel>
struct Guarded;
template <typename... Arguments, void (*kernel)(Arguments...)>
struct Guarded<kernel> {
  static void call(Arguments... arguments) {
    try {
      kernel(arguments...);
    } catch (const std::runtime_error& error) {
      refuse(error.what());
    }
  }
};

class Launch {
 public:
  Launch(const Context& context, const char* kernel);

  // Throw where the tensor is no memory of this device, or not contiguous.
  Operand input(const Tensor& tensor);
  Operand strided_input(const Tensor& tensor);
  // Allocates a tensor whose shape and type Paddle has inferred.
  Operand output(Tensor* tensor);
  Operand output(Tensor* tensor, Type type);
  // One that is there already, and is written in places only.
  Operand view(Tensor* tensor);

  // Queues the work. Throws where the device refuses it. Work that throws fails on the stream, for who waits for it to see.
  void run(std::function<void()> work);

 private:
  Operand operand(const Tensor& tensor);

  const Context& context_;
  const std::string kernel_;
  Stream& stream_;
  std::vector<Written> written_;
};

// The types of each set; kAny for what only moves elements.
extern const std::vector<Type> kAny, kFloats, kNumbers, kIntegers;

class Registry {
 public:
  // `chosen`: "full", "none", "full,-softmax" or "matmul,softmax".
  explicit Registry(const std::string& chosen);

  // Offers a kernel to Paddle for each of the types, where it was chosen. `result`: the type of all outputs, if not the inputs'.
  template <auto kernel>
  void add(const char* name, const std::vector<Type>& types, Type result = Type::UNDEFINED) {
    if (!wants(name)) return;
    phi::capi::CustomKernelArgsParseFunctor<decltype(kernel)> parsed;
    Arguments arguments{parsed.in_args_type, parsed.attr_args_type, parsed.out_args_type};
    constexpr auto call = &Guarded<kernel>::call;
    offer(name, types, result, arguments, CUSTOM_PHI_KERNEL(*call), CUSTOM_PHI_VARIADIC_KERNEL(*call));
  }

  // Throws where a name that was asked for is none of a kernel.
  void finish() const;

 private:
  struct Arguments {
    std::vector<PD_KernelArgumentType> inputs, attributes, outputs;
  };

  bool wants(const char* name);
  static void offer(const char* name, const std::vector<Type>& types, Type result, Arguments& arguments,
                    void (*compute)(PD_KernelContext*), void* variadic);

  bool full_ = false;
  std::set<std::string> added_, removed_, known_;
};

void register_elementwise(Registry& registry);
void register_binary(Registry& registry);
void register_comparison(Registry& registry);
void register_casts(Registry& registry);
void register_indexing(Registry& registry);
void register_layout(Registry& registry);
void register_matmul(Registry& registry);
void register_quantized(Registry& registry);
void register_reductions(Registry& registry);

// All of them, as settings().kernels says.
void register_kernels();

// Calls body with a value of the C++ type.
template <typename Body>
void visit_float(Type type, Body&& body) {
  switch (type) {
    case Type::FLOAT32: return body(float{});
    case Type::FLOAT64: return body(double{});
    case Type::FLOAT16: return body(float16{});
    case Type::BFLOAT16: return body(bfloat16{});
    default: throw std::runtime_error("type " + std::to_string(type) + " is no float");
  }
}

template <typename Body>
void visit_number(Type type, Body&& body) {
  switch (type) {
    case Type::INT8: return body(int8_t{});
    case Type::UINT8: return body(uint8_t{});
    case Type::INT16: return body(int16_t{});
    case Type::INT32: return body(int32_t{});
    case Type::INT64: return body(int64_t{});
    default: return visit_float(type, body);
  }
}

template <typename Body>
void visit_any(Type type, Body&& body) {
  if (type == Type::BOOL) return body(bool{});
  visit_number(type, body);
}

// For what only moves elements: a type of the same size.
template <typename Body>
void visit_size(Type type, Body&& body) {
  switch (size_of(type)) {
    case 1: return body(uint8_t{});
    case 2: return body(uint16_t{});
    case 4: return body(uint32_t{});
    default: return body(uint64_t{});
  }
}

// Kernels compute in few types only, which keeps them quick to compile: what is narrower is widened, the result narrowed again.
// In four, where speed matters (float16 and bfloat16 as float32, small integers and bool as int32), else in the two widest.
template <typename Body>
void visit_wide(Type type, Body&& body) {
  switch (type) {
    case Type::FLOAT32: return body(float{});
    case Type::FLOAT64: return body(double{});
    case Type::INT32: return body(int32_t{});
    case Type::INT64: return body(int64_t{});
    default: throw std::runtime_error("type " + std::to_string(type) + " was not widened");
  }
}

template <typename Body>
void visit_widest(Type type, Body&& body) {
  type == Type::FLOAT64 ? body(double{}) : body(int64_t{});
}

Type wide_type(Type type);    // of visit_wide()
Type widest_type(Type type);  // of visit_widest()

// Element by element from one type to another; both row-major.
void convert(const Operand& from, const Operand& to);

// An operand in another type: itself where it has that type already, else a copy on the host.
class WideOperand {
 public:
  static WideOperand of(const Operand& source, Type type);
  // Room for a result; write it to the target afterwards.
  static WideOperand for_result(const Operand& target, Type type);
  void write_to(const Operand& target) const;

  const Operand* operator->() const { return &operand_; }
  const Operand& operator*() const { return operand_; }

 private:
  WideOperand(const Operand& like, Type type);

  Operand operand_;
  std::vector<char> storage_;
};

}  // namespace emulated
