// Elementwise arithmetic and sums over rows. bf16 numbers are widened to f32, used, and rounded once.
#include <algorithm>
#include "tensor/cpu/parallel.h"
#include "tensor/cpu/simd_math.h"
#include "tensor/kernels.h"

namespace llatte::cpu {
namespace {

// y = f(a, b), element by element.
template <class F>
void binary(const char* op, const Tensor& a, const Tensor& b, Tensor& y, F f) {
  dispatch_float(y.dtype(), op, [&]<class T>() {
    using A = acc_t<T>;
    const T *pa = a.data<T>(), *pb = b.data<T>();
    T* py = y.data<T>();
    for_each(y.numel(), [=](int64_t i) { py[i] = T(f(A(pa[i]), A(pb[i]))); });
  });
}

constexpr int64_t kColumns = 256;  // of a matrix that one thread sums at a time

template <class T>
void add_row(const T* x, const T* b, int64_t D, T* y) {
#pragma omp simd
  for (int64_t i = 0; i < D; ++i) store(y + i, acc_t<T>(x[i]) + acc_t<T>(b[i]));
}

// sum_i = sum over N rows of x, `stride` apart.
template <class T>
void sum_columns(const T* x, int64_t stride, int64_t N, int64_t width, acc_t<T>* sum) {
  double total[kColumns] = {};
  for (int64_t n = 0; n < N; ++n) {
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) total[i] += double(x[n * stride + i]);
  }
  for (int64_t i = 0; i < width; ++i) sum[i] = static_cast<acc_t<T>>(total[i]);
}

}  // namespace

void add(const Tensor& a, const Tensor& b, Tensor& y) {
  binary("add", a, b, y, [](auto p, auto q) { return p + q; });
}

void mul(const Tensor& a, const Tensor& b, Tensor& y) {
  binary("mul", a, b, y, [](auto p, auto q) { return p * q; });
}

void scale(const Tensor& x, double factor, Tensor& y) {
  dispatch_float(y.dtype(), "scale", [&]<class T>() {
    using A = acc_t<T>;
    const T* px = x.data<T>();
    T* py = y.data<T>();
    for_each(y.numel(), [px, py, c = static_cast<A>(factor)](int64_t i) { py[i] = T(A(px[i]) * c); });
  });
}

void scale_by(const Tensor& factor, Tensor& y) { scale(y, factor.item(), y); }

void accumulate(const Tensor& x, Tensor& sum) {
  dispatch_float(x.dtype(), "accumulate", [&]<class X>() {
    dispatch_float(sum.dtype(), "accumulate", [&]<class S>() {
      using A = acc_t<S>;
      const X* px = x.data<X>();
      S* ps = sum.data<S>();
      for_each(x.numel(), [=](int64_t i) { ps[i] = S(A(ps[i]) + A(acc_t<X>(px[i]))); });
    });
  });
}

void add_bias(const Tensor& x, const Tensor& b, Tensor& y) {
  const int64_t D = b.numel(), N = D ? x.numel() / D : 0;
  dispatch_float(y.dtype(), "add_bias", [&]<class T>() {
    const T *px = x.data<T>(), *pb = b.data<T>();
    T* py = y.data<T>();
    for_rows(N, D, [=](int64_t n) { add_row(px + n * D, pb, D, py + n * D); });
  });
}

// Threads share the columns, not the rows: each column is summed from top to bottom, in double, by one
// thread.
void sum_rows(const Tensor& x, Tensor& sum) {
  const int64_t D = sum.numel(), N = D ? x.numel() / D : 0, tiles = (D + kColumns - 1) / kColumns;
  dispatch_float(x.dtype(), "sum_rows", [&]<class T>() {
    const T* px = x.data<T>();
    acc_t<T>* ps = sum.data<acc_t<T>>();
    for_rows(tiles, N * kColumns, [=](int64_t tile) {
      const int64_t begin = tile * kColumns;
      sum_columns(px + begin, D, N, std::min(kColumns, D - begin), ps + begin);
    });
  });
}

}  // namespace llatte::cpu
