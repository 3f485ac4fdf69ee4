#include "device.h"

#include <cstring>

#include "faults.h"
#include "settings.h"

namespace emulated {
namespace {

void spoil(const std::vector<Written>& written) {
  for (const Written& part : written) std::memset(part.data, 0xff, part.bytes);
}

}  // namespace

std::vector<Device*>& devices() {
  static std::vector<Device*>& instance = *[] {
    auto* made = new std::vector<Device*>;
    for (const int physical : settings().physical_ids) {
      made->push_back(new Device(static_cast<int>(made->size()), physical, settings().memory_bytes, settings().poison));
    }
    return made;
  }();
  return instance;
}

char* Device::translate(const void* seen, size_t bytes, const std::string& command) {
  char* real = arena.translate(seen, bytes);
  if (real != nullptr) return real;
  std::string what = "is not device memory";
  for (const Device* other : devices()) {
    if (other != this && other->arena.translate(seen, 1) != nullptr) what = "belongs to device " + std::to_string(other->logical);
  }
  if (arena.translate(seen, 1) != nullptr) what = "is shorter than that";
  char text[160];
  std::snprintf(text, sizeof text, "%s: %zu bytes at %p: %s", command.c_str(), bytes, seen, what.c_str());
  note_violation(text);
  return nullptr;
}

void Device::note_violation(const std::string& what) {
  ++violations;
  complain("canary violation on device " + std::to_string(logical) + ": " + what);
}

C_Status Device::submit(Stream& stream, const std::string& command, size_t bytes, std::vector<Written> written,
                        Stream::Work work) {
  const CommandFault fault = on_command(logical, command);
  if (fault.lost || fault.gone) lose(fault.gone);
  if (lost() || fault.launch_error) return C_ERROR;
  count(command, bytes);
  if (fault.stuck) stream.hold();
  if (!fault.kernel_error && !fault.nan) {
    stream.enqueue(std::move(work));
    return C_SUCCESS;
  }
  stream.enqueue([work = std::move(work), written = std::move(written), fails = fault.kernel_error, nan = fault.nan] {
    if (fails) return C_ERROR;
    const C_Status status = work();
    if (nan) spoil(written);
    return status;
  });
  return C_SUCCESS;
}

C_Status Device::run_now(const std::string& command, size_t bytes, Written written, const std::function<void()>& work) {
  const CommandFault fault = on_command(logical, command);
  if (fault.lost || fault.gone) lose(fault.gone);
  if (lost() || fault.launch_error || fault.kernel_error) return C_ERROR;
  count(command, bytes);
  if (fault.stuck) hold_streams();
  const C_Status status = synchronize();
  if (status != C_SUCCESS) return status;
  work();
  if (fault.nan && written.data != nullptr) spoil({written});
  return C_SUCCESS;
}

Stream* Device::make_stream() {
  const std::shared_ptr<Stream> stream = Stream::start(*this);
  std::lock_guard<std::mutex> lock(mutex_);
  streams_[stream.get()] = stream;
  return stream.get();
}

void Device::drop_stream(Stream* stream) {
  std::lock_guard<std::mutex> lock(mutex_);
  stream->retire();
  streams_.erase(stream);
}

// Shares, so that none ends while it is waited for.
std::vector<std::shared_ptr<Stream>> Device::streams() {
  std::lock_guard<std::mutex> lock(mutex_);
  std::vector<std::shared_ptr<Stream>> result;
  for (const auto& [address, stream] : streams_) result.push_back(stream);
  return result;
}

C_Status Device::synchronize() {
  C_Status status = lost() ? C_ERROR : C_SUCCESS;
  for (const auto& stream : streams()) {
    const C_Status one = stream->synchronize();
    if (status == C_SUCCESS) status = one;
  }
  return status;
}

void Device::wait_idle() {
  for (const auto& stream : streams()) stream->wait_idle();
}

bool Device::any_held() {
  for (const auto& stream : streams()) {
    if (stream->held()) return true;
  }
  return false;
}

void Device::hold_streams() {
  for (const auto& stream : streams()) stream->hold();
}

void Device::release_streams() {
  for (const auto& stream : streams()) stream->release();
}

void Device::lose(bool gone) {
  gone_ = gone;
  lost_ = true;
  for (const auto& stream : streams()) stream->wake();
}

void Device::count(const std::string& command, size_t bytes) {
  std::lock_guard<std::mutex> lock(mutex_);
  CommandCount& counted = commands_[command];
  ++counted.calls;
  counted.bytes += bytes;
}

std::map<std::string, CommandCount> Device::commands() {
  std::lock_guard<std::mutex> lock(mutex_);
  return commands_;
}

void Device::reset_commands() {
  std::lock_guard<std::mutex> lock(mutex_);
  commands_.clear();
}

}  // namespace emulated
