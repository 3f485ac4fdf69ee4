// Streams and events. Each stream has a worker thread that takes its work in order; nothing runs in the caller's thread.
#pragma once
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>

#include "paddle/phi/backends/device_ext.h"

namespace emulated {

struct Device;

// Marks how far streams have come. Recorded again and again; each record replaces the one before.
class Event {
 public:
  // Called as the record is queued; the number is handed to reach() when the stream comes to it.
  uint64_t record();
  void reach(uint64_t number);
  uint64_t recorded() const;
  bool reached(uint64_t number) const;
  // Waits until the number is reached; false where the device was lost meanwhile.
  bool wait(uint64_t number, const Device& device) const;

 private:
  mutable std::mutex mutex_;
  mutable std::condition_variable changed_;
  uint64_t recorded_ = 0;
  uint64_t reached_ = 0;
};

class Stream {
 public:
  // Answers C_SUCCESS, or what the next synchronisation is to report.
  using Work = std::function<C_Status()>;

  explicit Stream(Device& device) : device_(device) {}
  // With its worker, which shares in it.
  static std::shared_ptr<Stream> start(Device& device);

  Device& device() const { return device_; }
  void enqueue(Work work);
  // Waits for all that is queued, and reports the first failure since the last time.
  C_Status synchronize();
  // The same, but leaves the failure to be reported by synchronize().
  void wait_idle();
  bool idle() const;
  // A stuck stream takes no work until it is released.
  void hold();
  void release();
  bool held() const;
  // The device was lost: whoever waits must look again.
  void wake();
  // Lets the worker end once the queue is empty.
  void retire();

 private:
  void run();

  Device& device_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Work> queue_;
  C_Status failure_ = C_SUCCESS;
  bool busy_ = false;
  bool held_ = false;
  bool retired_ = false;
};

}  // namespace emulated
