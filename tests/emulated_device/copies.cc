#include "copies.h"

#include <cstring>
#include <memory>

#include "runtime.h"

namespace emulated {
namespace {

// Paddle copies empty tensors, too, from and to no memory at all.
C_Status nothing(const Device& device) { return device.lost() ? C_ERROR : C_SUCCESS; }

C_Status copy_h2d(const C_Device device, void* dst, const void* src, size_t bytes) {
  Device& target = device_of(device);
  if (bytes == 0) return nothing(target);
  char* real = target.translate(dst, bytes, "copy_h2d");
  if (real == nullptr) return C_ERROR;
  return target.run_now("copy_h2d", bytes, {real, bytes}, [=] { std::memcpy(real, src, bytes); });
}

C_Status copy_d2h(const C_Device device, void* dst, const void* src, size_t bytes) {
  Device& source = device_of(device);
  if (bytes == 0) return nothing(source);
  const char* real = source.translate(src, bytes, "copy_d2h");
  if (real == nullptr) return C_ERROR;
  return source.run_now("copy_d2h", bytes, {static_cast<char*>(dst), bytes}, [=] { std::memcpy(dst, real, bytes); });
}

// Between two devices as well; it counts for the one that is read.
C_Status copy_between(Device& to, Device& from, void* dst, const void* src, size_t bytes) {
  if (bytes == 0) return nothing(from);
  char* real_dst = to.translate(dst, bytes, "copy_d2d");
  const char* real_src = from.translate(src, bytes, "copy_d2d");
  if (real_dst == nullptr || real_src == nullptr) return C_ERROR;
  if (&to != &from) to.wait_idle();
  return from.run_now("copy_d2d", bytes, {real_dst, bytes}, [=] { std::memmove(real_dst, real_src, bytes); });
}

C_Status copy_d2d(const C_Device device, void* dst, const void* src, size_t bytes) {
  return copy_between(device_of(device), device_of(device), dst, src, bytes);
}

C_Status copy_p2p(const C_Device to, const C_Device from, void* dst, const void* src, size_t bytes) {
  return copy_between(device_of(to), device_of(from), dst, src, bytes);
}

// The source may change as soon as this returns, so it is copied now; it arrives when the stream comes to it.
C_Status async_copy_h2d(const C_Device device, C_Stream stream, void* dst, const void* src, size_t bytes) {
  Device& target = device_of(device);
  if (bytes == 0) return nothing(target);
  char* real = target.translate(dst, bytes, "copy_h2d");
  if (real == nullptr) return C_ERROR;
  const std::shared_ptr<char[]> staged(new char[bytes]);
  std::memcpy(staged.get(), src, bytes);
  return target.submit(*reinterpret_cast<Stream*>(stream), "copy_h2d", bytes, {{real, bytes}}, [=] {
    std::memcpy(real, staged.get(), bytes);
    return C_SUCCESS;
  });
}

// The host may read the target as soon as this returns, so it waits.
C_Status async_copy_d2h(const C_Device device, C_Stream stream, void* dst, const void* src, size_t bytes) {
  Device& source = device_of(device);
  if (bytes == 0) return nothing(source);
  const char* real = source.translate(src, bytes, "copy_d2h");
  if (real == nullptr) return C_ERROR;
  Stream& queue = *reinterpret_cast<Stream*>(stream);
  const C_Status status = source.submit(queue, "copy_d2h", bytes, {{static_cast<char*>(dst), bytes}}, [=] {
    std::memcpy(dst, real, bytes);
    return C_SUCCESS;
  });
  return status == C_SUCCESS ? queue.synchronize() : status;
}

C_Status async_copy_between(Device& to, Device& from, C_Stream stream, void* dst, const void* src, size_t bytes) {
  if (bytes == 0) return nothing(from);
  char* real_dst = to.translate(dst, bytes, "copy_d2d");
  const char* real_src = from.translate(src, bytes, "copy_d2d");
  if (real_dst == nullptr || real_src == nullptr) return C_ERROR;
  return from.submit(*reinterpret_cast<Stream*>(stream), "copy_d2d", bytes, {{real_dst, bytes}}, [=] {
    std::memmove(real_dst, real_src, bytes);
    return C_SUCCESS;
  });
}

C_Status async_copy_d2d(const C_Device device, C_Stream stream, void* dst, const void* src, size_t bytes) {
  return async_copy_between(device_of(device), device_of(device), stream, dst, src, bytes);
}

C_Status async_copy_p2p(const C_Device to, const C_Device from, C_Stream stream, void* dst, const void* src, size_t bytes) {
  return async_copy_between(device_of(to), device_of(from), stream, dst, src, bytes);
}

C_Status memory_set(const C_Device device, void* address, unsigned char value, size_t bytes) {
  Device& target = device_of(device);
  if (bytes == 0) return nothing(target);
  char* real = target.translate(address, bytes, "memory_set");
  if (real == nullptr) return C_ERROR;
  return target.run_now("memory_set", bytes, {real, bytes}, [=] { std::memset(real, value, bytes); });
}

}  // namespace

void fill_copies(C_DeviceInterface* table) {
  table->memory_copy_h2d = copy_h2d;
  table->memory_copy_d2h = copy_d2h;
  table->memory_copy_d2d = copy_d2d;
  table->memory_copy_p2p = copy_p2p;
  table->async_memory_copy_h2d = async_copy_h2d;
  table->async_memory_copy_d2h = async_copy_d2h;
  table->async_memory_copy_d2d = async_copy_d2d;
  table->async_memory_copy_p2p = async_copy_p2p;
  table->device_memory_set = memory_set;
}

}  // namespace emulated
