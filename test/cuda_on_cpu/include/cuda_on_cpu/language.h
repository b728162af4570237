// The words of CUDA C++ for g++: what a .cu file needs inside its kernels. A thread is a fiber (block.cpp); a
// thread that waits at a barrier or a shuffle hands over to another thread of its block.
//   1. Every place where threads wait knows its line, so reports name it.
//   2. Atomics are plain arithmetic: one thread runs at a time, and is never interrupted between two waits.
//   3. __shared__ does not exist here: a kernel's shared memory is one struct, block_shared().
#pragma once
#include <cstdint>
#include <cstring>
#include <source_location>
#include <type_traits>
#include "cuda_on_cpu/vectors.h"

#define __host__
#define __device__
#define __global__
#define __constant__
#define __grid_constant__
#define __launch_bounds__(...)
#define __forceinline__ inline __attribute__((always_inline))
#define __align__(n) alignas(n)

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
constexpr int warpSize = 32;

namespace cuda_on_cpu {

using Site = std::source_location;

// The running block's shared memory: as many bytes as its launch asked for.
void* block_shared(size_t bytes);

enum class Collective { sync, shuffle, ballot, add, min, max, bit_and, bit_or, bit_xor };
// Waits for all lanes of `mask`; what it returns depends on the values that they brought.
uint64_t warp_meets(Collective kind, unsigned mask, uint64_t value, int source, const Site& site);
struct BlockVote {
  int count, all;  // predicates that were true; whether all were
};
BlockVote block_meets(bool predicate, const Site& site);
int lane();
[[noreturn]] void trap(const Site& site);

template <class T>
T shuffle(unsigned mask, T value, int source, const Site& site) {
  static_assert(std::is_arithmetic_v<T> && sizeof(T) >= 4, "shuffles move 4 or 8 bytes");
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = warp_meets(Collective::shuffle, mask, bits, source, site);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

template <class T>
T reduce(Collective kind, unsigned mask, T value, const Site& site) {
  static_assert(std::is_integral_v<T> && sizeof(T) == 4, "reductions over a warp take 32-bit integers");
  return static_cast<T>(warp_meets(kind, mask, static_cast<uint64_t>(int64_t(value)), 0, site));
}

template <class T, class F>
T fetch(T* at, F&& next) {
  const T old = *at;
  *at = next(old);
  return old;
}

}  // namespace cuda_on_cpu

// ---- a block's threads wait for one another
inline void __syncthreads(const cuda_on_cpu::Site& site = cuda_on_cpu::Site::current()) {
  cuda_on_cpu::block_meets(false, site);
}
inline int __syncthreads_count(int predicate, const cuda_on_cpu::Site& site = cuda_on_cpu::Site::current()) {
  return cuda_on_cpu::block_meets(predicate != 0, site).count;
}
inline int __syncthreads_or(int predicate, const cuda_on_cpu::Site& site = cuda_on_cpu::Site::current()) {
  return cuda_on_cpu::block_meets(predicate != 0, site).count != 0;
}
inline int __syncthreads_and(int predicate, const cuda_on_cpu::Site& site = cuda_on_cpu::Site::current()) {
  return cuda_on_cpu::block_meets(predicate != 0, site).all;
}

// ---- a warp's lanes do
inline void __syncwarp(unsigned mask = ~0u, const cuda_on_cpu::Site& site = cuda_on_cpu::Site::current()) {
  cuda_on_cpu::warp_meets(cuda_on_cpu::Collective::sync, mask, 0, 0, site);
}
template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = warpSize,
              const cuda_on_cpu::Site& site = cuda_on_cpu::Site::current()) {
  const int first = cuda_on_cpu::lane() & ~(width - 1);
  return cuda_on_cpu::shuffle(mask, value, first + (source & (width - 1)), site);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int flip, int width = warpSize,
                  const cuda_on_cpu::Site& site = cuda_on_cpu::Site::current()) {
  const int self = cuda_on_cpu::lane(), source = self ^ flip, end = (self & ~(width - 1)) + width;
  return cuda_on_cpu::shuffle(mask, value, source < end ? source : self, site);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = warpSize,
                 const cuda_on_cpu::Site& site = cuda_on_cpu::Site::current()) {
  const int self = cuda_on_cpu::lane(), source = self - static_cast<int>(delta), first = self & ~(width - 1);
  return cuda_on_cpu::shuffle(mask, value, source >= first ? source : self, site);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = warpSize,
                   const cuda_on_cpu::Site& site = cuda_on_cpu::Site::current()) {
  const int self = cuda_on_cpu::lane(), source = self + static_cast<int>(delta);
  return cuda_on_cpu::shuffle(mask, value, source < (self & ~(width - 1)) + width ? source : self, site);
}
inline unsigned __ballot_sync(unsigned mask, int predicate,
                              const cuda_on_cpu::Site& site = cuda_on_cpu::Site::current()) {
  return static_cast<unsigned>(
      cuda_on_cpu::warp_meets(cuda_on_cpu::Collective::ballot, mask, predicate != 0, 0, site));
}
inline int __any_sync(unsigned mask, int predicate,
                      const cuda_on_cpu::Site& site = cuda_on_cpu::Site::current()) {
  return __ballot_sync(mask, predicate, site) != 0;
}
inline int __all_sync(unsigned mask, int predicate,
                      const cuda_on_cpu::Site& site = cuda_on_cpu::Site::current()) {
  return __ballot_sync(mask, !predicate, site) == 0;
}
#define CUDA_ON_CPU_REDUCE(name, kind)                                                           \
  template <class T>                                                                             \
  T name(unsigned mask, T value, const cuda_on_cpu::Site& site = cuda_on_cpu::Site::current()) { \
    return cuda_on_cpu::reduce(cuda_on_cpu::Collective::kind, mask, value, site);                \
  }
CUDA_ON_CPU_REDUCE(__reduce_add_sync, add)
CUDA_ON_CPU_REDUCE(__reduce_min_sync, min)
CUDA_ON_CPU_REDUCE(__reduce_max_sync, max)
CUDA_ON_CPU_REDUCE(__reduce_and_sync, bit_and)
CUDA_ON_CPU_REDUCE(__reduce_or_sync, bit_or)
CUDA_ON_CPU_REDUCE(__reduce_xor_sync, bit_xor)

inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __threadfence_system() {}
inline void __trap(const cuda_on_cpu::Site& site = cuda_on_cpu::Site::current()) { cuda_on_cpu::trap(site); }

// ---- atomics; on integers only: a sum of floats would depend on the order of the threads
#define CUDA_ON_CPU_ATOMIC(name, expression)                               \
  template <class T>                                                       \
  T name(T* at, std::type_identity_t<T> x) {                               \
    static_assert(std::is_integral_v<T> && sizeof(T) >= 4);                \
    return cuda_on_cpu::fetch(at, [x](T old) -> T { return expression; }); \
  }
CUDA_ON_CPU_ATOMIC(atomicAdd, old + x)
CUDA_ON_CPU_ATOMIC(atomicSub, old - x)
CUDA_ON_CPU_ATOMIC(atomicExch, (old, x))
CUDA_ON_CPU_ATOMIC(atomicMax, old > x ? old : x)
CUDA_ON_CPU_ATOMIC(atomicMin, old < x ? old : x)
CUDA_ON_CPU_ATOMIC(atomicAnd, old& x)
CUDA_ON_CPU_ATOMIC(atomicOr, old | x)
CUDA_ON_CPU_ATOMIC(atomicXor, old ^ x)
CUDA_ON_CPU_ATOMIC(atomicInc, old >= x ? 0 : old + 1)
template <class T>
T atomicCAS(T* at, std::type_identity_t<T> expected, std::type_identity_t<T> x) {
  return cuda_on_cpu::fetch(at, [=](T old) { return old == expected ? x : old; });
}
