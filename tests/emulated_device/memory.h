// Memory of one device: an address space of its own.
//
//   memfd  ├───────────────────────────────────────────────┤
//            mapped at `seen_`     no access: what Paddle gets; a host that dereferences it crashes
//            mapped at `backing_`  read and write: known to kernels and copies only, by translate()
//
// A block: | payload, rounded up to 256 bytes | 256 guard bytes, checked when it is freed |
#pragma once
#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>

namespace emulated {

struct MemoryUse {
  size_t limit_bytes = 0;
  size_t used_bytes = 0;
  size_t peak_bytes = 0;
  uint64_t allocations = 0;
  uint64_t frees = 0;
  uint64_t refusals = 0;
};

enum class FreeResult { kFreed, kOverrun, kUnknown };

class Arena {
 public:
  static constexpr size_t kAlignment = 256;

  // Throws std::runtime_error where the system has no address space left.
  Arena(size_t limit_bytes, bool poison);

  // An address to give to Paddle; null where the limit would be passed. Guard bytes do not count towards it.
  void* allocate(size_t bytes);
  void note_refusal();
  FreeResult deallocate(void* seen);
  // Where bytes at a device address really lie; null unless they are within one live block.
  char* translate(const void* seen, size_t bytes) const;
  // Writes into the guard bytes of a block: for the test that the guard works.
  bool overrun(const void* seen);
  MemoryUse use() const;

 private:
  struct Block {
    size_t payload;  // rounded
    size_t asked;
  };

  size_t find_room(size_t bytes) const;
  void give_back_pages(size_t offset, size_t bytes) const;

  const size_t limit_;
  const bool poison_;
  size_t space_;
  int file_;
  char* seen_;
  char* backing_;
  mutable std::mutex mutex_;
  std::map<size_t, Block> blocks_;  // by offset
  MemoryUse use_;
};

}  // namespace emulated
