// The stand-in GPU on trial: what a GPU would do it does, and faults planted in small kernels are found and
// named.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <cublas_v2.h>
#include <cusolverDn.h>
#include <doctest/doctest.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmath>
#include "tensor/cuda/launch.h"
#include "test/cuda_on_cpu/on_trial.h"

namespace {

using cuda_on_cpu::Fault;
using llatte::bf16;
using llatte::cuda::block_shared;
using llatte::cuda::launch;
using llatte::cuda::stream;

#if defined(__SANITIZE_ADDRESS__)
constexpr bool kAsan = true;  // finds wild accesses itself, and ends the program there
#else
constexpr bool kAsan = false;
#endif

// ---- arrays on the device
template <class T>
struct Device {
  T* at = nullptr;
  size_t n;
  explicit Device(size_t n) : n(n) { REQUIRE(cudaMalloc(&at, n * sizeof(T)) == cudaSuccess); }
  explicit Device(const std::vector<T>& v) : Device(v.size()) {
    REQUIRE(cudaMemcpyAsync(at, v.data(), n * sizeof(T), cudaMemcpyHostToDevice, stream()) == cudaSuccess);
  }
  ~Device() { cudaFree(at); }
  Device(const Device&) = delete;
  std::vector<T> read() const {
    std::vector<T> v(n);
    REQUIRE(cudaMemcpyAsync(v.data(), at, n * sizeof(T), cudaMemcpyDeviceToHost, stream()) == cudaSuccess);
    return v;
  }
};

// What a process that does `action` writes to stderr before it dies; "lives" if it does not.
template <class Action>
std::string last_words_of(Action&& action) {
  int ends[2];
  REQUIRE(pipe(ends) == 0);
  const pid_t child = fork();
  if (child == 0) {
    dup2(ends[1], STDERR_FILENO);
    close(STDOUT_FILENO);
    action();
    _exit(0);
  }
  close(ends[1]);
  std::string text;
  char part[4096];
  for (ssize_t n; (n = read(ends[0], part, sizeof part)) > 0;) text.append(part, static_cast<size_t>(n));
  close(ends[0]);
  int status = 0;
  waitpid(child, &status, 0);
  return WIFEXITED(status) && WEXITSTATUS(status) == 0 ? "lives" : text;
}

// ---- kernels
constexpr int kThreads = 128;
struct Exchange {
  float x[kThreads];
};

template <bool kBarrier>
__global__ void rotate(const float* x, float* y) {
  auto& s = block_shared<Exchange>();
  s.x[threadIdx.x] = x[threadIdx.x];
  if (kBarrier) __syncthreads();
  y[threadIdx.x] = s.x[(threadIdx.x + 1) % kThreads];
}

template <bool kBarrier>
__global__ void rotate_twice(const float* x, float* y) {
  auto& s = block_shared<Exchange>();
  s.x[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  const float next = s.x[(threadIdx.x + 1) % kThreads];
  if (kBarrier) __syncthreads();  // else a neighbour reads what is written now
  s.x[threadIdx.x] = next;
  __syncthreads();
  y[threadIdx.x] = s.x[(threadIdx.x + 1) % kThreads];
}

__global__ void one_leaves(float* y) {
  if (blockIdx.x == 1 && threadIdx.x == 5) return;
  __syncthreads();
  y[threadIdx.x] = 1;
}

__global__ void two_barriers(float* y) {
  if (threadIdx.x % 2) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  y[threadIdx.x] = 1;
}

__global__ void barrier_against_shuffle(float* y) {
  float x = 1;
  if (threadIdx.x < 16) __syncthreads();
  else x = __shfl_xor_sync(~0u, x, 1);
  y[threadIdx.x] = x;
}

__global__ void warp_words(int* y) {
  const int lane = static_cast<int>(threadIdx.x % 32), n = static_cast<int>(blockDim.x);
  int* mine = y + threadIdx.x;
  mine[0 * n] = __shfl_sync(~0u, lane, 7);
  mine[1 * n] = __shfl_xor_sync(~0u, lane, 5);
  mine[2 * n] = __shfl_up_sync(~0u, lane, 3);
  mine[3 * n] = __shfl_down_sync(~0u, lane, 3, 8);
  mine[4 * n] = static_cast<int>(__ballot_sync(~0u, lane % 3 == 0));
  mine[5 * n] = __any_sync(~0u, lane == 31) + 2 * __all_sync(~0u, lane < 31);
  mine[6 * n] = __reduce_add_sync(~0u, lane) + __reduce_max_sync(~0u, -lane);
  mine[7 * n] = __syncthreads_count(lane % 2) + 1000 * __syncthreads_or(lane == 3) +
                2000 * __syncthreads_and(lane != 3);
  mine[8 * n] = static_cast<int>(__double_as_longlong(__shfl_sync(~0u, 1.0 + lane, 1)) >> 32);
  if (lane < 12) mine[9 * n] = __shfl_xor_sync(0xfffu, lane, 1);
}

__global__ void not_in_mask(int* y) { y[threadIdx.x] = __shfl_sync(0x7fffffffu, 1, 0); }
__global__ void from_outside(int* y) {
  if (threadIdx.x < 8) y[threadIdx.x] = __shfl_xor_sync(0xffu, 1, 8);
}
__global__ void short_warp(int* y) { y[threadIdx.x] = __shfl_xor_sync(~0u, 1, 16); }
__global__ void two_masks(int* y) { y[threadIdx.x] = __shfl_xor_sync(threadIdx.x < 16 ? ~0u : ~1u, 1, 1); }

// The last block to finish adds up what all have left.
__global__ void sum_of_blocks(int* parts, int* finished, int* sum) {
  atomicAdd(&parts[blockIdx.x], static_cast<int>(threadIdx.x));
  __threadfence();
  __syncthreads();
  if (threadIdx.x != 0 || atomicAdd(finished, 1) != static_cast<int>(gridDim.x) - 1) return;
  *sum = 0;
  for (unsigned b = 0; b < gridDim.x; ++b) *sum += parts[b];
}

__global__ void read_before_write(float* y) {
  auto& s = block_shared<Exchange>();
  y[blockIdx.x * blockDim.x + threadIdx.x] = s.x[threadIdx.x];
  s.x[threadIdx.x] = 1;
}

struct Reach {
  float x[8];
};
__global__ void shared_store(int at) {
  float* x = block_shared<Reach>().x;
  x[at] = 1;
}
__global__ void store(float* y, int64_t at) { y[at] = 1; }
struct Hidden {
  float* y;
};
__global__ void store_hidden(Hidden h) { h.y[0] = 1; }
__global__ void add(const float* x, float* y, int n) {
  const auto i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < n) y[i] += x[i];
}
__global__ void trapped(int* y) {
  if (threadIdx.x == 3) __trap();
  y[threadIdx.x] = 1;
}
__global__ void empty() {}

int wrong_of(void (*kernel)(const float*, float*), int by) {
  const Device<float> x(counting(kThreads)), y(kThreads);
  int wrong = 0;
  for (int run = 0; run < 8; ++run) {
    launch("rotate", {dim3(1), dim3(kThreads), sizeof(Exchange)}, kernel, x.at, y.at);
    const std::vector<float> got = y.read();
    bool all = true;
    for (int i = 0; i < kThreads; ++i)
      all = all && got[size_t(i)] == static_cast<float>((i + by) % kThreads + 1);
    wrong += !all;
  }
  return wrong;
}

}  // namespace

TEST_CASE("a missing barrier shows, whichever side of the exchange it is missing on") {
  CHECK(wrong_of(rotate<true>, 1) == 0);
  CHECK(wrong_of(rotate<false>, 1) == 8);
  CHECK(wrong_of(rotate_twice<true>, 2) == 0);
  CHECK(wrong_of(rotate_twice<false>, 2) == 8);
}

TEST_CASE("threads that do not meet are reported by kernel, block and thread") {
  const Device<float> y(kThreads);
  const std::string left = fault_of([&] {
    launch("one_leaves", {dim3(2), dim3(kThreads)}, one_leaves, y.at);
  });
  CHECK(contains(left, "kernel one_leaves, block (1,0,0): thread ("));
  CHECK(contains(left, "waits at __syncthreads (test_cuda_on_cpu.cpp:"));
  CHECK(contains(left, "but thread (5,0,0) has returned"));
  const std::string two = fault_of([&] {
    launch("two_barriers", {dim3(1), dim3(2, 2)}, two_barriers, y.at);
  });
  CHECK(contains(two, "kernel two_barriers, block (0,0,0), thread ("));
  CHECK(contains(two, "but thread ("));
  const std::string stuck = fault_of([&] {
    launch("stuck", {dim3(1), dim3(32)}, barrier_against_shuffle, y.at);
  });
  CHECK(contains(stuck, "waits at __syncthreads"));
  CHECK(contains(stuck, "waits for the lanes 0xffffffff of its warp"));
  launch("rotate", {dim3(1), dim3(kThreads), sizeof(Exchange)}, rotate<true>, y.at, y.at);  // life goes on
  CHECK(fault_of([] {}) == "no fault");
}

TEST_CASE("shuffles, votes and reductions give what CUDA's documentation says") {
  constexpr int n = 64;
  const Device<int> y(10 * n);
  launch("warp_words", {dim3(1), dim3(n)}, warp_words, y.at);
  const std::vector<int> got = y.read();
  for (int t = 0; t < n; ++t) {
    const int lane = t % 32;
    const auto is = [&](int row, int want) {
      CHECK_MESSAGE(got[size_t(row * n + t)] == want, "row " << row << ", thread " << t);
    };
    is(0, 7), is(1, lane ^ 5), is(2, lane < 3 ? lane : lane - 3);
    is(3, lane % 8 + 3 < 8 ? lane + 3 : lane);
    is(4, 0x49249249), is(5, 1), is(6, 31 * 16 + 0), is(7, n / 2 + 1000), is(8, 0x40000000);
    if (lane < 12) is(9, lane ^ 1);
  }
}

TEST_CASE("lanes that are missing from a shuffle are reported") {
  const Device<int> y(64);
  const auto fault = [&](void (*kernel)(int*), unsigned threads) {
    return fault_of([&] { launch("lanes", {dim3(1), dim3(threads)}, kernel, y.at); });
  };
  CHECK(contains(fault(not_in_mask, 32), "thread (31,0,0): waits for the lanes 0x7fffffff of its warp"));
  CHECK(contains(fault(from_outside, 32), "reads lane"));
  CHECK(contains(fault(short_warp, 40), "which takes no part in it"));
  CHECK(contains(fault(two_masks, 32), "of its warp"));
}

TEST_CASE("atomics, blocks in any order, the last one knows it") {
  constexpr unsigned blocks = 40;
  const Device<int> parts(std::vector<int>(blocks, 0)), finished(std::vector<int>(1, 0)), sum(1);
  launch("sum_of_blocks", {dim3(blocks), dim3(64)}, sum_of_blocks, parts.at, finished.at, sum.at);
  CHECK(sum.read()[0] == int(blocks) * 64 * 63 / 2);
}

TEST_CASE("launches beyond the limits of sm_90 are refused as the driver does") {
  const auto launched = [](dim3 grid, dim3 block, size_t shared) {
    cudaLaunchConfig_t c{};
    c.gridDim = grid, c.blockDim = block, c.dynamicSmemBytes = shared, c.stream = stream();
    return cudaLaunchKernelEx(&c, empty);
  };
  CHECK(launched(1, 1024, 0) == cudaSuccess);
  CHECK(launched(1, 1025, 0) == cudaErrorInvalidConfiguration);
  CHECK(launched(1, dim3(32, 33), 0) == cudaErrorInvalidConfiguration);
  CHECK(launched(1, dim3(1, 1, 65), 0) == cudaErrorInvalidConfiguration);
  CHECK(launched(1, 0, 0) == cudaErrorInvalidConfiguration);
  CHECK(launched(dim3(1, 65535), 1, 0) == cudaSuccess);
  CHECK(launched(dim3(1, 65536), 1, 0) == cudaErrorInvalidConfiguration);
  CHECK(launched(dim3(1, 1, 65536), 1, 0) == cudaErrorInvalidConfiguration);
  CHECK(launched(dim3(0x80000000u), 1, 0) == cudaErrorInvalidConfiguration);
  const auto* kernel = reinterpret_cast<const void*>(&empty);
  CHECK(launched(1, 1, 48 * 1024) == cudaSuccess);
  CHECK(launched(1, 1, 48 * 1024 + 1) == cudaErrorInvalidValue);
  CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, 227 * 1024 + 1) ==
        cudaErrorInvalidValue);
  CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, 227 * 1024) == cudaSuccess);
  CHECK(launched(1, 1, 227 * 1024) == cudaSuccess);
  CHECK(fault_of([] {}) == "no fault");
}

TEST_CASE("shared memory is NaN before every block, and as large as was asked for") {
  const Device<float> y(3 * kThreads);
  launch("read_before_write", {dim3(3), dim3(kThreads), sizeof(Exchange)}, read_before_write, y.at);
  for (const float v : y.read()) CHECK(std::isnan(v));
  CHECK(contains(fault_of([] {
                   launch("reach", {dim3(1), dim3(1), 16}, shared_store, 0);
                 }),
                 "uses 32 bytes of shared memory, launched with 16"));
  const auto reach = [](int at) {
    launch("reach", {dim3(1), dim3(1), sizeof(Reach)}, shared_store, at), cudaDeviceSynchronize();
  };
  if (!kAsan) {
    CHECK(contains(fault_of([&] { reach(8); }),
                   "kernel reach, block (0,0,0): writes past the 32 bytes of shared memory"));
    CHECK(contains(fault_of([&] { reach(-1); }), "writes before the beginning of its shared memory"));
  } else {
    CHECK(contains(last_words_of([&] { reach(8); }), "AddressSanitizer: use-after-poison"));
  }
  CHECK(fault_of([&] { reach(7); }) == "no fault");
}

TEST_CASE("device memory: new is NaN, nothing is written around it, nothing after it was freed") {
  const Device<float> y(100);
  for (const float v : y.read()) CHECK(std::isnan(v));
  const auto stored = [&](int64_t at) {
    return [&y, at] { launch("store", {dim3(1), dim3(1)}, store, y.at, at), cudaDeviceSynchronize(); };
  };
  CHECK(fault_of(stored(99)) == "no fault");
  if (kAsan) {
    CHECK(contains(last_words_of(stored(100)), "AddressSanitizer: use-after-poison"));
    CHECK(contains(last_words_of(stored(-1)), "AddressSanitizer: use-after-poison"));
  } else {
    CHECK(contains(fault_of(stored(100)), "kernel store: wrote past the end of an allocation of 400 bytes"));
    CHECK(contains(fault_of(stored(-1)),
                   "kernel store: wrote before the beginning of an allocation of 400 bytes"));
  }
  float* freed = nullptr;
  REQUIRE(cudaMalloc(&freed, 400) == cudaSuccess);
  REQUIRE(cudaFree(freed) == cudaSuccess);
  CHECK(contains(fault_of([&] {
                   launch("late", {dim3(1), dim3(1)}, store, freed, 0);
                 }),
                 "kernel late: pointer in argument 1: "));
  CHECK(
      contains(fault_of([&] { cudaFree(freed); }), "is no allocation of the device (freed, or never made)"));
  const auto hidden = [&] {
    launch("late", {dim3(1), dim3(1)}, store_hidden, Hidden{freed}), cudaDeviceSynchronize();
  };
  if (kAsan) CHECK(contains(last_words_of(hidden), "AddressSanitizer: use-after-poison"));
  else CHECK(contains(fault_of(hidden), "kernel late: wrote to freed device memory"));
}

TEST_CASE("a tail that a sum runs over changes the NaN behind it") {
  if (kAsan) return;  // stops at the read already
  const Device<float> x(std::vector<float>(100, 1)), y(std::vector<float>(100, 1));
  CHECK(fault_of([&] { launch("add", {dim3(1), dim3(128)}, add, x.at, y.at, 100); }) == "no fault");
  CHECK(contains(fault_of([&] {
                   launch("add", {dim3(1), dim3(128)}, add, x.at, y.at, 101);
                 }),
                 "wrote past the end"));
}

TEST_CASE("copies are checked for direction and bounds, kernels for pointers of the host") {
  const Device<float> x(100);
  std::vector<float> here(100);
  const auto copy = [&](void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
    return fault_of([&] { cudaMemcpyAsync(to, from, bytes, kind, stream()); });
  };
  CHECK(contains(copy(x.at, here.data(), 404, cudaMemcpyHostToDevice),
                 "404 bytes run 4 bytes past the end of an allocation of 400 bytes"));
  CHECK(contains(copy(x.at, here.data(), 400, cudaMemcpyDeviceToHost), "destination: "));
  CHECK(contains(copy(here.data(), x.at, 400, cudaMemcpyHostToDevice), "is host memory"));
  CHECK(contains(copy(x.at, here.data(), 400, cudaMemcpyDeviceToDevice), "device to device, source: "));
  CHECK(copy(x.at, here.data(), 400, cudaMemcpyDefault) == "no fault");
  CHECK(contains(fault_of([&] { cudaMemset(x.at + 1, 0, 400); }), "past the end"));
  CHECK(contains(fault_of([&] {
                   launch("store", {dim3(1), dim3(1)}, store, here.data(), 0);
                 }),
                 "is host memory"));
}

TEST_CASE("host code that touches device memory is told so") {
  const Device<float> x(counting(8));
  CHECK(contains(last_words_of([&] {
                   volatile float v = x.at[0];
                   (void)v;
                 }),
                 "host code touched device memory"));
  CHECK(last_words_of([] {}) == "lives");
}

TEST_CASE("a wild address inside a kernel is reported with the thread that used it") {
  const Device<float> y(8);
  const std::string words = last_words_of([&] {
    launch("wild", {dim3(1), dim3(1)}, store, y.at, int64_t(1) << 40);
    cudaDeviceSynchronize();
  });
  CHECK(contains(words, kAsan ? "AddressSanitizer"
                              : "kernel wild, block (0,0,0), thread (0,0,0): an access to the address"));
  CHECK(contains(fault_of([&] {
                   launch("trapped", {dim3(1), dim3(8)}, trapped, reinterpret_cast<int*>(y.at));
                 }),
                 "kernel trapped, block (0,0,0), thread (3,0,0): trap"));
}

TEST_CASE("work waits until somebody waits for it") {
  float* pinned = nullptr;
  REQUIRE(cudaMallocHost(&pinned, 4) == cudaSuccess);
  *pinned = 1;
  const Device<float> x(1);
  std::vector<float> pageable{5};
  cudaMemcpyAsync(x.at, pageable.data(), 4, cudaMemcpyHostToDevice, stream());
  pageable[0] = 6;  // allowed: such memory was staged
  cudaMemcpyAsync(pinned, x.at, 4, cudaMemcpyDeviceToHost, stream());
  CHECK(*pinned == 1);  // too early
  CHECK(cudaStreamSynchronize(stream()) == cudaSuccess);
  CHECK(*pinned == 5);
  *pinned = 7;
  cudaMemcpyAsync(x.at, pinned, 4, cudaMemcpyHostToDevice, stream());
  *pinned = 8;  // too early: the copy has not happened
  CHECK(x.read()[0] == 8);
  cudaFreeHost(pinned);
}

TEST_CASE("the null stream waits for the blocking streams and they for it; host functions keep their place") {
  cudaStream_t blocking;
  cudaStreamCreate(&blocking);
  static std::string order;
  const auto note = [](cudaStream_t s, const char* word) {
    cudaLaunchHostFunc(
        s, [](void* w) { order += static_cast<const char*>(w); }, const_cast<char*>(word));
  };
  for (int run = 0; run < 20; ++run) {
    order.clear();
    note(blocking, "a"), note(nullptr, "b"), note(blocking, "c"), note(nullptr, "d");
    CHECK(order.empty());
    CHECK(cudaStreamQuery(nullptr) == cudaErrorNotReady);
    cudaDeviceSynchronize();
    CHECK(order == "abcd");
    CHECK(cudaStreamQuery(nullptr) == cudaSuccess);
  }
  cudaStreamDestroy(blocking);
}

TEST_CASE("the pool: what is freed in order of the stream is used again, its size is told") {
  uint64_t before = 0, after = 0;
  const auto reserved = [](uint64_t& bytes) {
    cudaMemPoolGetAttribute(nullptr, cudaMemPoolAttrReservedMemCurrent, &bytes);
  };
  for (int run = 0; run < 100; ++run) {
    void* at = nullptr;
    REQUIRE(cudaMallocAsync(&at, 1 << 20, stream()) == cudaSuccess);
    if (run == 0) reserved(before);
    CHECK(cudaMemsetAsync(at, 1, 1 << 20, stream()) == cudaSuccess);
    CHECK(cudaFreeAsync(at, stream()) == cudaSuccess);
  }
  reserved(after);
  CHECK(after == before);
  void* too_much = nullptr;
  CHECK(cudaMallocAsync(&too_much, size_t(1) << 40, stream()) == cudaErrorMemoryAllocation);
  CHECK(cudaGetLastError() == cudaErrorMemoryAllocation);
  CHECK(cudaGetLastError() == cudaSuccess);
}

TEST_CASE("streams are ordered by events and by nothing else") {
  cudaStream_t other;
  cudaEvent_t written;
  cudaStreamCreateWithFlags(&other, cudaStreamNonBlocking);
  cudaEventCreateWithFlags(&written, cudaEventDisableTiming);
  const Device<float> x(1), y(1);
  int late = 0;
  for (int run = 0; run < 40; ++run) {
    cudaMemsetAsync(x.at, 0, 4, stream());
    cudaDeviceSynchronize();
    const std::vector<float> one{1};
    cudaMemcpyAsync(x.at, one.data(), 4, cudaMemcpyHostToDevice, stream());
    cudaEventRecord(written, stream());
    if (run >= 20) cudaStreamWaitEvent(other, written);
    cudaMemcpyAsync(y.at, x.at, 4, cudaMemcpyDeviceToDevice, other);
    cudaDeviceSynchronize();
    const bool saw = y.read()[0] == 1;
    late += run < 20 && !saw;
    if (run >= 20) CHECK(saw);
  }
  CHECK(late > 0);
  cudaEventDestroy(written);
  cudaStreamDestroy(other);
}

namespace {

// op(A)(i, l) of the column-major A that begins at `first`.
double entry(const std::vector<double>& A, cublasOperation_t op, int ld, int i, int l, int first) {
  return A[size_t(first + (op == CUBLAS_OP_N ? l * ld + i : i * ld + l))];
}

template <class T>
constexpr cudaDataType type_of = std::is_same_v<T, double>  ? CUDA_R_64F
                                 : std::is_same_v<T, float> ? CUDA_R_32F
                                                            : CUDA_R_16BF;

// Multiples of 1/8 below 4: bf16 holds them, and sums of a few products are exact in f32, so results are too;
// only the last rounding, to bf16, is left (2^-8 of the value).
std::vector<double> eighths(size_t n, unsigned salt) {
  std::vector<double> v(n);
  for (size_t i = 0; i < n; ++i) v[i] = (int((i * 37 + salt) % 64) - 32) / 8.0;
  return v;
}

template <class T>
Device<T> on_device(const std::vector<double>& v) {
  std::vector<T> r;
  for (const double x : v) r.push_back(static_cast<T>(static_cast<llatte::acc_t<T>>(x)));
  return Device<T>(r);
}

// C := op(A) op(B) + beta C for two matrices in a batch, every leading dimension longer than it has to be.
template <class In, class Out>
void check_gemm(cublasHandle_t h, cublasOperation_t opA, cublasOperation_t opB, double beta) {
  constexpr int m = 3, n = 4, k = 5, ld = 7, step = 40, batches = 2;
  const std::vector<double> a = eighths(batches * step, 1), b = eighths(batches * step, 2),
                            c = eighths(batches * step, 3);
  const Device<In> A = on_device<In>(a), B = on_device<In>(b);
  const Device<Out> C = on_device<Out>(c);
  using Scalar = std::conditional_t<std::is_same_v<In, double>, double, float>;
  const Scalar one = 1, keep = static_cast<Scalar>(beta);
  CHECK(cublasGemmStridedBatchedEx(h, opA, opB, m, n, k, &one, A.at, type_of<In>, ld, step, B.at, type_of<In>,
                                   ld, step, &keep, C.at, type_of<Out>, ld, step, batches,
                                   std::is_same_v<In, double> ? CUBLAS_COMPUTE_64F : CUBLAS_COMPUTE_32F,
                                   CUBLAS_GEMM_DEFAULT) == CUBLAS_STATUS_SUCCESS);
  const std::vector<Out> got = C.read();
  for (int z = 0; z < batches; ++z)
    for (int j = 0; j < n; ++j)
      for (int i = 0; i < m; ++i) {
        double want = beta * c[size_t(z * step + j * ld + i)];
        for (int l = 0; l < k; ++l)
          want += entry(a, opA, ld, i, l, z * step) * entry(b, opB, ld, l, j, z * step);
        const double error = std::abs(double(got[size_t(z * step + j * ld + i)]) - want);
        CHECK(error <= (std::is_same_v<Out, bf16> ? std::abs(want) / 256 : 0));
      }
}

}  // namespace

TEST_CASE("cuBLAS: transposes, strides, beta and types; matrices outside of their allocation") {
  cublasHandle_t h;
  cublasCreate(&h), cublasSetStream(h, stream());
  for (const auto opA : {CUBLAS_OP_N, CUBLAS_OP_T})
    for (const auto opB : {CUBLAS_OP_N, CUBLAS_OP_T})
      for (const double beta : {0.0, 1.0}) {
        check_gemm<double, double>(h, opA, opB, beta);
        check_gemm<float, float>(h, opA, opB, beta);
        check_gemm<bf16, float>(h, opA, opB, beta);
        check_gemm<bf16, bf16>(h, opA, opB, beta);
      }
  const Device<float> A(12), B(12), C(12);
  const float one = 1, zero = 0;
  const auto product = [&](int ldA, cudaDataType typeC) {
    return cublasGemmEx(h, CUBLAS_OP_N, CUBLAS_OP_N, 3, 4, 4, &one, A.at, CUDA_R_32F, ldA, B.at, CUDA_R_32F,
                        4, &zero, C.at, typeC, 3, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT);
  };
  CHECK(product(2, CUDA_R_32F) == CUBLAS_STATUS_INVALID_VALUE);
  CHECK(product(3, CUDA_R_16BF) == CUBLAS_STATUS_NOT_SUPPORTED);
  CHECK(contains(fault_of([&] { product(3, CUDA_R_32F); }),
                 "cuBLAS product, matrix B 4x4: 64 bytes run 16 bytes past the end"));
  cublasDestroy(h);
}

TEST_CASE("cuSOLVER: verdicts on the device, work space checked, what it destroys is destroyed") {
  constexpr int m = 5, n = 3;
  cusolverDnHandle_t h;
  cusolverDnCreate(&h), cusolverDnSetStream(h, stream());
  std::vector<double> a(m * n);
  for (size_t i = 0; i < a.size(); ++i) a[i] = std::sin(3.0 * double(i) + 1);
  int size = 0;
  CHECK(cusolverDnDgesvd_bufferSize(h, n, m, &size) == CUSOLVER_STATUS_INVALID_VALUE);  // needs m >= n
  CHECK(cusolverDnDgesvd_bufferSize(h, m, n, &size) == CUSOLVER_STATUS_SUCCESS);
  const Device<double> A(a), S(n), U(m * n), VT(n * n), work(static_cast<size_t>(size));
  const Device<int> info(1);
  const auto svd = [&](int lwork) {
    return cusolverDnDgesvd(h, 'S', 'S', m, n, A.at, m, S.at, U.at, m, VT.at, n, work.at, lwork, nullptr,
                            info.at);
  };
  CHECK(svd(size - 1) == CUSOLVER_STATUS_INVALID_VALUE);
  CHECK(contains(fault_of([&] { svd(size + 1); }), "cusolverDnDgesvd, work"));
  CHECK(svd(size) == CUSOLVER_STATUS_SUCCESS);
  CHECK(info.read()[0] == 0);
  const auto s = S.read(), u = U.read(), vt = VT.read();
  for (int j = 0; j < n; ++j)
    for (int i = 0; i < m; ++i) {
      double sum = 0;
      for (int k = 0; k < n; ++k) sum += u[size_t(k * m + i)] * s[size_t(k)] * vt[size_t(j * n + k)];
      CHECK(std::abs(sum - a[size_t(j * m + i)]) < 1e-13);  // 2^-53 times a few terms of order 1
    }
  for (const double x : A.read()) CHECK(std::isnan(x));
  const Device<double> B(std::vector<double>{1, 2, 2, 1});  // not positive definite
  CHECK(cusolverDnDpotrf(h, CUBLAS_FILL_MODE_LOWER, 2, B.at, 2, work.at, size, info.at) ==
        CUSOLVER_STATUS_SUCCESS);
  CHECK(info.read()[0] == 2);
  cusolverDnDestroy(h);
}
