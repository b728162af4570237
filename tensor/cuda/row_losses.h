// What losses over chunks of rows of logits share: rows per chunk, targets counted and checked on the device,
// and a row's sweep. Private to tensor/cuda.
#pragma once
#include "tensor/cuda/device_math.h"
#include "tensor/cuda/error.h"
#include "tensor/cuda/pack.h"

namespace llatte::cuda {

// Rows per chunk: enough for the matrix products to fill the GPU, few enough that logits stay small
// (512 rows x 49,152 entries x 4 bytes = 96 MiB).
constexpr int64_t kChunk = 512;
constexpr unsigned kRowThreads = 512;  // of a block, which owns one row of logits

struct Targets {
  const int32_t* target;
  int32_t ignore;
  int64_t N, V;

  __device__ bool outside(int64_t n) const {
    return target[n] != ignore && (target[n] < 0 || target[n] >= V);
  }
  __device__ bool counts(int64_t n) const { return target[n] != ignore && !outside(n); }
};

struct CountShared {
  int64_t counted[kRowThreads], first_outside[kRowThreads];
};

// *per_row = 1 / rows that count, 0 if none does. The first row whose target is outside is reported, and
// treated as one that does not count. One block.
template <class A>
__global__ void __launch_bounds__(kRowThreads) count_targets(Targets t, Report outside, A* per_row) {
  auto& s = block_shared<CountShared>();
  int64_t counted = 0, first = t.N;
  for (int64_t n = threadIdx.x; n < t.N; n += kRowThreads) {
    counted += t.counts(n);
    if (first == t.N && t.outside(n)) first = n;
  }
  s.counted[threadIdx.x] = counted, s.first_outside[threadIdx.x] = first;
  __syncthreads();
  for (unsigned half = kRowThreads / 2; half > 0; half /= 2) {
    if (threadIdx.x < half) {
      s.counted[threadIdx.x] += s.counted[threadIdx.x + half];
      s.first_outside[threadIdx.x] = min(s.first_outside[threadIdx.x], s.first_outside[threadIdx.x + half]);
    }
    __syncthreads();
  }
  if (threadIdx.x > 0) return;
  *per_row = s.counted[0] > 0 ? A(1) / A(s.counted[0]) : A(0);
  if (s.first_outside[0] < t.N) outside(t.target[s.first_outside[0]], s.first_outside[0], t.V);
}

template <class A>
Tensor one_per_counted_row(const char* op, const Targets& t, const char* outside) {
  Tensor per_row = Tensor::empty({1}, dtype_of<A>(), Device::cuda);
  launch(op, {1, kRowThreads, sizeof(CountShared)}, count_targets<A>, t, report(outside), per_row.data<A>());
  return per_row;
}

// f(at, pack) for the N entries from `at` on of a row of V, for all of the row; beyond its end they are A().
template <int N, class A, class F>
__device__ void for_packs(const A* row, int64_t V, F f) {
  for (int64_t at = int64_t(threadIdx.x) * N; at < V; at += int64_t(kRowThreads) * N)
    f(at, load<N>(row, at, V));
}

// g[0, V) = 0.
template <int N, class T>
__device__ void clear_row(T* g, int64_t V) {
  for (int64_t at = int64_t(threadIdx.x) * N; at < V; at += int64_t(kRowThreads) * N)
    store(g, at, V, Pack<T, N>{});
}

}  // namespace llatte::cuda
