// Softmax over the last dimension.  y = exp(x - max) / sum,   dx = y * (dy - sum(dy * y)).
// A row of -inf alone has no softmax and gives NaN.
#include <limits>
#include "tensor/cpu/parallel.h"
#include "tensor/cpu/simd_math.h"
#include "tensor/kernels.h"

namespace llatte::cpu {
namespace {

// The exponentials are taken twice, which keeps both passes free of a buffer and the rounding to T to one.
template <class T, class A>
void forward_row(const T* x, int64_t D, T* y) {
  A max = -std::numeric_limits<A>::infinity(), sum = 0;
#pragma omp simd reduction(max : max)
  for (int64_t i = 0; i < D; ++i) max = max < A(x[i]) ? A(x[i]) : max;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < D; ++i) sum += simd_exp(A(x[i]) - max);
  const A scale = 1 / sum;
#pragma omp simd
  for (int64_t i = 0; i < D; ++i) store(y + i, simd_exp(A(x[i]) - max) * scale);
}

template <class T, class A>
void backward_row(const T* dy, const T* y, int64_t D, T* dx) {
  A dot = 0;
#pragma omp simd reduction(+ : dot)
  for (int64_t i = 0; i < D; ++i) dot += A(dy[i]) * A(y[i]);
#pragma omp simd
  for (int64_t i = 0; i < D; ++i) store(dx + i, A(y[i]) * (A(dy[i]) - dot));
}

}  // namespace

void softmax_fwd(const Tensor& x, Tensor& y) {
  const int64_t D = x.size(-1), N = D ? x.numel() / D : 0;
  dispatch_float(x.dtype(), "softmax", [&]<class T>() {
    const T* px = x.data<T>();
    T* py = y.data<T>();
    for_rows(N, D, [=](int64_t n) { forward_row<T, acc_t<T>>(px + n * D, D, py + n * D); });
  });
}

void softmax_bwd(const Tensor& dy, const Tensor& y, Tensor& dx) {
  const int64_t D = y.size(-1), N = D ? y.numel() / D : 0;
  dispatch_float(y.dtype(), "softmax", [&]<class T>() {
    const T *g = dy.data<T>(), *py = y.data<T>();
    T* pdx = dx.data<T>();
    for_rows(N, D, [=](int64_t n) { backward_row<T, acc_t<T>>(g + n * D, py + n * D, D, pdx + n * D); });
  });
}

}  // namespace llatte::cpu
