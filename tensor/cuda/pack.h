// Numbers of a row moved 16 bytes at a time, and sums over the threads of a block in a fixed order. A row
// whose address or length does not allow whole packs is read number by number, so every view has its path.
// Private to tensor/cuda.
#pragma once
#include <algorithm>
#include <type_traits>
#include "tensor/cuda/launch.h"

namespace llatte::cuda {

// Numbers in a pack of the widest load; narrow where the other side of a conversion is wider.
template <class... T>
constexpr int kPack = int(16 / std::max({sizeof(T)...}));

template <int N, class T>
__host__ __device__ bool is_aligned(const T* p) {
  return reinterpret_cast<uintptr_t>(p) % (N * sizeof(T)) == 0;
}

// x[at, at + N) of a row of n numbers; what lies beyond the row is T().
template <int N, class T>
__device__ Pack<T, N> load(const T* x, int64_t at, int64_t n) {
  if (at + N <= n && is_aligned<N>(x + at)) return *reinterpret_cast<const Pack<T, N>*>(x + at);
  Pack<T, N> pack;
#pragma unroll
  for (int j = 0; j < N; ++j) pack.at[j] = at + j < n ? x[at + j] : T();
  return pack;
}

template <int N, class T>
__device__ void store(T* y, int64_t at, int64_t n, const Pack<T, N>& pack) {
  if (at + N <= n && is_aligned<N>(y + at)) {
    *reinterpret_cast<Pack<T, N>*>(y + at) = pack;
    return;
  }
#pragma unroll
  for (int j = 0; j < N; ++j)
    if (at + j < n) y[at + j] = pack.at[j];
}

// To To by way of what From is computed in, as the CPU rounds: f64 reaches bf16 through f32, a float becomes
// an integer by truncation.
template <class To, class From>
__host__ __device__ constexpr To convert(From v) {
  if constexpr (std::is_same_v<To, From>) return v;
  else if constexpr (std::is_same_v<To, bf16>) return bf16(static_cast<float>(v));
  else return static_cast<To>(static_cast<std::conditional_t<std::is_same_v<From, bf16>, float, From>>(v));
}

constexpr int kWarp = 32;
constexpr int kMaxWarps = 32;      // of a block
constexpr int64_t kThreads = 256;  // of a block, where nothing speaks for another number

// A thread's place in a grid of one dimension.
__device__ inline int64_t global_thread() { return int64_t(blockIdx.x) * blockDim.x + threadIdx.x; }

// Threads for a block that walks a row of `packs`: whole warps, so that warp_sum has all its lanes.
inline unsigned threads_for_row(int64_t packs) {
  return static_cast<unsigned>(std::clamp<int64_t>((packs + kWarp - 1) / kWarp, 1, 8) * kWarp);
}

// One number of each warp of a block.
template <class A>
struct PerWarp {
  A at[kMaxWarps];
};

// Over the threads of a one-dimensional block of whole warps: every thread gets the sum, of the warps in
// their order. All must take part. The scratch may be used again at once.
template <class A>
__device__ A block_sum(A x, PerWarp<A>& scratch) {
  x = warp_sum(x);
  if (threadIdx.x % kWarp == 0) scratch.at[threadIdx.x / kWarp] = x;
  __syncthreads();
  A sum = 0;
  for (unsigned w = 0; w < blockDim.x / kWarp; ++w) sum += scratch.at[w];
  __syncthreads();
  return sum;
}

// The same for the largest; NaN is kept.
template <class A>
__device__ A block_max(A x, PerWarp<A>& scratch) {
  x = warp_max(x);
  if (threadIdx.x % kWarp == 0) scratch.at[threadIdx.x / kWarp] = x;
  __syncthreads();
  A top = scratch.at[0];
  for (unsigned w = 1; w < blockDim.x / kWarp; ++w) {
    const A other = scratch.at[w];
    top = other > top || other != other ? other : top;
  }
  __syncthreads();
  return top;
}

}  // namespace llatte::cuda
