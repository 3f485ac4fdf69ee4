// One emulated device: memory, streams, counters, and the way every command takes.
#pragma once
#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "memory.h"
#include "streams.h"

namespace emulated {

struct CommandCount {
  uint64_t calls = 0;
  uint64_t bytes = 0;  // of copies
};

// Device memory that a command writes, at its address in the backing mapping: the fault "nan" spoils it.
struct Written {
  char* data = nullptr;
  size_t bytes = 0;
};

struct Device {
  Device(int logical_id, int physical_id, size_t memory_bytes, bool poison)
      : logical(logical_id), physical(physical_id), arena(memory_bytes, poison) {}

  // Where device memory lies for kernels and copies. Null, a violation and a line on stderr where it is none of this device.
  char* translate(const void* seen, size_t bytes, const std::string& command);
  void note_violation(const std::string& what);

  // Counts a command, lets faults have their say, and queues it. C_ERROR where it is refused.
  C_Status submit(Stream& stream, const std::string& command, size_t bytes, std::vector<Written> written, Stream::Work work);
  // The same for one that runs in the caller's thread, after all streams of the device.
  C_Status run_now(const std::string& command, size_t bytes, Written written, const std::function<void()>& work);

  Stream* make_stream();
  void drop_stream(Stream* stream);
  // Waits for all streams; the first failure is reported and forgotten.
  C_Status synchronize();
  // Waits for all streams; failures stay for who asks later.
  void wait_idle();
  bool any_held();
  void hold_streams();
  void release_streams();

  bool lost() const { return lost_.load(); }
  // Lost, and even calls that only keep the books fail.
  bool gone() const { return gone_.load(); }
  void lose(bool gone);

  const int logical;
  const int physical;
  Arena arena;
  std::atomic<uint64_t> violations{0};
  std::map<std::string, CommandCount> commands();
  void reset_commands();

 private:
  void count(const std::string& command, size_t bytes);
  std::vector<std::shared_ptr<Stream>> streams();

  std::atomic<bool> lost_{false};
  std::atomic<bool> gone_{false};
  std::mutex mutex_;
  std::map<Stream*, std::shared_ptr<Stream>> streams_;
  std::map<std::string, CommandCount> commands_;
};

// Made at the first call, from the settings, and never destroyed.
std::vector<Device*>& devices();

}  // namespace emulated
