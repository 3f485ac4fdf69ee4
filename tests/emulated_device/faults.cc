#include "faults.h"

#include <cstdint>
#include <mutex>
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
  uint64_t device;  // UINT64_MAX: any

  // Counts one command or allocation, and tells whether it is hit.
  bool hits(int on_device, const std::string& of) {
    if ((device != UINT64_MAX && device != static_cast<uint64_t>(on_device)) || (!command.empty() && command != of)) return false;
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

// Digits behind a mark, or `absent` where the mark is not there; takes both off the end of the text.
uint64_t take_number(std::string& text, char mark, uint64_t absent) {
  const size_t at = text.rfind(mark);
  if (at == std::string::npos) return absent;
  const std::string digits = text.substr(at + 1);
  const bool numeric = !digits.empty() && digits.size() < 10 && digits.find_first_not_of("0123456789") == std::string::npos;
  if (!numeric) throw std::runtime_error("no number after '" + std::string(1, mark) + "' in '" + text + "'");
  text.resize(at);
  return std::stoull(digits);
}

Rule parse(const std::string& whole) {
  static const std::set<std::string> kinds = {"allocation", "stuck", "lost", "gone", "launch_error", "kernel_error", "nan"};
  std::string text = whole;
  const uint64_t device = take_number(text, '#', UINT64_MAX);
  const uint64_t times = take_number(text, '*', UINT64_MAX);
  const uint64_t passed = take_number(text, '@', 0);
  const size_t colon = text.find(':');
  const std::string kind = text.substr(0, colon);
  const std::string command = colon == std::string::npos ? "" : text.substr(colon + 1);
  if (kinds.count(kind) == 0) throw std::runtime_error("no fault of this kind: '" + whole + "'");
  if (colon != std::string::npos && command.empty()) throw std::runtime_error("no command after ':' in '" + whole + "'");
  if (kind == "allocation" && !command.empty()) throw std::runtime_error("an allocation has no command: '" + whole + "'");
  return {kind, command, passed, times, device};
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
    fault.gone |= rule.kind == "gone";
    fault.launch_error |= rule.kind == "launch_error";
    fault.kernel_error |= rule.kind == "kernel_error";
    fault.nan |= rule.kind == "nan";
  }
  return fault;
}

}  // namespace emulated
