// One head's attention probabilities as a whole matrix, and the gradient of its scores. Training never makes
// either (attention.cpp works tile by tile); calibration asks what the loss would feel with other weights
// than the probabilities themselves.
//   w = (1 - mix) p + mix / (s + 1),   dz = w (dp - sum_t w dp) * scale   over t <= s
#include <algorithm>
#include <limits>
#include "tensor/cpu/parallel.h"
#include "tensor/cpu/simd_math.h"
#include "tensor/kernels.h"

namespace llatte::cpu {
namespace {

// Row of n entries that are seen, of T.
template <class A>
void forward_row(const A* z, int64_t n, int64_t T, A scale, A* p) {
  A top = -std::numeric_limits<A>::infinity(), sum = 0;
#pragma omp simd reduction(max : top)
  for (int64_t t = 0; t < n; ++t) top = std::max(top, z[t]);
#pragma omp simd reduction(+ : sum)
  for (int64_t t = 0; t < n; ++t) {
    p[t] = simd_exp((z[t] - top) * scale);
    sum += p[t];
  }
  const A factor = 1 / sum;
#pragma omp simd
  for (int64_t t = 0; t < n; ++t) p[t] *= factor;
  std::fill(p + n, p + T, A(0));
}

template <class A>
void backward_row(const A* dp, const A* p, int64_t n, int64_t T, A scale, A mix, A* dz) {
  const A keep = 1 - mix, even = mix / static_cast<A>(n);
  A dot = 0;
#pragma omp simd reduction(+ : dot)
  for (int64_t t = 0; t < n; ++t) dot += (keep * p[t] + even) * dp[t];
#pragma omp simd
  for (int64_t t = 0; t < n; ++t) dz[t] = (keep * p[t] + even) * (dp[t] - dot) * scale;
  std::fill(dz + n, dz + T, A(0));
}

template <class F>
void dispatch_acc(const Tensor& x, F&& f) {
  if (x.dtype() == DType::f64) return f.template operator()<double>();
  LLATTE_CHECK(x.dtype() == DType::f32, "causal_softmax: works on f32 and f64, not on ", name(x.dtype()));
  f.template operator()<float>();
}

}  // namespace

void causal_softmax_fwd(const Tensor& z, double scale, Tensor& p) {
  const int64_t T = z.size(1);
  dispatch_acc(z, [&]<class A>() {
    const A* pz = z.data<A>();
    A* pp = p.data<A>();
    for_rows(z.size(0), T,
             [=](int64_t s) { forward_row(pz + s * T, std::min(s + 1, T), T, A(scale), pp + s * T); });
  });
}

void causal_softmax_bwd(const Tensor& dp, const Tensor& p, double scale, double mix, Tensor& dz) {
  const int64_t T = p.size(1);
  dispatch_acc(p, [&]<class A>() {
    const A *g = dp.data<A>(), *pp = p.data<A>();
    A* out = dz.data<A>();
    for_rows(p.size(0), T, [=](int64_t s) {
      backward_row(g + s * T, pp + s * T, std::min(s + 1, T), T, A(scale), A(mix), out + s * T);
    });
  });
}

}  // namespace llatte::cpu
