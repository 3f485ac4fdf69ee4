#include "report.h"

#include <fstream>
#include <sstream>
#include <stdexcept>

#include "copies.h"
#include "device.h"
#include "faults.h"
#include "settings.h"

namespace emulated {
namespace {

void write_device(std::ostream& out, Device& device) {
  const MemoryUse use = device.arena.use();
  out << "{\"device\": " << device.logical << ", \"physical\": " << device.physical
      << ", \"lost\": " << (device.lost() ? "true" : "false") << ", \"violations\": " << device.violations
      << ", \"limit_bytes\": " << use.limit_bytes << ", \"used_bytes\": " << use.used_bytes
      << ", \"peak_bytes\": " << use.peak_bytes << ", \"allocations\": " << use.allocations << ", \"frees\": " << use.frees
      << ", \"refused_allocations\": " << use.refusals << ", \"commands\": {";
  const char* separator = "";
  for (const auto& [name, count] : device.commands()) {
    out << separator << '"' << name << "\": [" << count.calls << ", " << count.bytes << ']';
    separator = ", ";
  }
  out << "}}";
}

}  // namespace

std::string report() {
  std::ostringstream out;
  out << "{\"type\": \"" << settings().type << "\", \"devices\": [";
  const char* separator = "";
  for (Device* device : devices()) {
    out << separator;
    write_device(out, *device);
    separator = ", ";
  }
  out << "]}";
  return out.str();
}

void write_report(const std::string& path) {
  std::ofstream file(path);
  file << report() << '\n';
  if (!file.flush()) complain("cannot write counters to " + path);
}

}  // namespace emulated

#define EXPORTED extern "C" __attribute__((visibility("default")))

// The text stays valid until the same thread asks again.
EXPORTED const char* emulated_report() {
  thread_local std::string text;
  text = emulated::report();
  return text.c_str();
}

EXPORTED void emulated_reset_counters() {
  for (emulated::Device* device : emulated::devices()) device->reset_commands();
}

// 0, or -1 and a line on stderr.
EXPORTED int emulated_arm(const char* faults) {
  try {
    emulated::arm(faults);
    return 0;
  } catch (const std::exception& error) {
    emulated::complain(error.what());
    return -1;
  }
}

// Takes armed faults away and lets stuck streams go on. A lost device stays lost.
EXPORTED void emulated_release() {
  emulated::disarm();
  for (emulated::Device* device : emulated::devices()) device->release_streams();
}

// Stops all streams of a device, as if it were busy for long, until emulated_release().
EXPORTED void emulated_hold(int device) { emulated::devices().at(static_cast<size_t>(device))->hold_streams(); }

// Copies from an address as Paddle would have it copied, and answers what it would be answered.
EXPORTED int emulated_read(int device, const void* address, void* to, size_t bytes) {
  C_DeviceInterface table{};
  emulated::fill_copies(&table);
  C_Device_st handle{device};
  return table.memory_copy_d2h(&handle, to, address, bytes);
}

EXPORTED int emulated_overrun(int device, const void* address) {
  return emulated::devices().at(static_cast<size_t>(device))->arena.overrun(address) ? 0 : -1;
}
