// How a kernel is started, and what every .cu file shares. Kernels are plain CUDA C++ with two habits:
//   1. launch(), never <<< >>>: it checks, names the kernel in errors and in profiles, and allows large
//   shared memory.
//   2. Shared memory is ONE struct of a kernel, reached by block_shared<Struct>(), its size given to
//   launch().
// Both let the same source run under g++ on the stand-in GPU of test/cuda_on_cpu, with every access watched.
// Sums over threads have a fixed order; no atomics on floats. Private to tensor/cuda.
#pragma once
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <nvtx3/nvToolsExt.h>
#include <utility>
#include "tensor/kernels.h"

#define LLATTE_CUDA_CHECK(op, call)                                                            \
  do {                                                                                         \
    const cudaError_t status = (call);                                                         \
    LLATTE_CHECK(status == cudaSuccess, op, ": ", cudaGetErrorString(status), " (" #call ")"); \
  } while (0)

namespace llatte::cuda {

cudaStream_t stream();  // the process's one stream of work; made at the first call

struct Grid {
  dim3 blocks, threads;
  size_t shared_bytes = 0;
};

constexpr size_t kSharedWithoutAsking = 48 * 1024;  // more has to be asked for, per kernel

// The kernel's own parameter types; arguments are converted to them.
template <class... Parameters, class... Arguments>
void launch(const char* name, const Grid& grid, void (*kernel)(Parameters...), Arguments&&... arguments) {
  if (grid.blocks.x * size_t(grid.blocks.y) * grid.blocks.z == 0) return;  // nothing to do
  if (grid.shared_bytes > kSharedWithoutAsking)
    LLATTE_CUDA_CHECK(
        name, cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                   cudaFuncAttributeMaxDynamicSharedMemorySize, int(grid.shared_bytes)));
  cudaLaunchConfig_t config{};
  config.gridDim = grid.blocks;
  config.blockDim = grid.threads;
  config.dynamicSmemBytes = grid.shared_bytes;
  config.stream = stream();
  nvtxRangePushA(name);
  const cudaError_t status = cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...);
  nvtxRangePop();
  LLATTE_CHECK(status == cudaSuccess, name, ": launch of ", grid.blocks.x, "x", grid.blocks.y, "x",
               grid.blocks.z, " blocks of ", grid.threads.x, "x", grid.threads.y, "x", grid.threads.z,
               " threads with ", grid.shared_bytes, " bytes of shared memory: ", cudaGetErrorString(status));
}

// The struct that the threads of a block share, uninitialised.
template <class S>
__device__ S& block_shared() {
#ifdef __CUDACC__
  extern __shared__ __align__(16) unsigned char llatte_block_shared[];
  return *reinterpret_cast<S*>(llatte_block_shared);
#else
  return *static_cast<S*>(cuda_on_cpu::block_shared(sizeof(S)));
#endif
}

// N numbers moved by one instruction, 16 bytes at most.
template <class T, int N>
struct alignas(N * sizeof(T)) Pack {
  T at[N];
};

// Blocks of `each` that cover n. A grid's x may be 2^31 - 1, y and z 65,535.
inline unsigned blocks_for(int64_t n, int64_t each) { return static_cast<unsigned>((n + each - 1) / each); }

// Over the 32 lanes of a warp; every lane gets the result. All lanes must take part.
template <class T>
__device__ T warp_sum(T x) {
  for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
  return x;
}
template <class T>
__device__ T warp_max(T x) {
  for (int step = 16; step > 0; step /= 2) {
    const T other = __shfl_xor_sync(0xffffffffu, x, step);
    x = other > x || other != other ? other : x;  // NaN is kept
  }
  return x;
}

}  // namespace llatte::cuda
