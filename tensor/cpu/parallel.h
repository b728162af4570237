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

// f(i) for i in [0, n), vectorised: f is free of branches and touches no other index.
template <class F>
void for_each(int64_t n, F f) {
// firstprivate: the pointers f holds stay in registers, whatever the stores may alias.
#pragma omp parallel for schedule(static) firstprivate(f) if (n > kParallelFrom)
  for (int64_t begin = 0; begin < n; begin += kShare) {
    const int64_t end = begin + kShare < n ? begin + kShare : n;
#pragma omp simd
    for (int64_t i = begin; i < end; ++i) f(i);
  }
}

// f(row) for row in [0, rows), each of about `width` numbers. f hands plain pointers to a function that holds
// the simd loop: read through f itself, they would be gathered lane by lane.
template <class F>
void for_rows(int64_t rows, int64_t width, F f) {
#pragma omp parallel for schedule(static) firstprivate(f) if (rows > 1 && rows * width > kParallelFrom)
  for (int64_t r = 0; r < rows; ++r) f(r);
}

}  // namespace llatte::cpu
