// See order.h.
#include "tensor/cuda/order.h"

namespace llatte::cuda {
namespace {

struct Keys {
  int32_t at[kThreads];
};

// A key that belongs nowhere is read as -1.
__device__ inline int32_t inside(int32_t key, int64_t C) { return key < C ? max(key, -1) : -1; }

__global__ void count_places(const int32_t* keys, int64_t N, int64_t low, int64_t C, int32_t* order,
                             int32_t* sorted, Report outside) {
  auto& s = block_shared<Keys>();
  const int64_t n = global_thread();
  const int32_t given = n < N ? keys[n] : 0, key = inside(given, C);
  if (n < N && (given < low || given >= C)) outside(given, n, C);
  int32_t place = 0;
  for (int64_t begin = 0; begin < N; begin += kThreads) {
    __syncthreads();  // the tile before has been read
    if (begin + threadIdx.x < N) s.at[threadIdx.x] = inside(keys[begin + threadIdx.x], C);
    __syncthreads();
    const int count = int(N - begin < kThreads ? N - begin : kThreads);
    for (int j = 0; j < count; ++j) place += s.at[j] < key || (s.at[j] == key && begin + j < n);
  }
  if (n < N) order[place] = int32_t(n), sorted[place] = key;
}

// starts[c] = number of keys below c, by bisection.
__global__ void find_starts(const int32_t* sorted, int64_t N, int64_t C, int32_t* starts) {
  const int64_t c = global_thread();
  if (c > C) return;
  int64_t low = 0, high = N;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (sorted[middle] < c) low = middle + 1;
    else high = middle;
  }
  starts[c] = int32_t(low);
}

}  // namespace

Order order_of(const Tensor& keys, int64_t low, int64_t C, const Report& outside) {
  const int64_t N = keys.numel();
  Order r{Tensor::empty({N}, DType::i32, Device::cuda), Tensor::empty({C + 1}, DType::i32, Device::cuda)};
  Tensor sorted = Tensor::empty({N}, DType::i32, Device::cuda);
  launch("count_places", {blocks_for(N, kThreads), unsigned(kThreads), sizeof(Keys)}, count_places,
         keys.data<int32_t>(), N, low, C, r.order.data<int32_t>(), sorted.data<int32_t>(), outside);
  launch("find_starts", {blocks_for(C + 1, kThreads), unsigned(kThreads)}, find_starts,
         sorted.data<int32_t>(), N, C, r.starts.data<int32_t>());
  return r;
}

}  // namespace llatte::cuda
