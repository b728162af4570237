#include "tensor/alloc.h"
#include <sys/mman.h>
#include <algorithm>
#include <cstdlib>
#include <mutex>
#include <unordered_map>
#include <vector>
#include "tensor/check.h"

namespace llatte {
namespace {

constexpr size_t kLine = 64, kHuge = size_t(2) << 20, kHugeFrom = size_t(1) << 20;

// Eight classes per power of two: at most 1/8 is lost to rounding, and nearly equal requests share blocks.
size_t size_class(size_t bytes) {
  size_t step = kLine;
  while (step * 16 < bytes) step *= 2;
  return std::max(kLine, (bytes + step - 1) / step * step);
}

void* take_from_system(size_t bytes) {
  const size_t align = bytes >= kHugeFrom ? kHuge : kLine;
  void* p = std::aligned_alloc(align, (bytes + align - 1) / align * align);
  LLATTE_CHECK(p, "out of memory: the system refused ", bytes >> 20,
               " MiB; use a smaller micro_batch_size or sequence_length, or recompute_layer: true");
  if (align == kHuge) madvise(p, bytes, MADV_HUGEPAGE);
  return p;
}

struct Cache {
  std::mutex mutex;
  std::unordered_map<size_t, std::vector<void*>> free_blocks;  // by size class
  AllocStats stats;
};

// Never destroyed: tensors in static storage may be released after it would be.
Cache& cache() {
  static Cache* c = new Cache;
  return *c;
}

void require_cpu(Device d) {
  LLATTE_CHECK(d == Device::cpu, "allocate: this build has no CUDA (make CUDA=1)");
}

}  // namespace

void* allocate(size_t bytes, Device device) {
  require_cpu(device);
  const size_t size = size_class(bytes);
  Cache& c = cache();
  const std::lock_guard lock(c.mutex);
  void* block = nullptr;
  if (auto& list = c.free_blocks[size]; !list.empty()) {
    block = list.back();
    list.pop_back();
  } else {
    block = take_from_system(size);
    ++c.stats.system_requests;
    c.stats.reserved_bytes += static_cast<int64_t>(size);
  }
  ++c.stats.requests;
  c.stats.bytes += static_cast<int64_t>(size);
  c.stats.peak_bytes = std::max(c.stats.peak_bytes, c.stats.bytes);
  c.stats.largest_request = std::max(c.stats.largest_request, static_cast<int64_t>(bytes));
  return block;
}

void release(void* block, size_t bytes, Device) noexcept {
  const size_t size = size_class(bytes);
  Cache& c = cache();
  const std::lock_guard lock(c.mutex);
  c.stats.bytes -= static_cast<int64_t>(size);
  c.free_blocks[size].push_back(block);
}

AllocStats alloc_stats(Device device) {
  require_cpu(device);
  const std::lock_guard lock(cache().mutex);
  return cache().stats;
}

void reset_alloc_stats(Device device) {
  require_cpu(device);
  const std::lock_guard lock(cache().mutex);
  AllocStats& s = cache().stats;
  s.peak_bytes = s.bytes;
  s.requests = s.system_requests = s.largest_request = 0;
}

void release_cached_blocks(Device device) {
  require_cpu(device);
  Cache& c = cache();
  const std::lock_guard lock(c.mutex);
  for (auto& [size, list] : c.free_blocks) {
    for (void* p : list) std::free(p);
    c.stats.reserved_bytes -= static_cast<int64_t>(size * list.size());
    list.clear();
  }
}

}  // namespace llatte
