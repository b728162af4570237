// One head's attention probabilities as a whole matrix, and the gradient of its scores; for calibration.
//   w = (1 - mix) p + mix / (s + 1),   dz = w (dp - sum_t w dp) * scale   over t <= s
// A block has a row. Each thread reads a number before it writes that same place, so p may be z.
#include <limits>
#include "tensor/cuda/pack.h"

namespace llatte::cuda {
namespace {

// Row s sees n entries of T.
template <class A>
__global__ void causal_softmax_forward(const A* z, int64_t T, A scale, A* p) {
  auto& shared = block_shared<PerWarp<A>>();
  const int64_t s = blockIdx.x, n = s + 1 < T ? s + 1 : T;
  z += s * T, p += s * T;
  A top = -std::numeric_limits<A>::infinity(), sum = 0;
  for (int64_t t = threadIdx.x; t < n; t += blockDim.x) top = top < z[t] ? z[t] : top;
  top = block_max(top, shared);
  for (int64_t t = threadIdx.x; t < n; t += blockDim.x) sum += p[t] = exp((z[t] - top) * scale);
  const A factor = 1 / block_sum(sum, shared);
  for (int64_t t = threadIdx.x; t < T; t += blockDim.x) p[t] = t < n ? p[t] * factor : A(0);
}

template <class A>
__global__ void causal_softmax_backward(const A* dp, const A* p, int64_t T, A scale, A mix, A* dz) {
  auto& shared = block_shared<PerWarp<A>>();
  const int64_t s = blockIdx.x, n = s + 1 < T ? s + 1 : T;
  const A keep = 1 - mix, even = mix / static_cast<A>(n);
  dp += s * T, p += s * T, dz += s * T;
  A dot = 0;
  for (int64_t t = threadIdx.x; t < n; t += blockDim.x) dot += (keep * p[t] + even) * dp[t];
  dot = block_sum(dot, shared);
  for (int64_t t = threadIdx.x; t < T; t += blockDim.x)
    dz[t] = t < n ? (keep * p[t] + even) * (dp[t] - dot) * scale : A(0);
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
    launch("causal_softmax_fwd", {blocks_for(z.size(0), 1), threads_for_row(T), sizeof(PerWarp<A>)},
           causal_softmax_forward<A>, z.data<A>(), T, A(scale), p.data<A>());
  });
}

void causal_softmax_bwd(const Tensor& dp, const Tensor& p, double scale, double mix, Tensor& dz) {
  const int64_t T = p.size(1);
  dispatch_acc(p, [&]<class A>() {
    launch("causal_softmax_bwd", {blocks_for(p.size(0), 1), threads_for_row(T), sizeof(PerWarp<A>)},
           causal_softmax_backward<A>, dp.data<A>(), p.data<A>(), T, A(scale), A(mix), dz.data<A>());
  });
}

}  // namespace llatte::cuda
