#include "tensor/alloc.h"
#include <sys/mman.h>
#include <algorithm>
#include <cstdlib>
#include <map>
#include <mutex>
#include <set>
#include <unordered_map>
#include <vector>
#include "tensor/check.h"
#include "tensor/cuda.h"
#ifdef __GLIBC__
#include <malloc.h>  // malloc_trim
#endif

namespace llatte {
namespace {

constexpr size_t kLine = 64, kPage = 4096, kHuge = size_t(2) << 20, kSegment = size_t(16) << 20;
constexpr size_t kCutFrom = size_t(64) << 10, kWholeFrom = kSegment;

size_t round_up(size_t bytes, size_t step) { return (bytes + step - 1) / step * step; }

// What a request takes. Small ones: eight classes per power of two, so that nearly equal requests share
// blocks.
size_t taken_for(size_t bytes) {
  if (bytes >= kWholeFrom) return round_up(bytes, kHuge);
  if (bytes >= kCutFrom) return round_up(bytes, kPage);
  size_t step = kLine;
  while (step * 16 < bytes) step *= 2;
  return std::max(kLine, round_up(bytes, step));
}

char* take_from_system(size_t bytes, size_t align) {
  void* p = std::aligned_alloc(align, bytes);
  LLATTE_CHECK(p, "out of memory: the system refused ", bytes >> 20,
               " MiB; use a smaller micro_batch_size or sequence_length, or recompute_layer: true");
  if (align == kHuge) madvise(p, bytes, MADV_HUGEPAGE);
  return static_cast<char*>(p);
}

bool is_cut(size_t taken) { return kCutFrom <= taken && taken < kWholeFrom; }

// Blocks of middling size are cut to measure from segments of the system's memory: the smallest free piece
// that fits, its rest stays free; a piece given back merges with free neighbours of its segment.
class Segments {
 public:
  // Null: no free piece is large enough.
  void* take(size_t size) {
    const auto fit = free_.lower_bound({size, nullptr});
    if (fit == free_.end()) return nullptr;
    const auto [whole, at] = *fit;
    free_.erase(fit);
    Piece& piece = pieces_.at(at);
    piece.free = false;
    if (whole == size) return at;
    piece.size = size;
    pieces_[at + size] = {whole - size, true, false};
    free_.insert({whole - size, at + size});
    return at;
  }

  void give(void* block) {
    auto here = pieces_.find(static_cast<char*>(block));
    const auto next = std::next(here);
    if (next != pieces_.end() && !next->second.first && next->second.free) absorb_next(here);
    if (!here->second.first && std::prev(here)->second.free) {
      --here;
      free_.erase({here->second.size, here->first});
      absorb_next(here);
    }
    here->second.free = true;
    free_.insert({here->second.size, here->first});
  }

  size_t grow() {
    char* at = take_from_system(kSegment, kHuge);
    pieces_[at] = {kSegment, true, true};
    free_.insert({kSegment, at});
    return kSegment;
  }

  // Segments that are free from end to end go back to the system; their bytes.
  size_t shrink() {
    size_t freed = 0;
    for (auto p = pieces_.begin(); p != pieces_.end();) {
      const bool whole =
          p->second.first && p->second.free && (std::next(p) == pieces_.end() || std::next(p)->second.first);
      if (!whole) {
        ++p;
        continue;
      }
      freed += p->second.size;
      free_.erase({p->second.size, p->first});
      std::free(p->first);
      p = pieces_.erase(p);
    }
    return freed;
  }

 private:
  struct Piece {
    size_t size;
    bool free, first;  // first of its segment
  };
  using Pieces = std::map<char*, Piece>;

  // The piece grows by its right neighbour; `free_` forgets the neighbour if it is there.
  void absorb_next(Pieces::iterator here) {
    const auto next = std::next(here);
    free_.erase({next->second.size, next->first});
    here->second.size += next->second.size;
    pieces_.erase(next);
  }

  Pieces pieces_;                            // all, by address
  std::set<std::pair<size_t, char*>> free_;  // by size, then address
};

struct Cache {
  std::mutex mutex;
  Segments segments;
  std::unordered_map<size_t, std::vector<void*>> whole;  // free blocks by size, of those that are not cut
  AllocStats stats;

  void* take(size_t size) {
    if (is_cut(size)) {
      if (void* block = segments.take(size)) return block;
      count_system(segments.grow());
      return segments.take(size);
    }
    if (auto& list = whole[size]; !list.empty()) {
      void* block = list.back();
      list.pop_back();
      return block;
    }
    count_system(size);
    return take_from_system(size, size < kCutFrom ? kLine : kHuge);
  }

  void count_system(size_t bytes) {
    ++stats.system_requests;
    stats.reserved_bytes += static_cast<int64_t>(bytes);
  }
};

// Never destroyed: tensors in static storage may be released after it would be.
Cache& cache() {
  static Cache* c = new Cache;
  return *c;
}

}  // namespace

void* allocate(size_t bytes, Device device) {
  if (device == Device::cuda) return cuda::allocate(bytes);
  const size_t size = taken_for(bytes);
  Cache& c = cache();
  const std::lock_guard lock(c.mutex);
  void* block = c.take(size);
  ++c.stats.requests;
  c.stats.bytes += static_cast<int64_t>(size);
  c.stats.peak_bytes = std::max(c.stats.peak_bytes, c.stats.bytes);
  c.stats.largest_request = std::max(c.stats.largest_request, static_cast<int64_t>(bytes));
  return block;
}

void release(void* block, size_t bytes, Device device) noexcept {
  if (device == Device::cuda) return cuda::release(block, bytes);
  const size_t size = taken_for(bytes);
  Cache& c = cache();
  const std::lock_guard lock(c.mutex);
  c.stats.bytes -= static_cast<int64_t>(size);
  if (is_cut(size)) c.segments.give(block);
  else c.whole[size].push_back(block);
}

AllocStats alloc_stats(Device device) {
  if (device == Device::cuda) return cuda::alloc_stats();
  const std::lock_guard lock(cache().mutex);
  return cache().stats;
}

void reset_alloc_stats(Device device) {
  if (device == Device::cuda) return cuda::reset_alloc_stats();
  const std::lock_guard lock(cache().mutex);
  AllocStats& s = cache().stats;
  s.peak_bytes = s.bytes;
  s.requests = s.system_requests = s.largest_request = 0;
}

void release_cached_blocks(Device device) {
  if (device == Device::cuda) return cuda::release_cached_blocks();
  Cache& c = cache();
  const std::lock_guard lock(c.mutex);
  c.stats.reserved_bytes -= static_cast<int64_t>(c.segments.shrink());
  for (auto& [size, list] : c.whole) {
    for (void* p : list) std::free(p);
    c.stats.reserved_bytes -= static_cast<int64_t>(size * list.size());
    list.clear();
  }
#ifdef __GLIBC__
  malloc_trim(0);  // what malloc itself holds back
#endif
}

}  // namespace llatte
