// The online softmax of a tile of queries over the keys they see, a tile at a time (arXiv 2205.14135).
// Private to tensor/cuda.
#pragma once
#include "tensor/cuda/attention_tile.h"
#include "tensor/cuda/device_math.h"

namespace llatte::cuda {

// Below every score, yet finite: exp(kFloor - kFloor) = 1 where a query has seen nothing yet.
template <class A>
constexpr A kFloor = std::numeric_limits<A>::lowest() / 2;

// Over the 16 threads that own the same rows.
template <class A>
__device__ A row_max(A x) {
  for (int step = kThreadsAcross / 2; step > 0; step /= 2) {
    const A other = __shfl_xor_sync(0xffffffffu, x, step);
    x = other > x ? other : x;
  }
  return x;
}
template <class A>
__device__ A row_sum(A x) {
  for (int step = kThreadsAcross / 2; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
  return x;
}

template <class A, int R, int NC>
struct SoftmaxState {
  A top[R], sum[R], o[NC][R][kC<A>];  // sum: this thread's columns only, until finish()

  __device__ void start() {
#pragma unroll
    for (int r = 0; r < R; ++r) {
      top[r] = kFloor<A>, sum[r] = 0;
#pragma unroll
      for (int n = 0; n < NC; ++n)
#pragma unroll
        for (int c = 0; c < kC<A>; ++c) o[n][r][c] = 0;
    }
  }

  // Scores become probabilities relative to the new highest score; what was summed so far shrinks to match.
  __device__ void update(const AttentionShared<A, R>& s, int k0, A scale, A (&p)[R][kC<A>]) {
#pragma unroll
    for (int r = 0; r < R; ++r) {
      A high = top[r];
      const int seen = s.seen[R * thread_row() + r];
#pragma unroll
      for (int c = 0; c < kC<A>; ++c) {
        const bool sees = k0 + kC<A> * thread_column() + c < seen;
        p[r][c] = sees ? p[r][c] * scale : -std::numeric_limits<A>::infinity();
        high = p[r][c] > high ? p[r][c] : high;
      }
      high = row_max(high);
      const A shrink = exp_of(top[r] - high);
      top[r] = high;
      sum[r] *= shrink;
#pragma unroll
      for (int c = 0; c < kC<A>; ++c) sum[r] += p[r][c] = exp_of(p[r][c] - high);
#pragma unroll
      for (int n = 0; n < NC; ++n)
#pragma unroll
        for (int c = 0; c < kC<A>; ++c) o[n][r][c] *= shrink;
    }
  }
  __device__ void finish() {
#pragma unroll
    for (int r = 0; r < R; ++r) sum[r] = row_sum(sum[r]);
  }
};

// One tile of queries against keys [begin, end).
template <class A, int R, int NC, class Q, class K, class V>
__device__ void attend(AttentionShared<A, R>& s, const AttentionSizes& z, const Q& q, const K& k, const V& v,
                       int m0, int begin, int end, int column, A scale, SoftmaxState<A, R, NC>& state) {
  state.start();
  for (int i = threadIdx.x; i < 8 * R; i += kTileThreads) s.seen[i] = min(z.visible(m0 + i), end);
  for (int k0 = begin; k0 < end; k0 += kSide<A>) {
    const int keys = min(kSide<A>, end - k0);
    A p[R][kC<A>];
    products_of_rows(s, q, m0, min(8 * R, z.M - m0), k, k0, keys, p);
    state.update(s, k0, scale, p);
    store_tile_transposed(p, s);
    add_weighted_rows(s, v, k0, keys, column, state.o);
  }
  state.finish();
}

}  // namespace llatte::cuda
