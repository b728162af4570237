// RMSNorm.  y = x * r * w,  r = 1/sqrt(mean_D(x^2) + eps).  With g = dy * w:
//   dx = r * (g - x * r^2 * mean_D(g * x)),   dw = sum_N(dy * x * r).
// A block has a row; dw is summed over rows in fixed blocks (column_sums.h).
#include "tensor/cuda/column_sums.h"

namespace llatte::cuda {
namespace {

template <class T, int P>
__global__ void rms_norm_forward(const T* x, const T* w, double eps, int64_t D, T* y, acc_t<T>* r) {
  using A = acc_t<T>;
  auto& s = block_shared<PerWarp<A>>();
  const int64_t n = blockIdx.x, step = blockDim.x * P;
  x += n * D, y += n * D;
  A ss = 0;
  for (int64_t at = threadIdx.x * P; at < D; at += step) {
    const Pack<T, P> px = load<P>(x, at, D);
#pragma unroll
    for (int j = 0; j < P; ++j) ss += A(px.at[j]) * A(px.at[j]);
  }
  const A rn = A(1 / sqrt(double(block_sum(ss, s)) / double(D) + eps));
  for (int64_t at = threadIdx.x * P; at < D; at += step) {
    const Pack<T, P> px = load<P>(x, at, D), pw = load<P>(w, at, D);
    Pack<T, P> py;
#pragma unroll
    for (int j = 0; j < P; ++j) py.at[j] = T(A(px.at[j]) * rn * A(pw.at[j]));
    store<P>(y, at, D, py);
  }
  if (threadIdx.x == 0) r[n] = rn;
}

template <class T, int P>
__global__ void rms_norm_backward(const T* dy, const T* x, const T* w, const acc_t<T>* r, int64_t D, T* dx) {
  using A = acc_t<T>;
  auto& s = block_shared<PerWarp<A>>();
  const int64_t n = blockIdx.x, step = blockDim.x * P;
  dy += n * D, x += n * D, dx += n * D;
  A gx = 0;
  for (int64_t at = threadIdx.x * P; at < D; at += step) {
    const Pack<T, P> g = load<P>(dy, at, D), px = load<P>(x, at, D), pw = load<P>(w, at, D);
#pragma unroll
    for (int j = 0; j < P; ++j) gx += A(g.at[j]) * A(pw.at[j]) * A(px.at[j]);
  }
  const A rn = r[n], c = rn * rn * block_sum(gx, s) / A(D);
  for (int64_t at = threadIdx.x * P; at < D; at += step) {
    const Pack<T, P> g = load<P>(dy, at, D), px = load<P>(x, at, D), pw = load<P>(w, at, D);
    Pack<T, P> out;
#pragma unroll
    for (int j = 0; j < P; ++j) out.at[j] = T(rn * (A(g.at[j]) * A(pw.at[j]) - A(px.at[j]) * c));
    store<P>(dx, at, D, out);
  }
}

// A row's share of dw.
template <class T>
struct GainTerm {
  const T *dy, *x;
  const acc_t<T>* r;
  int64_t D;
  __device__ acc_t<T> operator()(int64_t n, int64_t d) const {
    return acc_t<T>(dy[n * D + d]) * acc_t<T>(x[n * D + d]) * r[n];
  }
};

}  // namespace

void rms_norm_fwd(const Tensor& x, const Tensor& w, double eps, Tensor& y, Tensor& r) {
  const int64_t D = w.numel(), N = r.numel();
  dispatch_float(x.dtype(), "rms_norm", [&]<class T>() {
    using A = acc_t<T>;
    constexpr int P = kPack<T>;
    launch("rms_norm_fwd", {blocks_for(N, 1), threads_for_row((D + P - 1) / P), sizeof(PerWarp<A>)},
           rms_norm_forward<T, P>, x.data<T>(), w.data<T>(), eps, D, y.data<T>(), r.data<A>());
  });
}

void rms_norm_bwd(const Tensor& dy, const Tensor& x, const Tensor& w, const Tensor& r, Tensor& dx,
                  Tensor& dw) {
  const int64_t D = w.numel(), N = r.numel();
  dispatch_float(x.dtype(), "rms_norm", [&]<class T>() {
    using A = acc_t<T>;
    constexpr int P = kPack<T>;
    launch("rms_norm_bwd", {blocks_for(N, 1), threads_for_row((D + P - 1) / P), sizeof(PerWarp<A>)},
           rms_norm_backward<T, P>, dy.data<T>(), x.data<T>(), w.data<T>(), r.data<A>(), D, dx.data<T>());
    sum_columns("rms_norm_bwd_dw", GainTerm<T>{dy.data<T>(), x.data<T>(), r.data<A>(), D}, N, D,
                dw.data<A>());
  });
}

}  // namespace llatte::cuda
