// SwiGLU.  With s = sigmoid(g):  y = g s u,   du = dy g s,   dg = dy u s (1 + g (1 - s)).
#include "tensor/cuda/pack.h"

namespace llatte::cuda {
namespace {

template <class T, int N>
__global__ void swiglu_forward(const T* gate, const T* up, T* y, int64_t n) {
  using A = acc_t<T>;
  const int64_t at = global_thread() * N;
  if (at >= n) return;
  const Pack<T, N> pg = load<N>(gate, at, n), pu = load<N>(up, at, n);
  Pack<T, N> py;
#pragma unroll
  for (int j = 0; j < N; ++j) {
    const A g = A(pg.at[j]), u = A(pu.at[j]);
    py.at[j] = T(g / (1 + exp(-g)) * u);
  }
  store<N>(y, at, n, py);
}

template <class T, int N>
__global__ void swiglu_backward(const T* dy, const T* gate, const T* up, T* dgate, T* dup, int64_t n) {
  using A = acc_t<T>;
  const int64_t at = global_thread() * N;
  if (at >= n) return;
  const Pack<T, N> pd = load<N>(dy, at, n), pg = load<N>(gate, at, n), pu = load<N>(up, at, n);
  Pack<T, N> dg, du;
#pragma unroll
  for (int j = 0; j < N; ++j) {
    const A g = A(pg.at[j]), u = A(pu.at[j]), d = A(pd.at[j]), s = 1 / (1 + exp(-g));
    du.at[j] = T(d * g * s);
    dg.at[j] = T(d * u * s * (1 + g * (1 - s)));
  }
  store<N>(dgate, at, n, dg);
  store<N>(dup, at, n, du);
}

}  // namespace

void swiglu_fwd(const Tensor& gate, const Tensor& up, Tensor& y) {
  const int64_t n = y.numel();
  dispatch_float(gate.dtype(), "swiglu", [&]<class T>() {
    constexpr int N = kPack<T>;
    launch("swiglu_fwd", {blocks_for(n, kThreads * N), unsigned(kThreads)}, swiglu_forward<T, N>,
           gate.data<T>(), up.data<T>(), y.data<T>(), n);
  });
}

void swiglu_bwd(const Tensor& dy, const Tensor& gate, const Tensor& up, Tensor& dgate, Tensor& dup) {
  const int64_t n = dy.numel();
  dispatch_float(gate.dtype(), "swiglu", [&]<class T>() {
    constexpr int N = kPack<T>;
    launch("swiglu_bwd", {blocks_for(n, kThreads * N), unsigned(kThreads)}, swiglu_backward<T, N>,
           dy.data<T>(), gate.data<T>(), up.data<T>(), dgate.data<T>(), dup.data<T>(), n);
  });
}

}  // namespace llatte::cuda
