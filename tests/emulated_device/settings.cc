#include "settings.h"

#include <cstdio>
#include <cstdlib>
#include <sstream>
#include <stdexcept>

namespace emulated {
namespace {

std::string variable(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

size_t number(const char* name) {
  const std::string text = variable(name);
  size_t used = 0;
  unsigned long long value = 0;
  try {
    value = std::stoull(text, &used);
  } catch (const std::exception&) {
    used = 0;
  }
  if (text.empty() || used != text.size()) throw std::runtime_error(std::string(name) + " is not a number: '" + text + "'");
  return value;
}

// As the vendors' runtimes do it: "1,0" shows two devices in that order, an empty or absent variable shows all.
std::vector<int> visible_ids(size_t count) {
  std::vector<int> ids;
  const std::string name = variable("EMULATED_DEVICE_VISIBLE_VARIABLE");
  const std::string list = name.empty() ? "" : variable(name.c_str());
  if (list.empty()) {
    for (size_t id = 0; id < count; ++id) ids.push_back(static_cast<int>(id));
    return ids;
  }
  for (const std::string& text : split(list, ',')) {
    const int id = text.find_first_not_of("0123456789") == std::string::npos && !text.empty() ? std::atoi(text.c_str()) : -1;
    if (id < 0 || static_cast<size_t>(id) >= count) throw std::runtime_error(name + "=" + list + ": no device '" + text + "'");
    ids.push_back(id);
  }
  return ids;
}

Settings read() {
  Settings result;
  result.type = variable("EMULATED_DEVICE_TYPE");
  if (result.type.empty()) throw std::runtime_error("EMULATED_DEVICE_TYPE is not set");
  result.physical_ids = visible_ids(number("EMULATED_DEVICE_COUNT"));
  result.memory_bytes = number("EMULATED_DEVICE_MEMORY_BYTES");
  result.kernels = variable("EMULATED_DEVICE_KERNELS");
  result.faults = variable("EMULATED_DEVICE_FAULT");
  result.report_path = variable("EMULATED_DEVICE_REPORT");
  const std::string when_full = variable("EMULATED_DEVICE_WHEN_FULL");
  if (when_full != "null" && when_full != "status") throw std::runtime_error("EMULATED_DEVICE_WHEN_FULL: '" + when_full + "'");
  result.null_when_full = when_full == "null";
  result.poison = variable("EMULATED_DEVICE_POISON") == "1";
  return result;
}

}  // namespace

const Settings& settings() {
  // never destroyed: worker threads may outlive static destruction
  static const Settings& instance = *new Settings(read());
  return instance;
}

std::vector<std::string> split(const std::string& text, char separator) {
  std::vector<std::string> pieces;
  std::istringstream stream(text);
  for (std::string piece; std::getline(stream, piece, separator);) pieces.push_back(piece);
  return pieces;
}

void complain(const std::string& text) {
  const char* type = std::getenv("EMULATED_DEVICE_TYPE");
  std::fprintf(stderr, "emulated device %s: %s\n", type == nullptr ? "?" : type, text.c_str());
}

}  // namespace emulated
