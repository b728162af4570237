// RMSNorm.  y = x * r * w,  r = 1/sqrt(mean_D(x^2) + eps).  With g = dy * w:
//   dx = r * (g - x * r^2 * mean_D(g * x)),   dw = sum_N(dy * x * r).
// dw is summed in fixed blocks of rows, then over the blocks in their order: threads do not change it.
#include <algorithm>
#include <cmath>
#include "tensor/cpu/parallel.h"
#include "tensor/cpu/simd_math.h"
#include "tensor/kernels.h"

namespace llatte::cpu {
namespace {

constexpr int64_t kRows = 64;  // that make one partial sum of dw

template <class T, class A>
void forward_row(const T* x, const T* w, double eps, int64_t D, T* y, A* r) {
  A ss = 0;
#pragma omp simd reduction(+ : ss)
  for (int64_t i = 0; i < D; ++i) ss += A(x[i]) * A(x[i]);
  const A rn = A(1 / std::sqrt(double(ss) / double(D) + eps));
#pragma omp simd
  for (int64_t i = 0; i < D; ++i) store(y + i, A(x[i]) * rn * A(w[i]));
  *r = rn;
}

// dw += this row's share.
template <class T, class A>
void backward_row(const T* dy, const T* x, const T* w, A r, int64_t D, T* dx, A* dw) {
  A gx = 0;
#pragma omp simd reduction(+ : gx)
  for (int64_t i = 0; i < D; ++i) gx += A(dy[i]) * A(w[i]) * A(x[i]);
  const A c = r * r * gx / A(D);
#pragma omp simd
  for (int64_t i = 0; i < D; ++i) {
    dw[i] += A(dy[i]) * A(x[i]) * r;
    store(dx + i, r * (A(dy[i]) * A(w[i]) - A(x[i]) * c));
  }
}

// total_D = the partial_BD, added up in double.
template <class A>
void add_partials(const A* partial, int64_t B, int64_t D, A* total) {
  for (int64_t i = 0; i < D; ++i) {
    double sum = 0;
    for (int64_t b = 0; b < B; ++b) sum += partial[b * D + i];
    total[i] = static_cast<A>(sum);
  }
}

}  // namespace

void rms_norm_fwd(const Tensor& x, const Tensor& w, double eps, Tensor& y, Tensor& r) {
  const int64_t D = w.numel(), N = r.numel();
  dispatch_float(x.dtype(), "rms_norm", [&]<class T>() {
    const T *px = x.data<T>(), *pw = w.data<T>();
    T* py = y.data<T>();
    acc_t<T>* pr = r.data<acc_t<T>>();
    for_rows(N, D, [=](int64_t n) { forward_row(px + n * D, pw, eps, D, py + n * D, pr + n); });
  });
}

void rms_norm_bwd(const Tensor& dy, const Tensor& x, const Tensor& w, const Tensor& r, Tensor& dx,
                  Tensor& dw) {
  const int64_t D = w.numel(), N = r.numel(), B = (N + kRows - 1) / kRows;
  Tensor partial = Tensor::zeros({B, D}, dw.dtype());
  dispatch_float(x.dtype(), "rms_norm", [&]<class T>() {
    using A = acc_t<T>;
    const T *g = dy.data<T>(), *px = x.data<T>(), *pw = w.data<T>();
    const A* pr = r.data<A>();
    T* pdx = dx.data<T>();
    A* sums = partial.data<A>();
    for_rows(B, kRows * D, [=](int64_t b) {
      for (int64_t n = b * kRows; n < std::min(N, (b + 1) * kRows); ++n)
        backward_row(g + n * D, px + n * D, pw, pr[n], D, pdx + n * D, sums + b * D);
    });
    add_partials(sums, B, D, dw.data<A>());
  });
}

}  // namespace llatte::cpu
