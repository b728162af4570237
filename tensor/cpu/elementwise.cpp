// Elementwise arithmetic and sums over rows. bf16 numbers are widened to f32, used, and rounded once.
#include <algorithm>
#include "tensor/cpu/parallel.h"
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
    using A = acc_t<T>;
    const T *px = x.data<T>(), *pb = b.data<T>();
    T* py = y.data<T>();
    for_rows(N, D, [=](int64_t n) {
#pragma omp simd
      for (int64_t i = 0; i < D; ++i) py[n * D + i] = T(A(px[n * D + i]) + A(pb[i]));
    });
  });
}

// Threads share the columns, not the rows: each column is summed from top to bottom, in double, by one
// thread.
void sum_rows(const Tensor& x, Tensor& sum) {
  const int64_t D = sum.numel(), N = D ? x.numel() / D : 0, tiles = (D + kColumns - 1) / kColumns;
  dispatch_float(x.dtype(), "sum_rows", [&]<class T>() {
    using A = acc_t<T>;
    const T* px = x.data<T>();
    A* ps = sum.data<A>();
    for_rows(tiles, N * kColumns, [=](int64_t tile) {
      const int64_t begin = tile * kColumns, width = std::min(kColumns, D - begin);
      double total[kColumns] = {};
      for (int64_t n = 0; n < N; ++n) {
#pragma omp simd
        for (int64_t i = 0; i < width; ++i) total[i] += A(px[n * D + begin + i]);
      }
      for (int64_t i = 0; i < width; ++i) ps[begin + i] = static_cast<A>(total[i]);
    });
  });
}

}  // namespace llatte::cpu
