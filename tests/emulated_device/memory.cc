#include "memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <stdexcept>

namespace emulated {
namespace {

constexpr size_t kGuardBytes = 256;
constexpr unsigned char kGuard = 0xA5;
constexpr size_t kPage = 4096;
constexpr size_t kNowhere = ~size_t{0};

size_t round_up(size_t bytes, size_t to) { return (bytes + to - 1) / to * to; }

char* map(size_t bytes, int protection, int file) {
  void* address = mmap(nullptr, bytes, protection, MAP_SHARED | MAP_NORESERVE, file, 0);
  if (address == MAP_FAILED) throw std::runtime_error("no address space for device memory");
  return static_cast<char*>(address);
}

}  // namespace

// Four times the limit in addresses, so that gaps between blocks never make an allocation fail that the limit allows.
Arena::Arena(size_t limit_bytes, bool poison)
    : limit_(limit_bytes), poison_(poison), space_(round_up(4 * limit_bytes + (size_t{64} << 20), kPage)) {
  file_ = memfd_create("emulated_device", MFD_CLOEXEC);
  if (file_ < 0 || ftruncate(file_, static_cast<off_t>(space_)) != 0) throw std::runtime_error("no file for device memory");
  seen_ = map(space_, PROT_NONE, file_);
  backing_ = map(space_, PROT_READ | PROT_WRITE, file_);
  use_.limit_bytes = limit_;
}

size_t Arena::find_room(size_t bytes) const {
  size_t start = 0;
  for (const auto& [offset, block] : blocks_) {
    if (offset - start >= bytes) return start;
    start = offset + block.payload + kGuardBytes;
  }
  return space_ - start >= bytes ? start : kNowhere;
}

void* Arena::allocate(size_t bytes) {
  std::lock_guard<std::mutex> lock(mutex_);
  const size_t payload = round_up(std::max<size_t>(bytes, 1), kAlignment);
  const size_t offset = payload > limit_ - use_.used_bytes ? kNowhere : find_room(payload + kGuardBytes);
  if (offset == kNowhere) {
    ++use_.refusals;
    return nullptr;
  }
  blocks_[offset] = {payload, bytes};
  if (poison_) std::memset(backing_ + offset, 0xff, payload);
  // the rest of the last 256 bytes belongs to nobody, so it is guarded too
  std::memset(backing_ + offset + bytes, kGuard, payload - bytes + kGuardBytes);
  use_.used_bytes += payload;
  use_.peak_bytes = std::max(use_.peak_bytes, use_.used_bytes);
  ++use_.allocations;
  return seen_ + offset;
}

void Arena::note_refusal() {
  std::lock_guard<std::mutex> lock(mutex_);
  ++use_.refusals;
}

FreeResult Arena::deallocate(void* seen) {
  std::lock_guard<std::mutex> lock(mutex_);
  const char* address = static_cast<char*>(seen);
  const auto found = address < seen_ ? blocks_.end() : blocks_.find(static_cast<size_t>(address - seen_));
  if (found == blocks_.end()) return FreeResult::kUnknown;
  const auto [offset, block] = *found;
  const char* guard = backing_ + offset + block.asked;
  const bool intact = std::all_of(guard, guard + block.payload - block.asked + kGuardBytes,
                                  [](char byte) { return static_cast<unsigned char>(byte) == kGuard; });
  use_.used_bytes -= block.payload;
  ++use_.frees;
  blocks_.erase(found);
  give_back_pages(offset, block.payload + kGuardBytes);
  return intact ? FreeResult::kFreed : FreeResult::kOverrun;
}

// Whole pages between the live neighbours; the memory of the machine is not kept for blocks that are gone.
void Arena::give_back_pages(size_t offset, size_t bytes) const {
  const size_t first = round_up(offset, kPage);
  const size_t last = (offset + bytes) / kPage * kPage;
  if (last > first) {
    fallocate(file_, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(first), static_cast<off_t>(last - first));
  }
}

char* Arena::translate(const void* seen, size_t bytes) const {
  std::lock_guard<std::mutex> lock(mutex_);
  const char* address = static_cast<const char*>(seen);
  if (address < seen_ || address >= seen_ + space_) return nullptr;
  const size_t offset = static_cast<size_t>(address - seen_);
  auto next = blocks_.upper_bound(offset);
  if (next == blocks_.begin()) return nullptr;
  const auto& [start, block] = *std::prev(next);
  return offset + bytes <= start + block.asked ? backing_ + offset : nullptr;
}

bool Arena::overrun(const void* seen) {
  std::lock_guard<std::mutex> lock(mutex_);
  const char* address = static_cast<const char*>(seen);
  if (address < seen_ || address >= seen_ + space_) return false;
  auto next = blocks_.upper_bound(static_cast<size_t>(address - seen_));
  if (next == blocks_.begin()) return false;
  const auto& [start, block] = *std::prev(next);
  backing_[start + block.payload] ^= 0x7f;
  return true;
}

MemoryUse Arena::use() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return use_;
}

}  // namespace emulated
