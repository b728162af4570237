// Gather: places of one dimension, picked by index. The backward sums every place in ascending order of m
// (order.h). An index outside [-1,C) is reported and read as -1.
#include "tensor/cuda/order.h"

namespace llatte::cuda {
namespace {

constexpr const char* kOutside =
    "gather: index {} at place {} is outside [-1,{}), the dimension gathered from";

// y_NMI, number by number: neighbours in i (or in m, if I is 1) are neighbours in the block.
template <class T>
__global__ void gather_kernel(const T* x, const int32_t* index, int64_t C, int64_t M, int64_t I, int64_t n,
                              T* y, Report outside) {
  const int64_t at = global_thread();
  if (at >= n) return;
  const int64_t i = at % I, m = at / I % M, row = at / I / M;
  const int32_t c = index[m];
  if (c < -1 || c >= C) outside(c, m, C);
  y[at] = 0 <= c && c < C ? x[(row * C + c) * I + i] : T(0);
}

template <class T>
__global__ void scatter_kernel(const T* dy, const int32_t* order, const int32_t* starts, int64_t C, int64_t M,
                               int64_t I, int64_t n, acc_t<T>* dx) {
  const int64_t at = global_thread();
  if (at >= n) return;
  const int64_t i = at % I, c = at / I % C, row = at / I / C;
  acc_t<T> sum = 0;
  for (int32_t j = starts[c]; j < starts[c + 1]; ++j) sum += acc_t<T>(dy[(row * M + order[j]) * I + i]);
  dx[at] = sum;
}

}  // namespace

void gather_fwd(const Tensor& x, const Tensor& index, Tensor& y) {
  const int64_t C = x.size(1), M = y.size(1), I = y.size(2), n = y.numel();
  dispatch_float(x.dtype(), "gather", [&]<class T>() {
    launch("gather_fwd", {blocks_for(n, kThreads), unsigned(kThreads)}, gather_kernel<T>, x.data<T>(),
           index.data<int32_t>(), C, M, I, n, y.data<T>(), report(kOutside));
  });
}

void gather_bwd(const Tensor& dy, const Tensor& index, Tensor& dx) {
  const int64_t C = dx.size(1), M = dy.size(1), I = dy.size(2), n = dx.numel();
  const Order by_place = order_of(index, -1, C, report(kOutside));
  dispatch_float(dy.dtype(), "gather", [&]<class T>() {
    launch("gather_bwd", {blocks_for(n, kThreads), unsigned(kThreads)}, scatter_kernel<T>, dy.data<T>(),
           by_place.order.data<int32_t>(), by_place.starts.data<int32_t>(), C, M, I, n, dx.data<acc_t<T>>());
  });
}

}  // namespace llatte::cuda
