// After a warm-up, a whole training step (forward, loss, backward, AdamW) asks the system for nothing: no
// malloc, no new block of tensor memory; and no tensor of it is as large as [T,T] scores or [B*T,V] logits.
// Here malloc itself is counted: this program's malloc, calloc, ... stand before glibc's for every library it
// loads.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>
#include <execinfo.h>
#include <unistd.h>
#include <atomic>
#include <cerrno>
#include <cstdlib>
#include "models/llama.h"
#include "optim/adamw.h"
#include "tensor/alloc.h"

namespace {
std::atomic<bool> counting{false};
std::atomic<long> calls{0};
}  // namespace

#ifndef LLATTE_SANITIZED  // sanitizers bring their own malloc
namespace {
// With LLATTE_SHOW_MALLOC=1 the caller of each counted call is printed: where to look when the test fails.
void count_call() {
  if (!counting.load(std::memory_order_relaxed)) return;
  ++calls;
  static const bool show = std::getenv("LLATTE_SHOW_MALLOC") != nullptr;
  if (!show) return;
  counting = false;
  void* frames[12];
  backtrace_symbols_fd(frames, backtrace(frames, 12), STDERR_FILENO);
  (void)!write(STDERR_FILENO, "\n", 1);
  counting = true;
}
}  // namespace

extern "C" {
void* __libc_malloc(size_t);
void* __libc_calloc(size_t, size_t);
void* __libc_realloc(void*, size_t);
void* __libc_memalign(size_t, size_t);

void* malloc(size_t n) { return count_call(), __libc_malloc(n); }
void* calloc(size_t n, size_t size) { return count_call(), __libc_calloc(n, size); }
void* realloc(void* p, size_t n) { return count_call(), __libc_realloc(p, n); }
void* aligned_alloc(size_t align, size_t n) { return count_call(), __libc_memalign(align, n); }
void* memalign(size_t align, size_t n) { return count_call(), __libc_memalign(align, n); }
int posix_memalign(void** out, size_t align, size_t n) {
  count_call();
  *out = __libc_memalign(align, n);
  return *out ? 0 : ENOMEM;
}
}
#endif

using namespace llatte;

namespace {

// T is long and V large against everything else, so that scores or logits would stand out even in bf16: those
// of one head of one sequence are 2 MiB, all logits 8 MiB. The largest tensor there should be is a chunk of
// logits, 128 rows in f32: 1 MiB.
// As many layers as clm-60m, so that the tape is as long; sanitizers, which count no mallocs, make do with
// two.
#ifdef LLATTE_SANITIZED
constexpr int64_t L = 2;
#else
constexpr int64_t L = 22;
#endif
constexpr int64_t B = 2, T = 1024, V = 2048, H = 4;

LlamaConfig small_llama() {
  LlamaConfig c;
  c.hidden_size = 32;
  c.num_hidden_layers = L;
  c.num_attention_heads = H;
  c.num_key_value_heads = 2;
  c.head_dim = 8;
  c.intermediate_size = 64;
  c.vocab_size = V;
  c.max_position_embeddings = T;
  return c;
}

Tensor some_tokens(int64_t offset) {
  std::vector<int32_t> ids(size_t(B * T));
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = int32_t((i * 7919 + size_t(offset)) % V);
  return Tensor::from(ids, {B, T});
}

struct Step {
  Llama model;
  AdamW optimizer;
  Tensor tokens = some_tokens(0), targets = some_tokens(13);
  Step(DType t, bool recompute) : model(small_llama(), t), optimizer(model, {}) {
    model.init(1, 0.05);
    model.set_recompute(recompute);
    optimizer = AdamW(model, {});
  }
  double operator()() {
    const Var loss = model.loss(tokens, targets);
    backward(loss);
    optimizer.step(1e-3);
    return loss.value.item();
  }
};

}  // namespace

TEST_CASE("the counter counts") {
#ifndef LLATTE_SANITIZED
  calls = 0;
  counting = true;
  void* volatile p = std::malloc(10);
  counting = false;
  std::free(p);
  CHECK(calls.load() == 1);
#endif
}

TEST_CASE("a steady step asks the system for nothing and makes no large tensor") {
  for (const DType t : {DType::f32, DType::bf16})
    for (const bool recompute : {false, true}) {
      INFO(name(t), recompute ? " recomputed" : "");
      Step step(t, recompute);
      for (int i = 0; i < 3; ++i) step();
      reset_alloc_stats(Device::cpu);
      calls = 0;
      counting = true;
      step();
      counting = false;
      const AllocStats s = alloc_stats(Device::cpu);
      CHECK(s.requests > 0);
      CHECK(s.system_requests == 0);
#ifndef LLATTE_SANITIZED
      CHECK(calls.load() == 0);
#endif
      const auto width = int64_t(size_of(t));
      CHECK(s.largest_request < B * T * V * width);
      CHECK(s.largest_request < T * T * width);
    }
}

TEST_CASE("recomputing blocks changes no bit of the loss, and takes less memory") {
  for (const DType t : {DType::f32, DType::bf16}) {
    Step kept(t, false), recomputed(t, true);
    std::vector<double> a, b;
    reset_alloc_stats(Device::cpu);
    const int64_t before = alloc_stats(Device::cpu).bytes;
    for (int i = 0; i < 4; ++i) a.push_back(kept());
    const int64_t peak = alloc_stats(Device::cpu).peak_bytes - before;
    reset_alloc_stats(Device::cpu);
    for (int i = 0; i < 4; ++i) b.push_back(recomputed());
    CHECK(a == b);
    CHECK(a[3] < a[0]);
    CHECK(alloc_stats(Device::cpu).peak_bytes - before < peak);
  }
}
