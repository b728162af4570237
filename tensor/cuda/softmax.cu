// Softmax over the last dimension.  y = exp(x - max) / sum,   dx = y * (dy - sum(dy * y)).
// A block has a row. A row of -inf alone has no softmax and gives NaN.
#include <limits>
#include "tensor/cuda/pack.h"

namespace llatte::cuda {
namespace {

template <class T, int N>
__global__ void softmax_forward(const T* x, int64_t D, T* y) {
  using A = acc_t<T>;
  auto& s = block_shared<PerWarp<A>>();
  const int64_t row = blockIdx.x * D, step = blockDim.x * N;
  x += row, y += row;
  A top = -std::numeric_limits<A>::infinity(), sum = 0;
  for (int64_t i = threadIdx.x; i < D; i += blockDim.x) top = top < A(x[i]) ? A(x[i]) : top;
  top = block_max(top, s);
  for (int64_t i = threadIdx.x; i < D; i += blockDim.x) sum += exp(A(x[i]) - top);
  const A scale = 1 / block_sum(sum, s);
  for (int64_t at = threadIdx.x * N; at < D; at += step) {
    Pack<T, N> p = load<N>(x, at, D);
#pragma unroll
    for (int j = 0; j < N; ++j) p.at[j] = T(exp(A(p.at[j]) - top) * scale);
    store<N>(y, at, D, p);
  }
}

template <class T, int N>
__global__ void softmax_backward(const T* dy, const T* y, int64_t D, T* dx) {
  using A = acc_t<T>;
  auto& s = block_shared<PerWarp<A>>();
  const int64_t row = blockIdx.x * D, step = blockDim.x * N;
  dy += row, y += row, dx += row;
  A dot = 0;
  for (int64_t at = threadIdx.x * N; at < D; at += step) {
    const Pack<T, N> g = load<N>(dy, at, D), p = load<N>(y, at, D);
#pragma unroll
    for (int j = 0; j < N; ++j) dot += A(g.at[j]) * A(p.at[j]);
  }
  dot = block_sum(dot, s);
  for (int64_t at = threadIdx.x * N; at < D; at += step) {
    const Pack<T, N> g = load<N>(dy, at, D);
    Pack<T, N> p = load<N>(y, at, D);
#pragma unroll
    for (int j = 0; j < N; ++j) p.at[j] = T(A(p.at[j]) * (A(g.at[j]) - dot));
    store<N>(dx, at, D, p);
  }
}

template <class T>
Grid row_grid(int64_t rows, int64_t D) {
  return {blocks_for(rows, 1), threads_for_row((D + kPack<T> - 1) / kPack<T>), sizeof(PerWarp<acc_t<T>>)};
}

}  // namespace

void softmax_fwd(const Tensor& x, Tensor& y) {
  const int64_t D = x.size(-1), N = D ? x.numel() / D : 0;
  dispatch_float(x.dtype(), "softmax", [&]<class T>() {
    launch("softmax_fwd", row_grid<T>(N, D), softmax_forward<T, kPack<T>>, x.data<T>(), D, y.data<T>());
  });
}

void softmax_bwd(const Tensor& dy, const Tensor& y, Tensor& dx) {
  const int64_t D = y.size(-1), N = D ? y.numel() / D : 0;
  dispatch_float(y.dtype(), "softmax", [&]<class T>() {
    launch("softmax_bwd", row_grid<T>(N, D), softmax_backward<T, kPack<T>>, dy.data<T>(), y.data<T>(), D,
           dx.data<T>());
  });
}

}  // namespace llatte::cuda
