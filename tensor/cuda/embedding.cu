// Embedding: rows of a table. The backward gives every row of dw to one block, which sums the row's positions
// in ascending order (order.h): no atomics, the same bits every time. An id outside [0,V) is reported; its
// row of y is zero and its gradient goes nowhere.
#include "tensor/cuda/order.h"

namespace llatte::cuda {
namespace {

constexpr const char* kOutside =
    "embedding: id {} at position {} is outside [0,{}), the vocabulary of the table";

template <class T, int N>
__global__ void embedding_kernel(const int32_t* ids, const T* w, int64_t V, int64_t D, T* y, Report outside) {
  const int64_t n = blockIdx.x, id = ids[n];
  const bool valid = 0 <= id && id < V;
  if (!valid && threadIdx.x == 0) outside(id, n, V);
  for (int64_t at = threadIdx.x * N; at < D; at += blockDim.x * N) {
    const Pack<T, N> row = valid ? load<N>(w + id * D, at, D) : Pack<T, N>{};
    store<N>(y + n * D, at, D, row);
  }
}

constexpr int kAhead = 4;  // rows read before they are added: hides the latency of a frequent id's long list

// Each thread has a column of dw's row.
template <class T>
__global__ void embedding_backward_kernel(const T* dy, const int32_t* order, const int32_t* starts, int64_t D,
                                          acc_t<T>* dw) {
  using A = acc_t<T>;
  const int64_t id = blockIdx.x;
  const int32_t begin = starts[id], end = starts[id + 1];
  for (int64_t d = threadIdx.x; d < D; d += blockDim.x) {
    A sum = 0;
    int32_t j = begin;
    for (; j + kAhead <= end; j += kAhead) {
      T rows[kAhead];
#pragma unroll
      for (int a = 0; a < kAhead; ++a) rows[a] = dy[order[j + a] * D + d];
#pragma unroll
      for (int a = 0; a < kAhead; ++a) sum += A(rows[a]);
    }
    for (; j < end; ++j) sum += A(dy[order[j] * D + d]);
    dw[id * D + d] = sum;
  }
}

}  // namespace

void embedding_fwd(const Tensor& ids, const Tensor& w, Tensor& y) {
  const int64_t V = w.size(0), D = w.size(1);
  dispatch_float(w.dtype(), "embedding", [&]<class T>() {
    constexpr int N = kPack<T>;
    launch("embedding_fwd", {blocks_for(ids.numel(), 1), threads_for_row((D + N - 1) / N)},
           embedding_kernel<T, N>, ids.data<int32_t>(), w.data<T>(), V, D, y.data<T>(), report(kOutside));
  });
}

void embedding_bwd(const Tensor& dy, const Tensor& ids, Tensor& dw) {
  const int64_t V = dw.size(0), D = dw.size(1);
  const Order by_id = order_of(ids, 0, V, report(kOutside));
  dispatch_float(dy.dtype(), "embedding", [&]<class T>() {
    launch("embedding_bwd", {blocks_for(V, 1), threads_for_row(D)}, embedding_backward_kernel<T>,
           dy.data<T>(), by_id.order.data<int32_t>(), by_id.starts.data<int32_t>(), D, dw.data<acc_t<T>>());
  });
}

}  // namespace llatte::cuda
