// operator new for programs: small blocks from per-thread free lists. A training step makes thousands of
// short-lived small objects (closures of the tape, shapes, shared_ptr counts, the arguments oneDNN builds),
// the same ones every step; with these lists a steady step calls malloc for none of them.
//   1. Every block comes from malloc, so mixing with memory from elsewhere is safe, and a block's size
//      class is read back with malloc_usable_size: delete needs no size. glibc sometimes hands out a block
//      16 bytes larger than the next one of the same request; classes are 32 bytes apart, so both are of
//      the same class.
//   2. Requests above 64 KiB and over-aligned ones go straight to malloc.
//   3. A list keeps at most 1 MiB; beyond that, delete frees. Lists are emptied at thread exit; what static
//      destructors still do after that goes straight to malloc.
//   4. A block freed by another thread than its maker joins the freer's list.
// Sanitizers bring their own operator new, so this file is then empty; so it is without glibc.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>

#if defined(__GLIBC__) && !defined(LLATTE_SANITIZED)
#include <malloc.h>

namespace {

// Blocks of class c hold kFirst + c * kStep bytes: what malloc gives is always 8 more than a multiple of 16.
constexpr size_t kFirst = 8, kStep = 32, kClasses = 2048, kListBytes = size_t(1) << 20;
constexpr size_t block_bytes(size_t size_class) { return kFirst + size_class * kStep; }
constexpr size_t kLargest = block_bytes(kClasses - 1);

struct Block {
  Block* next;
};

// Plain data, so that it outlives every destructor of its thread.
struct Lists {
  Block* head[kClasses];
  uint32_t count[kClasses];
  bool closer_made, closed;
};
thread_local constinit Lists lists{};

// Empties the lists when the thread ends.
struct Closer {
  ~Closer() {
    lists.closed = true;
    for (Block*& head : lists.head) {
      while (head) {
        Block* next = head->next;
        std::free(head);
        head = next;
      }
    }
  }
};

void make_closer() {
  lists.closer_made = true;
  static thread_local Closer closer;
  (void)closer;
}

// malloc by the rules of operator new: nullptr only if no new_handler is left to make room.
template <class Take>
void* persist(Take take) {
  while (true) {
    if (void* p = take()) return p;
    const std::new_handler handler = std::get_new_handler();
    if (!handler) return nullptr;
    handler();
  }
}

void* take_small(size_t size_class) {
  if (Block* b = lists.head[size_class]) {
    lists.head[size_class] = b->next;
    --lists.count[size_class];
    return b;
  }
  return persist([=] { return std::malloc(block_bytes(size_class)); });
}

void* take(size_t bytes) {
  if (bytes > kLargest) return persist([=] { return std::malloc(bytes); });
  return take_small(bytes <= kFirst ? 0 : (bytes - kFirst + kStep - 1) / kStep);
}

void* take_aligned(size_t bytes, size_t align) {
  if (align <= alignof(std::max_align_t)) return take(bytes);
  return persist([=] { return std::aligned_alloc(align, (bytes + align - 1) / align * align); });
}

void* or_throw(void* p) {
  if (!p) throw std::bad_alloc();
  return p;
}

void give(void* p) noexcept {
  if (!p) return;
  const size_t size_class = (malloc_usable_size(p) - kFirst) / kStep;  // the largest class that fits
  if (size_class >= kClasses || lists.closed ||
      lists.count[size_class] >= kListBytes / block_bytes(size_class))
    return std::free(p);
  if (!lists.closer_made) make_closer();
  Block* b = static_cast<Block*>(p);
  b->next = lists.head[size_class];
  lists.head[size_class] = b;
  ++lists.count[size_class];
}

template <class Take>
void* nothrow(Take take) noexcept {
  try {
    return take();
  } catch (...) {  // a new_handler may throw
    return nullptr;
  }
}

}  // namespace

void* operator new(size_t n) { return or_throw(take(n)); }
void* operator new[](size_t n) { return or_throw(take(n)); }
void* operator new(size_t n, std::align_val_t a) { return or_throw(take_aligned(n, size_t(a))); }
void* operator new[](size_t n, std::align_val_t a) { return or_throw(take_aligned(n, size_t(a))); }
void* operator new(size_t n, const std::nothrow_t&) noexcept {
  return nothrow([=] { return take(n); });
}
void* operator new[](size_t n, const std::nothrow_t&) noexcept {
  return nothrow([=] { return take(n); });
}
void* operator new(size_t n, std::align_val_t a, const std::nothrow_t&) noexcept {
  return nothrow([=] { return take_aligned(n, size_t(a)); });
}
void* operator new[](size_t n, std::align_val_t a, const std::nothrow_t&) noexcept {
  return nothrow([=] { return take_aligned(n, size_t(a)); });
}

void operator delete(void* p) noexcept { give(p); }
void operator delete[](void* p) noexcept { give(p); }
void operator delete(void* p, size_t) noexcept { give(p); }
void operator delete[](void* p, size_t) noexcept { give(p); }
void operator delete(void* p, const std::nothrow_t&) noexcept { give(p); }
void operator delete[](void* p, const std::nothrow_t&) noexcept { give(p); }
void operator delete(void* p, std::align_val_t) noexcept { std::free(p); }
void operator delete[](void* p, std::align_val_t) noexcept { std::free(p); }
void operator delete(void* p, size_t, std::align_val_t) noexcept { std::free(p); }
void operator delete[](void* p, size_t, std::align_val_t) noexcept { std::free(p); }
void operator delete(void* p, std::align_val_t, const std::nothrow_t&) noexcept { std::free(p); }
void operator delete[](void* p, std::align_val_t, const std::nothrow_t&) noexcept { std::free(p); }
#endif
