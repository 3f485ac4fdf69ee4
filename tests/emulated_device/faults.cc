#include "faults.h"

#include <algorithm>
#include <cstdint>
#include <mutex>
#include <regex>
#include <set>
#include <stdexcept>
#include <vector>

#include "settings.h"

namespace emulated {
namespace {

struct Rule {
  std::string kind;
  std::string command;  // empty: any
  uint64_t passed;
  uint64_t times;
  int device;  // -1: any

  // Counts one command or allocation, and tells whether it is hit.
  bool hits(int on_device, const std::string& of) {
    if ((device >= 0 && device != on_device) || (!command.empty() && command != of)) return false;
    if (passed > 0) {
      --passed;
      return false;
    }
    if (times == 0) return false;
    --times;
    return true;
  }
};

std::mutex& mutex() {
  static std::mutex& instance = *new std::mutex;
  return instance;
}

std::vector<Rule>& rules() {
  static std::vector<Rule>& instance = *new std::vector<Rule>;
  return instance;
}

Rule parse(const std::string& text) {
  static const std::regex form("([a-z_]+)(?::([a-z0-9_]+))?(?:@([0-9]{1,9}))?(?:\\*([0-9]{1,9}))?(?:#([0-9]{1,3}))?");
  static const std::set<std::string> kinds = {"allocation", "stuck", "lost", "launch_error", "kernel_error", "nan"};
  std::smatch parts;
  if (!std::regex_match(text, parts, form)) throw std::runtime_error("not a fault: '" + text + "'");
  if (kinds.count(parts[1]) == 0) throw std::runtime_error("no fault of this kind: '" + text + "'");
  if (parts[1] == "allocation" && parts[2].matched) throw std::runtime_error("an allocation has no command: '" + text + "'");
  return {parts[1], parts[2], parts[3].matched ? std::stoull(parts[3]) : 0, parts[4].matched ? std::stoull(parts[4]) : UINT64_MAX,
          parts[5].matched ? std::stoi(parts[5]) : -1};
}

}  // namespace

void arm(const std::string& text) {
  std::vector<Rule> added;
  for (const std::string& piece : split(text, ',')) added.push_back(parse(piece));
  std::lock_guard<std::mutex> lock(mutex());
  rules().insert(rules().end(), added.begin(), added.end());
}

void disarm() {
  std::lock_guard<std::mutex> lock(mutex());
  rules().clear();
}

bool allocation_fails(int device) {
  std::lock_guard<std::mutex> lock(mutex());
  bool fails = false;
  for (Rule& rule : rules()) {
    if (rule.kind == "allocation" && rule.hits(device, "")) fails = true;
  }
  return fails;
}

CommandFault on_command(int device, const std::string& command) {
  std::lock_guard<std::mutex> lock(mutex());
  CommandFault fault;
  for (Rule& rule : rules()) {
    if (rule.kind == "allocation" || !rule.hits(device, command)) continue;
    fault.stuck |= rule.kind == "stuck";
    fault.lost |= rule.kind == "lost";
    fault.launch_error |= rule.kind == "launch_error";
    fault.kernel_error |= rule.kind == "kernel_error";
    fault.nan |= rule.kind == "nan";
  }
  return fault;
}

}  // namespace emulated
