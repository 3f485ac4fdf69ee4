// What the environment says about the devices. Read once, when Paddle loads the plug-in.
#pragma once
#include <cstddef>
#include <string>
#include <vector>

namespace emulated {

struct Settings {
  std::string type;               // EMULATED_DEVICE_TYPE: the name under which Paddle shows the devices
  std::vector<int> physical_ids;  // EMULATED_DEVICE_COUNT, cut down by the variable that EMULATED_DEVICE_VISIBLE_VARIABLE names
  size_t memory_bytes;            // EMULATED_DEVICE_MEMORY_BYTES, of each device
  std::string kernels;            // EMULATED_DEVICE_KERNELS: "full", "none", "full,-softmax" or "matmul,softmax"
  std::string faults;             // EMULATED_DEVICE_FAULT, see faults.h
  std::string report_path;        // EMULATED_DEVICE_REPORT: counters are written there at exit, as JSON
  bool null_when_full;            // EMULATED_DEVICE_WHEN_FULL: "null" for a null pointer and C_SUCCESS, "status" for C_FAILED
  bool poison;                    // EMULATED_DEVICE_POISON: new memory is filled with 0xff, which is NaN in every float type
};

// Throws std::runtime_error where a variable is absent or cannot be understood.
const Settings& settings();

// Pieces of `text` between the separators, in order; none of an empty text.
std::vector<std::string> split(const std::string& text, char separator);

// A line on stderr, prefixed with the device type.
void complain(const std::string& text);

}  // namespace emulated
