// The two loops of the CPU kernels. A loop over numbers or rows is shared out among the threads in equal,
// contiguous parts, and only when the work pays for waking them. Law: what one index computes depends on that
// index alone, so the result is the same for every number of threads.
#pragma once
#include <cstdint>

namespace llatte::cpu {

constexpr int64_t kParallelFrom = int64_t(1) << 15;  // numbers touched; below, waking threads costs more

// The unit in which numbers are shared out: a multiple of every vector's length, so that the scalar remainder
// of a vectorised loop, which may round otherwise (libmvec's exp), is at the end of the tensor and nowhere
// else.
constexpr int64_t kShare = int64_t(1) << 12;

// One share of for_each. Never inlined: one thread or many run the very same instructions. f is a copy: the
// pointers it holds stay in registers, whatever the stores may alias.
template <class F>
[[gnu::noinline]] void run_share(F f, int64_t begin, int64_t end) {
#pragma omp simd
  for (int64_t i = begin; i < end; ++i) f(i);
}

// Small work is kept from the threads by an `if` of our own: with OpenMP's clause libgomp makes a team of one
// for it and a new team of all for the next loop, which is two calls of malloc each time.

// f(i) for i in [0, n), vectorised: f is free of branches and touches no other index.
template <class F>
void for_each(int64_t n, F f) {
  const auto share = [&](int64_t begin) { run_share(f, begin, begin + kShare < n ? begin + kShare : n); };
  if (n <= kParallelFrom) {
    for (int64_t begin = 0; begin < n; begin += kShare) share(begin);
    return;
  }
#pragma omp parallel for schedule(static)
  for (int64_t begin = 0; begin < n; begin += kShare) share(begin);
}

// f(row) for row in [0, rows), each of about `width` numbers. f hands plain pointers to a function that holds
// the simd loop: read through f itself, they would be gathered lane by lane.
template <class F>
void for_rows(int64_t rows, int64_t width, F f) {
  if (rows <= 1 || rows * width <= kParallelFrom) {
    for (int64_t r = 0; r < rows; ++r) f(r);
    return;
  }
#pragma omp parallel for schedule(static) firstprivate(f)
  for (int64_t r = 0; r < rows; ++r) f(r);
}

}  // namespace llatte::cpu
