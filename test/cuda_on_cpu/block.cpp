// One block of threads on one OS thread: each CUDA thread that has to wait is a fiber of its own.
//   1. A fiber runs one thread after the other until one waits: kernels without barriers never switch.
//   2. Whoever waits hands over to a random other thread, so that every phase between two barriers runs in
//      another order: what was not separated by a barrier is seen in the wrong order sooner or later.
//   3. When nobody can go on, the block is stuck, and the sentence says who waits where for whom.
#include <sys/mman.h>
#include <boost/context/detail/fcontext.hpp>
#include <exception>
#include <numeric>
#include "machine.h"
#include "sanitizers.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace cuda_on_cpu {
namespace {

namespace ctx = boost::context::detail;

constexpr size_t kPage = 4096, kStack = (kAsan ? 256 : 64) * 1024;
constexpr unsigned kMaxThreads = 1024, kLanes = 32;
constexpr size_t kMaxShared = 227 * 1024;

struct Fiber {
  ctx::fcontext_t context = nullptr;
  char* stack = nullptr;  // a guard page, then kStack bytes; null: the OS thread's own
  FiberShadow shadow;
};

enum class State { running, at_barrier, in_warp, exited };

struct Thread {
  Fiber* fiber;
  State state;
  Site site;  // of what it waits for
  Collective kind;
  unsigned mask;
  int source;
  uint64_t value, answer;
  BlockVote vote;
};

struct Warp {
  unsigned waiting = 0, exited = 0;  // bits of lanes; lanes that never existed count as exited
};

struct Block {
  const Launch* launch = nullptr;
  Random random{0};
  Shuffled order{1, random};
  unsigned size = 0, started = 0, exited = 0, current = 0;
  Thread threads[kMaxThreads];
  Warp warps[kMaxThreads / kLanes];
  unsigned ready[kMaxThreads], ready_count = 0;
  unsigned at_barrier = 0, first_at_barrier = 0, votes = 0;
  std::exception_ptr fault;
};

Block block;
bool block_runs = false;
Fiber os_thread;
Fiber* running = &os_thread;
std::vector<std::unique_ptr<Fiber>> fibers;
std::vector<Fiber*> idle;

struct SharedMemory {
  char* base = static_cast<char*>(std::aligned_alloc(1024, (kMaxShared + 1024 + 2 * kRedzone) / 1024 * 1024));
  char* begin() { return base + kRedzone; }
} shared;

// ---- names for reports
uint3 index_of(unsigned t) {
  const dim3& n = blockDim;
  if (n.y == 1 && n.z == 1) return {t, 0, 0};
  return {t % n.x, t / n.x % n.y, t / n.x / n.y};
}
std::string place(const Site& site) {
  const std::string path = site.file_name();
  return sentence(path.substr(path.rfind('/') + 1), ":", site.line());
}
std::string where() { return sentence("kernel ", block.launch->name, ", block ", blockIdx); }
std::string who(unsigned t) { return sentence("thread ", index_of(t)); }
std::string running_thread() { return where() + ", " + who(block.current) + ": "; }

std::string doing(unsigned t) {
  const Thread& thread = block.threads[t];
  if (thread.state == State::exited) return "has returned";
  if (thread.state == State::at_barrier) return "waits at __syncthreads (" + place(thread.site) + ")";
  return sentence("waits for the lanes ", std::hex, "0x", thread.mask, " of its warp (", place(thread.site),
                  ")");
}

// ---- switching
void arrived(ctx::transfer_t from) {
  static_cast<Fiber*>(from.data)->context = from.fctx;
  finish_switch(running->shadow);
}
void switch_to(Fiber* to) {
  if (to == running) return;
  Fiber* from = running;
  running = to;
  start_switch(from->shadow, to->shadow);
  arrived(ctx::jump_fcontext(to->context, from));
}

void fiber_main(ctx::transfer_t from);

// The tops of the stacks are staggered, so that they don't all want the same lines of the cache.
void renew(Fiber& f, size_t number) {
  ASAN_UNPOISON_MEMORY_REGION(f.stack + kPage, kStack);
  const size_t size = kStack - number % 32 * 192;
  f.context = ctx::make_fcontext(f.stack + kPage + size, size, fiber_main);
  new_stack(f.shadow, f.stack + kPage, kStack);
}

Fiber* new_fiber() {
  auto f = std::make_unique<Fiber>();
  void* at = mmap(nullptr, kPage + kStack, PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (at == MAP_FAILED) throw Fault("cuda_on_cpu: no memory for another thread's stack");
  mprotect(at, kPage, PROT_NONE);
  f->stack = static_cast<char*>(at);
  renew(*f, fibers.size());
  fibers.push_back(std::move(f));
  return fibers.back().get();
}

// After a fault: threads that were left in the middle are forgotten.
void renew_all() {
  idle.clear();
  for (size_t i = 0; i < fibers.size(); ++i) {
    renew(*fibers[i], i);
    idle.push_back(fibers[i].get());
  }
}

Fiber* idle_fiber() {
  if (idle.empty()) return new_fiber();
  Fiber* f = idle.back();
  idle.pop_back();
  return f;
}

// ---- who goes on
void make_current(unsigned t) {
  block.current = t;
  threadIdx = index_of(t);
}
void make_ready(unsigned t) {
  block.threads[t].state = State::running;
  block.ready[block.ready_count++] = t;
}

std::string why_stuck() {
  unsigned waiting = 0, other = 0;
  while (block.threads[waiting].state == State::exited) ++waiting;
  for (unsigned t = 0; t < block.size; ++t)
    if (block.threads[t].state == State::at_barrier) waiting = t;
  const Thread& w = block.threads[waiting];
  const bool warp = w.state == State::in_warp;
  const auto keeps_waiting = [&](unsigned t) {
    const Thread& o = block.threads[t];
    if (!warp) return o.state != State::at_barrier;
    return t / kLanes == waiting / kLanes && (w.mask >> t % kLanes & 1) &&
           (o.state != State::in_warp || o.mask != w.mask);
  };
  while (other + 1 < block.size && !keeps_waiting(other)) ++other;
  return sentence(where(), ": ", who(waiting), " ", doing(waiting), ", but ", who(other), " ", doing(other));
}

bool may_start() {
  return block.started < block.size && (block.ready_count == 0 || (block.random.next() & 1));
}

Fiber* next_fiber() {
  if (block.fault) return &os_thread;
  if (may_start()) return idle_fiber();
  if (block.ready_count == 0) {
    if (block.exited < block.size) block.fault = std::make_exception_ptr(Fault(why_stuck()));
    return &os_thread;
  }
  const auto i = block.random.below(block.ready_count);
  const unsigned t = block.ready[i];
  block.ready[i] = block.ready[--block.ready_count];
  make_current(t);
  return block.threads[t].fiber;
}

// Until another thread has made this one ready and its turn has come.
void wait() {
  block.threads[block.current].fiber = running;
  switch_to(next_fiber());
}

// ---- warps
uint64_t answer_of(const Thread& t, unsigned first, unsigned group) {
  if (t.kind == Collective::sync) return 0;
  if (t.kind == Collective::shuffle) return block.threads[first + static_cast<unsigned>(t.source)].value;
  const auto signed_value = [&](unsigned l) { return static_cast<int64_t>(block.threads[first + l].value); };
  int64_t r = 0;
  bool any = false;
  for (unsigned l = 0; l < kLanes; ++l) {
    if (!(group >> l & 1)) continue;
    const int64_t x = signed_value(l);
    switch (t.kind) {
      case Collective::ballot: r |= x << l; break;
      case Collective::add: r += x; break;
      case Collective::min: r = any && r < x ? r : x; break;
      case Collective::max: r = any && r > x ? r : x; break;
      case Collective::bit_and: r = any ? r & x : x; break;
      case Collective::bit_or: r |= x; break;
      default: r ^= x;
    }
    any = true;
  }
  return static_cast<uint64_t>(r);
}

void check_group(unsigned first, unsigned group, const Thread& self) {
  for (unsigned l = 0; l < kLanes; ++l) {
    if (!(group >> l & 1)) continue;
    const Thread& t = block.threads[first + l];
    if (t.mask != self.mask || t.kind != self.kind || t.site.line() != self.site.line())
      throw Fault(running_thread() + doing(block.current) + ", " + who(first + l) + " " + doing(first + l));
    if (t.kind == Collective::shuffle &&
        (t.source < 0 || t.source >= int(kLanes) || !(group >> t.source & 1)))
      throw Fault(sentence(where(), ", ", who(first + l), ": the shuffle (", place(t.site), ") reads lane ",
                           t.source, ", which takes no part in it"));
  }
}

// If all that are still there have come, they get their answers and go on; `self` keeps running.
void complete_if_met(unsigned self) {
  const unsigned first = self / kLanes * kLanes;
  Warp& warp = block.warps[self / kLanes];
  const unsigned group = block.threads[self].mask & ~warp.exited;
  if ((warp.waiting & group) != group) return;
  check_group(first, group, block.threads[self]);
  for (unsigned l = 0; l < kLanes; ++l)
    if (group >> l & 1) block.threads[first + l].answer = answer_of(block.threads[first + l], first, group);
  for (unsigned l = 0; l < kLanes; ++l)
    if (group >> l & 1) make_ready(first + l);
  warp.waiting &= ~group;
}

// ---- the life of a thread
void exit_thread() {
  const unsigned self = block.current;
  Warp& warp = block.warps[self / kLanes];
  block.threads[self].state = State::exited;
  warp.exited |= 1u << self % kLanes;
  ++block.exited;
  for (unsigned l = 0; l < kLanes && warp.waiting; ++l)  // they no longer wait for this one
    if (warp.waiting >> l & 1) complete_if_met(self / kLanes * kLanes + l);
}

void run_next_thread() {
  const auto t = static_cast<unsigned>(block.order.next());
  ++block.started;
  make_current(t);
  block.threads[t].state = State::running;
  block.launch->thread();
  exit_thread();
}

void fiber_main(ctx::transfer_t from) {
  arrived(from);
  for (;;) {
    try {
      do run_next_thread();
      while (may_start());
    } catch (...) {
      block.fault = std::current_exception();
    }
    idle.push_back(running);
    Fiber* next = next_fiber();
    switch_to(next);
  }
}

void prepare(const Launch& launch, uint64_t seed) {
  block.launch = &launch;
  block.random = Random(seed);
  block.size = blockDim.x * blockDim.y * blockDim.z;
  block.order = Shuffled(block.size, block.random);
  block.started = block.exited = block.ready_count = block.at_barrier = block.votes = 0;
  block.fault = nullptr;
  for (unsigned w = 0; w * kLanes < block.size; ++w) {
    const unsigned left = block.size - w * kLanes;
    block.warps[w] = {0, left >= kLanes ? 0 : ~0u << left};
  }
}

void prepare_shared(size_t bytes) {
  if (bytes == 0) return;
  ASAN_UNPOISON_MEMORY_REGION(shared.base, kMaxShared + 2 * kRedzone);
  fill(shared.base, bytes + 2 * kRedzone, kGuard);
  fill(shared.begin(), bytes, kPoison);
  ASAN_POISON_MEMORY_REGION(shared.base, kRedzone);
  ASAN_POISON_MEMORY_REGION(shared.begin() + bytes, kMaxShared + kRedzone - bytes);
}

void check_shared(size_t bytes) {
  if (bytes == 0 || kAsan) return;
  if (!holds(shared.base, kRedzone, kGuard))
    throw Fault(where() + ": writes before the beginning of its shared memory");
  if (!holds(shared.begin() + bytes, kRedzone, kGuard))
    throw Fault(
        sentence(where(), ": writes past the ", bytes, " bytes of shared memory it was launched with"));
}

}  // namespace

Shuffled::Shuffled(uint64_t n, Random& random) : n_(n) {
  if (n < 2) return;
  at_ = random.below(n);
  do step_ = 1 + random.below(n - 1);
  while (std::gcd(step_, n) != 1);
}

int lane() { return static_cast<int>(block.current % kLanes); }

void* block_shared(size_t bytes) {
  if (bytes > block.launch->shared_bytes)
    throw Fault(sentence(running_thread(), "uses ", bytes, " bytes of shared memory, launched with ",
                         block.launch->shared_bytes));
  return shared.begin();
}

void trap(const Site& site) { throw Fault(running_thread() + "trap (" + place(site) + ")"); }

uint64_t warp_meets(Collective kind, unsigned mask, uint64_t value, int source, const Site& site) {
  const unsigned self = block.current;
  Thread& t = block.threads[self];
  t.state = State::in_warp, t.kind = kind, t.mask = mask, t.value = value, t.source = source, t.site = site;
  if (!(mask >> self % kLanes & 1))
    throw Fault(sentence(running_thread(), doing(self), ", without being one of them"));
  block.warps[self / kLanes].waiting |= 1u << self % kLanes;
  complete_if_met(self);
  wait();
  return t.answer;
}

BlockVote block_meets(bool predicate, const Site& site) {
  const unsigned self = block.current;
  Thread& t = block.threads[self];
  t.state = State::at_barrier, t.site = site;
  if (block.at_barrier++ == 0) block.first_at_barrier = self;
  const unsigned first = block.first_at_barrier;
  if (block.threads[first].site.line() != site.line())
    throw Fault(running_thread() + doing(self) + ", but " + who(first) + " " + doing(first));
  block.votes += predicate;
  if (block.at_barrier == block.size) {
    const BlockVote vote{static_cast<int>(block.votes), block.votes == block.size};
    block.at_barrier = block.votes = 0;
    for (unsigned i = 0; i < block.size; ++i) block.threads[i].vote = vote, make_ready(i);
  }
  wait();
  return t.vote;
}

void run_block(const Launch& launch, uint64_t seed) {
  prepare(launch, seed);
  prepare_shared(launch.shared_bytes);
  block_runs = true;
  remember_os_stack(os_thread.shadow);
  switch_to(idle_fiber());
  block_runs = false;
  if (block.fault) {
    renew_all();
    std::rethrow_exception(std::exchange(block.fault, nullptr));
  }
  check_shared(launch.shared_bytes);
}

bool current_thread(uint3& thread) {
  thread = threadIdx;
  return block_runs;
}

bool in_guard_page_of_a_stack(const void* address) {
  const auto* a = static_cast<const char*>(address);
  for (const auto& f : fibers)
    if (a >= f->stack && a < f->stack + kPage) return true;
  return false;
}

}  // namespace cuda_on_cpu
