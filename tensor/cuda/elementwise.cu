// Elementwise arithmetic and sums over rows. bf16 numbers are widened to f32, used, and rounded once. Each
// thread has a pack of 16 bytes, read before it is written, so y may be one of the inputs.
#include "tensor/cuda/column_sums.h"

namespace llatte::cuda {
namespace {

struct Add {
  template <class A>
  __device__ A operator()(A a, A b) const {
    return a + b;
  }
};
struct Mul {
  template <class A>
  __device__ A operator()(A a, A b) const {
    return a * b;
  }
};

// y = f(a, b), element by element.
template <class T, int N, class F>
__global__ void binary_kernel(const T* a, const T* b, T* y, int64_t n, F f) {
  using A = acc_t<T>;
  const int64_t at = global_thread() * N;
  if (at >= n) return;
  const Pack<T, N> pa = load<N>(a, at, n), pb = load<N>(b, at, n);
  Pack<T, N> py;
#pragma unroll
  for (int j = 0; j < N; ++j) py.at[j] = T(f(A(pa.at[j]), A(pb.at[j])));
  store<N>(y, at, n, py);
}

template <class F>
void binary(const char* op, const Tensor& a, const Tensor& b, Tensor& y, F f) {
  const int64_t n = y.numel();
  dispatch_float(y.dtype(), op, [&]<class T>() {
    constexpr int N = kPack<T>;
    launch(op, {blocks_for(n, kThreads * N), unsigned(kThreads)}, binary_kernel<T, N, F>, a.data<T>(),
           b.data<T>(), y.data<T>(), n, f);
  });
}

// y = x * factor, by value or (scale_by) from the device.
template <class T, int N>
__global__ void scale_kernel(const T* x, acc_t<T> factor, T* y, int64_t n) {
  using A = acc_t<T>;
  const int64_t at = global_thread() * N;
  if (at >= n) return;
  Pack<T, N> p = load<N>(x, at, n);
#pragma unroll
  for (int j = 0; j < N; ++j) p.at[j] = T(A(p.at[j]) * factor);
  store<N>(y, at, n, p);
}

template <class T, int N, class Factor>
__global__ void scale_by_kernel(const Factor* factor, T* y, int64_t n) {
  using A = acc_t<T>;
  const int64_t at = global_thread() * N;
  if (at >= n) return;
  const A c = static_cast<A>(*factor);
  Pack<T, N> p = load<N>(y, at, n);
#pragma unroll
  for (int j = 0; j < N; ++j) p.at[j] = T(A(p.at[j]) * c);
  store<N>(y, at, n, p);
}

template <class X, class S, int N>
__global__ void accumulate_kernel(const X* x, S* sum, int64_t n) {
  using A = acc_t<S>;
  const int64_t at = global_thread() * N;
  if (at >= n) return;
  const Pack<X, N> px = load<N>(x, at, n);
  Pack<S, N> ps = load<N>(sum, at, n);
#pragma unroll
  for (int j = 0; j < N; ++j) ps.at[j] = S(A(ps.at[j]) + A(acc_t<X>(px.at[j])));
  store<N>(sum, at, n, ps);
}

// A block walks one row after another; its threads share the row's packs.
template <class T, int N>
__global__ void add_bias_kernel(const T* x, const T* b, T* y, int64_t D) {
  using A = acc_t<T>;
  const int64_t row = blockIdx.x * D;
  for (int64_t at = threadIdx.x * N; at < D; at += blockDim.x * N) {
    const Pack<T, N> px = load<N>(x + row, at, D), pb = load<N>(b, at, D);
    Pack<T, N> py;
#pragma unroll
    for (int j = 0; j < N; ++j) py.at[j] = T(A(px.at[j]) + A(pb.at[j]));
    store<N>(y + row, at, D, py);
  }
}

template <class T>
struct Entry {
  const T* x;
  int64_t D;
  __device__ acc_t<T> operator()(int64_t n, int64_t d) const { return acc_t<T>(x[n * D + d]); }
};

}  // namespace

void add(const Tensor& a, const Tensor& b, Tensor& y) { binary("add", a, b, y, Add()); }

void mul(const Tensor& a, const Tensor& b, Tensor& y) { binary("mul", a, b, y, Mul()); }

void scale(const Tensor& x, double factor, Tensor& y) {
  const int64_t n = y.numel();
  dispatch_float(y.dtype(), "scale", [&]<class T>() {
    constexpr int N = kPack<T>;
    launch("scale", {blocks_for(n, kThreads * N), unsigned(kThreads)}, scale_kernel<T, N>, x.data<T>(),
           static_cast<acc_t<T>>(factor), y.data<T>(), n);
  });
}

void scale_by(const Tensor& factor, Tensor& y) {
  const int64_t n = y.numel();
  dispatch_float(y.dtype(), "scale_by", [&]<class T>() {
    constexpr int N = kPack<T>;
    const Grid grid{blocks_for(n, kThreads * N), unsigned(kThreads)};
    if (factor.dtype() == DType::f64)
      launch("scale_by", grid, scale_by_kernel<T, N, double>, factor.data<double>(), y.data<T>(), n);
    else launch("scale_by", grid, scale_by_kernel<T, N, float>, factor.data<float>(), y.data<T>(), n);
  });
}

void accumulate(const Tensor& x, Tensor& sum) {
  const int64_t n = x.numel();
  dispatch_float(x.dtype(), "accumulate", [&]<class X>() {
    dispatch_float(sum.dtype(), "accumulate", [&]<class S>() {
      constexpr int N = kPack<X, S>;
      launch("accumulate", {blocks_for(n, kThreads * N), unsigned(kThreads)}, accumulate_kernel<X, S, N>,
             x.data<X>(), sum.data<S>(), n);
    });
  });
}

void add_bias(const Tensor& x, const Tensor& b, Tensor& y) {
  const int64_t D = b.numel(), N = D ? x.numel() / D : 0;
  dispatch_float(y.dtype(), "add_bias", [&]<class T>() {
    constexpr int P = kPack<T>;
    launch("add_bias", {blocks_for(N, 1), threads_for_row((D + P - 1) / P)}, add_bias_kernel<T, P>,
           x.data<T>(), b.data<T>(), y.data<T>(), D);
  });
}

void sum_rows(const Tensor& x, Tensor& sum) {
  const int64_t D = sum.numel(), N = D ? x.numel() / D : 0;
  dispatch_float(x.dtype(), "sum_rows", [&]<class T>() {
    sum_columns("sum_rows", Entry<T>{x.data<T>(), D}, N, D, sum.data<acc_t<T>>());
  });
}

}  // namespace llatte::cuda
