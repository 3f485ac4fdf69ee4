// What Paddle calls: devices, streams, events, memory, and InitPlugin, which Paddle looks for in the library.
#include "runtime.h"

#include <cstdlib>
#include <exception>
#include <memory>

#include "copies.h"
#include "device.h"
#include "faults.h"
#include "kernel.h"
#include "report.h"
#include "settings.h"

namespace emulated {
namespace {

using SharedEvent = std::shared_ptr<Event>;

thread_local int current_device = 0;

Stream& stream_of(C_Stream stream) { return *reinterpret_cast<Stream*>(stream); }
const SharedEvent& event_of(C_Event event) { return *reinterpret_cast<SharedEvent*>(event); }

// An answer of a device that may be lost.
C_Status alive(C_Device device) { return device_of(device).lost() ? C_ERROR : C_SUCCESS; }

// Of calls that Paddle makes from destructors, too, where an error ends the process: only a device that is "gone" answers so.
C_Status bookkeeping(C_Device device) { return device_of(device).gone() ? C_ERROR : C_SUCCESS; }

C_Status get_device_count(size_t* count) {
  *count = devices().size();
  return C_SUCCESS;
}

// Paddle counts from 0 among the visible ones; the physical number is in the counters.
C_Status get_device_list(size_t* list) {
  for (size_t i = 0; i < devices().size(); ++i) list[i] = i;
  return C_SUCCESS;
}

C_Status init_device(const C_Device device) { return alive(device); }
C_Status deinit_device(const C_Device) { return C_SUCCESS; }

C_Status set_device(const C_Device device) {
  current_device = device->id;
  return bookkeeping(device);
}

C_Status get_device(const C_Device device) {
  device->id = current_device;
  return C_SUCCESS;
}

C_Status create_stream(const C_Device device, C_Stream* stream) {
  if (device_of(device).lost()) return C_ERROR;
  *stream = reinterpret_cast<C_Stream>(device_of(device).make_stream());
  return C_SUCCESS;
}

C_Status destroy_stream(const C_Device device, C_Stream stream) {
  device_of(device).drop_stream(&stream_of(stream));
  return bookkeeping(device);
}

// C_WARNING: not done yet. Paddle takes any answer but C_SUCCESS so.
C_Status query_stream(const C_Device device, C_Stream stream) {
  if (device_of(device).lost()) return C_ERROR;
  return stream_of(stream).idle() ? C_SUCCESS : C_WARNING;
}

C_Status stream_add_callback(const C_Device device, C_Stream stream, C_Callback callback, void* user_data) {
  if (device_of(device).lost()) return C_ERROR;
  stream_of(stream).enqueue([device, stream, callback, user_data] {
    C_Status status = C_SUCCESS;
    callback(device, stream, user_data, &status);
    return status;
  });
  return C_SUCCESS;
}

C_Status create_event(const C_Device device, C_Event* event) {
  *event = reinterpret_cast<C_Event>(new SharedEvent(std::make_shared<Event>()));
  return alive(device);
}

C_Status destroy_event(const C_Device device, C_Event event) {
  delete &event_of(event);  // what is queued holds a share of its own
  return bookkeeping(device);
}

C_Status record_event(const C_Device device, C_Stream stream, C_Event event) {
  if (device_of(device).lost()) return C_ERROR;
  const SharedEvent shared = event_of(event);
  const uint64_t number = shared->record();
  stream_of(stream).enqueue([shared, number] {
    shared->reach(number);
    return C_SUCCESS;
  });
  return C_SUCCESS;
}

C_Status query_event(const C_Device device, C_Event event) {
  if (device_of(device).lost()) return C_ERROR;
  const Event& asked = *event_of(event);
  return asked.reached(asked.recorded()) ? C_SUCCESS : C_WARNING;
}

C_Status synchronize_event(const C_Device device, C_Event event) {
  const SharedEvent shared = event_of(event);
  return shared->wait(shared->recorded(), device_of(device)) ? C_SUCCESS : C_ERROR;
}

C_Status synchronize_device(const C_Device device) { return device_of(device).synchronize(); }

C_Status synchronize_stream(const C_Device device, C_Stream stream) {
  return device_of(device).lost() ? C_ERROR : stream_of(stream).synchronize();
}

C_Status stream_wait_event(const C_Device device, C_Stream stream, C_Event event) {
  Device* waiting = &device_of(device);
  if (waiting->lost()) return C_ERROR;
  const SharedEvent shared = event_of(event);
  const uint64_t number = shared->recorded();
  stream_of(stream).enqueue([shared, number, waiting] { return shared->wait(number, *waiting) ? C_SUCCESS : C_ERROR; });
  return C_SUCCESS;
}

C_Status device_memory_allocate(const C_Device device, void** address, size_t bytes) {
  Device& target = device_of(device);
  if (target.lost()) return C_ERROR;
  const bool fails = allocation_fails(target.logical);
  if (fails) target.arena.note_refusal();
  *address = fails ? nullptr : target.arena.allocate(bytes);
  return *address == nullptr && !settings().null_when_full ? C_FAILED : C_SUCCESS;
}

// Waits for all streams first, as runtimes of real devices do: what is queued may still use the memory. Where a stream is stuck
// or the device is lost, the block is left allocated, because nobody can say when it is free.
C_Status device_memory_deallocate(const C_Device device, void* address, size_t) {
  Device& owner = device_of(device);
  if (owner.lost() || owner.any_held()) return bookkeeping(device);
  owner.wait_idle();
  const FreeResult result = owner.arena.deallocate(address);
  if (result == FreeResult::kFreed) return C_SUCCESS;
  owner.note_violation(result == FreeResult::kOverrun ? "free: something wrote behind the block"
                                                      : "free: not a block of this device");
  return result == FreeResult::kOverrun ? C_SUCCESS : C_ERROR;
}

C_Status device_memory_stats(const C_Device device, size_t* total, size_t* free) {
  const MemoryUse use = device_of(device).arena.use();
  *total = use.limit_bytes;
  *free = use.limit_bytes - use.used_bytes;
  return alive(device);
}

C_Status device_min_chunk_size(const C_Device, size_t* bytes) {
  *bytes = Arena::kAlignment;
  return C_SUCCESS;
}

C_Status host_memory_allocate(const C_Device device, void** address, size_t bytes) {
  *address = std::aligned_alloc(Arena::kAlignment, (bytes + Arena::kAlignment - 1) / Arena::kAlignment * Arena::kAlignment);
  return *address == nullptr ? C_FAILED : alive(device);
}

C_Status host_memory_deallocate(const C_Device, void* address, size_t) {
  std::free(address);
  return C_SUCCESS;
}

void fill(C_DeviceInterface* table) {
  table->get_device_count = get_device_count;
  table->get_device_list = get_device_list;
  table->init_device = init_device;
  table->deinit_device = deinit_device;
  table->set_device = set_device;
  table->get_device = get_device;
  table->create_stream = create_stream;
  table->destroy_stream = destroy_stream;
  table->query_stream = query_stream;
  table->stream_add_callback = stream_add_callback;
  table->create_event = create_event;
  table->destroy_event = destroy_event;
  table->record_event = record_event;
  table->query_event = query_event;
  table->synchronize_event = synchronize_event;
  table->synchronize_device = synchronize_device;
  table->synchronize_stream = synchronize_stream;
  table->stream_wait_event = stream_wait_event;
  table->device_memory_allocate = device_memory_allocate;
  table->device_memory_deallocate = device_memory_deallocate;
  table->device_memory_stats = device_memory_stats;
  table->device_min_chunk_size = device_min_chunk_size;
  table->host_memory_allocate = host_memory_allocate;
  table->host_memory_deallocate = host_memory_deallocate;
  fill_copies(table);
}

}  // namespace

Device& device_of(C_Device device) { return *devices().at(static_cast<size_t>(device->id)); }

}  // namespace emulated

extern "C" __attribute__((visibility("default"))) void InitPlugin(CustomRuntimeParams* params) {
  PADDLE_CUSTOM_RUNTIME_CHECK_VERSION(params);
  // without a device type Paddle leaves the library aside
  try {
    emulated::arm(emulated::settings().faults);
    emulated::devices();
    emulated::register_kernels();
  } catch (const std::exception& error) {
    emulated::complain(std::string("not loaded: ") + error.what());
    return;
  }
  params->device_type = const_cast<char*>(emulated::settings().type.c_str());
  params->sub_device_type = const_cast<char*>("emulated");
  emulated::fill(params->interface);
  if (!emulated::settings().report_path.empty()) std::atexit([] { emulated::write_report(emulated::settings().report_path); });
}
