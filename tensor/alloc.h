// The caching allocator under Storage: memory that was freed is handed out again, so a steady training step
// takes no page fault and makes no system call. Small and very large blocks come in few sizes and are kept
// whole, by size; those between 64 KiB and 16 MiB are cut from segments of 16 MiB. Blocks are 64-byte
// aligned; segments and very large blocks begin on 2 MiB boundaries and are offered to the kernel as huge
// pages. Thread-safe.
#pragma once
#include <cstddef>
#include <cstdint>
#include "tensor/device.h"

namespace llatte {

struct AllocStats {
  int64_t bytes = 0;            // in use now, rounded up to what is handed out
  int64_t peak_bytes = 0;       // highest `bytes` since reset_alloc_stats()
  int64_t reserved_bytes = 0;   // taken from the system: in use + cached
  int64_t requests = 0;         // allocate() calls since reset
  int64_t system_requests = 0;  // of those, how many the cache could not serve
  int64_t largest_request =
      0;  // bytes, as asked for, since reset: proves that no [T,T] or [B*T,V] tensor existed
};

void* allocate(size_t bytes, Device device);  // throws Error when the system has no memory left
void release(void* block, size_t bytes, Device device) noexcept;  // `bytes` as given to allocate
AllocStats alloc_stats(Device device);
void reset_alloc_stats(Device device);  // peak_bytes = bytes, counters = 0
void release_cached_blocks(Device device);

}  // namespace llatte
