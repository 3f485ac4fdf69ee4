#include "streams.h"

#include <chrono>

#include "device.h"

namespace emulated {

uint64_t Event::record() {
  std::lock_guard<std::mutex> lock(mutex_);
  return ++recorded_;
}

void Event::reach(uint64_t number) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (number > reached_) reached_ = number;
  }
  changed_.notify_all();
}

uint64_t Event::recorded() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return recorded_;
}

bool Event::reached(uint64_t number) const {
  std::lock_guard<std::mutex> lock(mutex_);
  return reached_ >= number;
}

bool Event::wait(uint64_t number, const Device& device) const {
  std::unique_lock<std::mutex> lock(mutex_);
  // an event does not know who is to wake it when its device is lost, so it looks from time to time
  while (reached_ < number && !device.lost()) changed_.wait_for(lock, std::chrono::milliseconds(20));
  return reached_ >= number;
}

std::shared_ptr<Stream> Stream::start(Device& device) {
  auto stream = std::make_shared<Stream>(device);
  std::thread([stream] { stream->run(); }).detach();
  return stream;
}

void Stream::enqueue(Work work) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    queue_.push_back(std::move(work));
  }
  changed_.notify_all();
}

C_Status Stream::synchronize() {
  std::unique_lock<std::mutex> lock(mutex_);
  changed_.wait(lock, [this] { return device_.lost() || (queue_.empty() && !busy_ && !held_); });
  if (device_.lost()) return C_ERROR;
  const C_Status failure = failure_;
  failure_ = C_SUCCESS;
  return failure;
}

void Stream::wait_idle() {
  std::unique_lock<std::mutex> lock(mutex_);
  changed_.wait(lock, [this] { return device_.lost() || (queue_.empty() && !busy_ && !held_); });
}

bool Stream::idle() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return queue_.empty() && !busy_ && !held_;
}

void Stream::hold() {
  std::lock_guard<std::mutex> lock(mutex_);
  held_ = true;
}

void Stream::release() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    held_ = false;
  }
  changed_.notify_all();
}

bool Stream::held() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return held_;
}

void Stream::wake() {
  // the lock makes sure that a waiter has either seen the loss or is waiting already
  {
    std::lock_guard<std::mutex> lock(mutex_);
  }
  changed_.notify_all();
}

void Stream::retire() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    retired_ = true;
  }
  changed_.notify_all();
}

void Stream::run() {
  std::unique_lock<std::mutex> lock(mutex_);
  for (;;) {
    changed_.wait(lock, [this] { return queue_.empty() ? retired_ : !held_ || device_.lost(); });
    if (queue_.empty()) break;
    {
      const Work work = std::move(queue_.front());
      queue_.pop_front();
      busy_ = true;
      lock.unlock();
      // what a lost device had queued is dropped
      const C_Status status = device_.lost() ? C_ERROR : work();
      lock.lock();
      if (status != C_SUCCESS && failure_ == C_SUCCESS) failure_ = status;
    }
    busy_ = false;
    changed_.notify_all();
  }
}

}  // namespace emulated
