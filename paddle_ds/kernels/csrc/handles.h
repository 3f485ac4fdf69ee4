// Objects that live as long as Python holds their handle; operators name them by it.
#pragma once

#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <unordered_map>

#include "decoder.h"
#include "grouped_linear.h"

namespace pds {

template <typename T>
class Handles {
 public:
  int64_t put(std::shared_ptr<T> object) {
    std::lock_guard<std::mutex> lock(mutex_);
    objects_[++last_] = std::move(object);
    return last_;
  }
  std::shared_ptr<T> get(int64_t handle) {
    std::lock_guard<std::mutex> lock(mutex_);
    auto found = objects_.find(handle);
    if (found == objects_.end()) throw std::out_of_range("no object with handle " + std::to_string(handle));
    return found->second;
  }
  void drop(int64_t handle) {
    std::lock_guard<std::mutex> lock(mutex_);
    objects_.erase(handle);
  }

 private:
  std::mutex mutex_;
  int64_t last_ = 0;
  std::unordered_map<int64_t, std::shared_ptr<T>> objects_;
};

Handles<Linear>& linears();
Handles<FloatLinear>& float_linears();
Handles<GroupedLinear>& grouped_linears();
Handles<Decoder>& decoders();

}  // namespace pds
