// The device's memory: an address range of its own, closed to the host except while kernels and copies run.
//   1. Every allocation lies between redzones. New and freed memory is poison: NaN, whatever type reads it.
//   2. Host code that touches device memory traps, and the trap says so before the program ends.
//   3. Under ASan all that is not allocated is poisoned for ASan too, which then names the very access.
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>
#include <algorithm>
#include <cstdio>
#include <deque>
#include <map>
#include "machine.h"

namespace cuda_on_cpu {
namespace {

constexpr size_t kReserved = size_t(64) << 30;   // of addresses
constexpr size_t kCapacity = size_t(16) << 30;   // what the device says it has
constexpr size_t kCheckedAtOnce = 512;           // allocations, after each kernel
constexpr size_t kQuarantine = size_t(1) << 16;  // freed bytes that are not handed out again yet
constexpr size_t kPoisoned = size_t(1)
                             << 26;  // of a larger allocation only the beginning is, for the host's sake
constexpr size_t kAlign = 256, kHugePage = size_t(2) << 20;

struct Cell {  // of an allocation: redzone, its bytes, what is missing to a multiple of kAlign, redzone
  size_t size = 0, bytes = 0;
};
struct Fill {
  char* cell;
  Cell what;
  bool live;
};

struct Memory {
  char* base = nullptr;
  size_t opened = 0;               // bytes from base that DeviceAccess opens
  size_t end = 0;                  // bytes from base that have ever been part of a cell
  std::map<char*, Cell> live;      // by the cell's address
  std::map<char*, size_t> unused;  // holes
  std::deque<std::pair<char*, size_t>> quarantine;
  size_t quarantined = 0, in_use = 0, reserved = 0;
  std::vector<Fill> fills;  // poison to be spread as soon as memory is open
  std::map<char*, size_t> pinned;
  int open = 0;
};

Memory& memory() {
  static auto* m = [] {
    auto* fresh = new Memory;
    void* at = mmap(nullptr, kReserved, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED) throw Fault("cuda_on_cpu: no addresses left for the device's memory");
    madvise(at, kReserved, MADV_HUGEPAGE);
    fresh->base = static_cast<char*>(at);
    return fresh;
  }();
  return *m;
}

char* payload(char* cell) { return cell + kRedzone; }
size_t rounded(size_t n, size_t to) { return (n + to - 1) / to * to; }

// The allocation that begins at or before `at`, or live.end().
auto at_or_before(const void* at) {
  Memory& m = memory();
  auto it = m.live.upper_bound(static_cast<char*>(const_cast<void*>(at)));
  return it == m.live.begin() ? m.live.end() : std::prev(it);
}

// Where `at` lies, for reports.
std::string describe(const void* at) {
  if (!is_device(at)) return sentence(at, " is host memory");
  const auto it = at_or_before(at);
  if (it == memory().live.end())
    return sentence(at, " is no allocation of the device (freed, or never made)");
  const auto* begin = payload(it->first);
  const auto past = static_cast<const char*>(at) - (begin + it->second.bytes);
  if (static_cast<const char*>(at) < begin)
    return sentence(at, " lies before an allocation of ", it->second.bytes, " bytes");
  if (static_cast<const char*>(at) >= it->first + it->second.size)
    return sentence(at, " is no allocation of the device (freed, or never made)");
  if (past >= 0)
    return sentence(at, " lies ", past, " bytes past the end of an allocation of ", it->second.bytes,
                    " bytes");
  return sentence(at, " lies in an allocation of ", it->second.bytes, " bytes");
}

// Redzones hold signalling NaNs, which arithmetic does not leave as they are, and each allocation's its own,
// so that a copy from one redzone to another shows too. (As f64 it is a number near 1e306.)
uint16_t guard_of(const char* cell) {
  return static_cast<uint16_t>(kGuard + reinterpret_cast<uintptr_t>(cell) / kAlign % 61);
}

void spread(const Fill& f) {
  const size_t used = kRedzone + f.what.bytes;
  ASAN_UNPOISON_MEMORY_REGION(f.cell, f.what.size);
  if (f.live) {
    fill(f.cell, kRedzone, guard_of(f.cell));
    fill(payload(f.cell), std::min(f.what.bytes, kPoisoned), kPoison);
    fill(f.cell + used / 2 * 2, f.what.size - used / 2 * 2, guard_of(f.cell));
    ASAN_POISON_MEMORY_REGION(f.cell, kRedzone);
    ASAN_POISON_MEMORY_REGION(f.cell + used, f.what.size - used);
  } else {
    fill(f.cell, std::min(f.what.size, kPoisoned), kPoison);
    ASAN_POISON_MEMORY_REGION(f.cell, f.what.size);
  }
}

// ---- holes
void add_hole(char* at, size_t size) {
  auto& holes = memory().unused;
  auto next = holes.lower_bound(at);
  if (next != holes.end() && at + size == next->first) size += next->second, next = holes.erase(next);
  if (next != holes.begin()) {
    auto before = std::prev(next);
    if (before->first + before->second == at) {
      before->second += size;
      return;
    }
  }
  holes[at] = size;
}

char* take_hole(size_t size) {
  auto& holes = memory().unused;
  for (auto it = holes.begin(); it != holes.end(); ++it) {
    if (it->second < size) continue;
    char* at = it->first;
    const size_t left = it->second - size;
    holes.erase(it);
    if (left) holes[at + size] = left;
    return at;
  }
  return nullptr;
}

char* take_new(size_t size) {
  Memory& m = memory();
  if (m.in_use + size > kCapacity || m.end + size > kReserved) return nullptr;
  char* at = m.base + m.end;
  m.end += size;
  if (m.end > m.opened) {
    m.opened = rounded(m.end, kHugePage);
    if (m.open) mprotect(m.base, m.opened, PROT_READ | PROT_WRITE);
  }
  return at;
}

// Freed bytes, already filled with poison, rest here for a while, so that late writes are seen.
void put_in_quarantine(char* cell, size_t size) {
  Memory& m = memory();
  m.quarantine.emplace_back(cell, size);
  m.quarantined += size;
  while (m.quarantined > kQuarantine) {
    const auto [oldest, bytes] = m.quarantine.front();
    m.quarantine.pop_front();
    m.quarantined -= bytes;
    add_hole(oldest, bytes);
  }
}

// ---- traps
struct sigaction previous_action;

void say(const char* text) {
  if (write(STDERR_FILENO, text, strlen(text)) < 0) return;
}

void explain(const void* address) {
  uint3 t;
  char text[512];
  const bool in_kernel = current_thread(t);
  if (in_kernel)
    snprintf(text, sizeof text,
             "cuda_on_cpu: kernel %s, block (%u,%u,%u), thread (%u,%u,%u): ", running_kernel().c_str(),
             blockIdx.x, blockIdx.y, blockIdx.z, t.x, t.y, t.z);
  else snprintf(text, sizeof text, "cuda_on_cpu: ");
  say(text);
  if (in_kernel && in_guard_page_of_a_stack(address))
    say("its local variables do not fit on the stand-in's stack\n");
  else if (is_device(address) && !in_kernel)
    say("host code touched device memory; only kernels and copies may\n");
  else snprintf(text, sizeof text, "an access to the address %p, which is no memory\n", address), say(text);
}

void trapped(int signal, siginfo_t* info, void* context) {
  explain(info->si_addr);
  if (previous_action.sa_flags & SA_SIGINFO) return previous_action.sa_sigaction(signal, info, context);
  sigaction(signal, &previous_action, nullptr);  // the access happens again, and this time it counts
}

// Test frameworks put their own handler in place now and then: this one goes before it.
void install_handler() {
  thread_local std::unique_ptr<char[]> stack;
  stack_t old{};
  sigaltstack(nullptr, &old);
  if (old.ss_flags & SS_DISABLE) {
    stack = std::make_unique<char[]>(64 * 1024);
    const stack_t fresh{stack.get(), 0, 64 * 1024};
    sigaltstack(&fresh, nullptr);
  }
  struct sigaction ours {
  }, before{};
  ours.sa_sigaction = trapped;
  ours.sa_flags = SA_SIGINFO | SA_ONSTACK;
  sigaction(SIGSEGV, &ours, &before);
  if (before.sa_sigaction != trapped) previous_action = before;
}

}  // namespace

void fill(void* at, size_t bytes, uint16_t pattern) {
  auto* p = static_cast<char*>(at);
  for (size_t i = 0; i + 1 < bytes; i += 2) memcpy(p + i, &pattern, 2);
}

bool holds(const void* at, size_t bytes, uint16_t pattern) {
  const auto* p = static_cast<const char*>(at);
  return bytes < 2 || (memcmp(p, &pattern, 2) == 0 && memcmp(p, p + 2, bytes - 2) == 0);
}

DeviceAccess::DeviceAccess() {
  Memory& m = memory();
  if (m.open++) return;
  install_handler();
  if (m.opened) mprotect(m.base, m.opened, PROT_READ | PROT_WRITE);
  for (const Fill& f : m.fills) spread(f);
  m.fills.clear();
}
DeviceAccess::~DeviceAccess() {
  Memory& m = memory();
  if (--m.open) return;
  if (m.opened) mprotect(m.base, m.opened, PROT_NONE);
}

void* allocate_device(size_t bytes) {
  Memory& m = memory();
  const size_t size = rounded(bytes, kAlign) + 2 * kRedzone;
  char* cell = take_hole(size);
  if (!cell) cell = take_new(size);
  if (!cell) return nullptr;
  m.live[cell] = {size, bytes};
  m.in_use += size;
  m.reserved = std::max(m.reserved, rounded(m.in_use, kHugePage));
  install_handler();
  if (m.open) spread({cell, {size, bytes}, true});
  else m.fills.push_back({cell, {size, bytes}, true});
  return payload(cell);
}

std::function<void()> release_device(void* at) {
  Memory& m = memory();
  const auto it = m.live.find(static_cast<char*>(at) - kRedzone);
  if (it == m.live.end()) throw Fault("cudaFree: " + describe(at) + ", and not its beginning");
  const Fill fill{it->first, it->second, false};
  m.live.erase(it);
  m.in_use -= fill.what.size;
  return [fill] {
    spread(fill);
    put_in_quarantine(fill.cell, fill.what.size);
  };
}

void* allocate_pinned(size_t bytes) {
  void* at = std::aligned_alloc(4096, rounded(std::max<size_t>(bytes, 1), 4096));
  fill(at, bytes, kPoison);
  memory().pinned[static_cast<char*>(at)] = bytes;
  return at;
}
void release_pinned(void* at) {
  if (!memory().pinned.erase(static_cast<char*>(at)))
    throw Fault(sentence("cudaFreeHost: ", at, " was not made by cudaMallocHost"));
  std::free(at);
}

bool is_device(const void* at) {
  const auto* a = static_cast<const char*>(at);
  return a >= memory().base && a < memory().base + kReserved;
}

bool is_pinned(const void* at, size_t bytes) {
  auto& pinned = memory().pinned;
  const auto* a = static_cast<const char*>(at);
  auto it = pinned.upper_bound(const_cast<char*>(a));
  if (it == pinned.begin()) return false;
  --it;
  if (a >= it->first + std::max<size_t>(it->second, 1)) return false;
  if (a + bytes > it->first + it->second)
    throw Fault(sentence("a copy of ", bytes, " bytes runs past the end of a pinned buffer of ", it->second,
                         " bytes"));
  return true;
}

void check_device_range(const std::string& what, const void* at, size_t bytes) {
  if (bytes == 0) return;
  const auto it = is_device(at) ? at_or_before(at) : memory().live.end();
  const auto* a = static_cast<const char*>(at);
  if (it == memory().live.end() || a < payload(it->first) || a >= payload(it->first) + it->second.bytes)
    throw Fault(what + ": " + describe(at));
  const auto* end = payload(it->first) + it->second.bytes;
  if (a + bytes > end)
    throw Fault(sentence(what, ": ", bytes, " bytes run ", a + bytes - end,
                         " bytes past the end of an allocation of ", it->second.bytes, " bytes"));
}

void check_kernel_pointer(const std::string& kernel, const PointerArgument& p) {
  if (!p.at || (!is_device(p.at) && is_pinned(p.at, 0))) return;
  const auto it = is_device(p.at) ? at_or_before(p.at) : memory().live.end();
  const auto* a = static_cast<const char*>(p.at);
  if (it != memory().live.end() && a >= payload(it->first) && a <= payload(it->first) + it->second.bytes)
    return;
  throw Fault(sentence("kernel ", kernel, ": pointer in argument ", p.number, ": ", describe(p.at)));
}

// What was found is mended, so that it is reported once.
template <class Sentence>
void check_holds(char* at, size_t bytes, uint16_t pattern, Sentence&& otherwise) {
  if (holds(at, bytes, pattern)) return;
  fill(at, bytes, pattern);
  throw Fault(otherwise());
}

void check_around(char* cell, const Cell& c, const std::string& kernel) {
  const uint16_t guard = guard_of(cell);
  const size_t used = rounded(kRedzone + c.bytes, 2);
  const auto wrote = [&](const char* where) {
    return [&, where] {
      return sentence("kernel ", kernel, ": wrote ", where, " of an allocation of ", c.bytes, " bytes");
    };
  };
  check_holds(cell, kRedzone, guard, wrote("before the beginning"));
  check_holds(cell + used, c.size - used, guard, wrote("past the end"));
}

// All redzones, if there are not too many; else those in turn, and the sentence may name a later kernel.
void check_redzones(const std::string& kernel) {
  if (kAsan) return;
  static char* next = nullptr;
  auto& live = memory().live;
  auto it = live.lower_bound(next);
  for (size_t left = std::min(live.size(), kCheckedAtOnce); left > 0; --left, ++it) {
    if (it == live.end()) it = live.begin();
    check_around(it->first, it->second, kernel);
  }
  next = it == live.end() ? nullptr : it->first;
  for (const auto& [cell, size] : memory().quarantine)
    check_holds(cell, size, kPoison,
                [&] { return sentence("kernel ", kernel, ": wrote to freed device memory"); });
}

size_t device_bytes_in_use() { return memory().in_use; }
size_t device_bytes_reserved() { return memory().reserved; }
void trim_reserved() { memory().reserved = rounded(memory().in_use, kHugePage); }
size_t device_capacity() { return kCapacity; }

}  // namespace cuda_on_cpu
