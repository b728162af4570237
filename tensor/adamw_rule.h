// The formula of AdamW (arXiv 1711.05101) in the arithmetic (f32 or f64) and the order of torch.optim.AdamW:
//   g *= grad_scale;   p -= lr wd p;   m += (1 - beta1)(g - m);   v = beta2 v + (1 - beta2) g^2
//   p -= lr / (1 - beta1^t) * m / (sqrt(v) / sqrt(1 - beta2^t) + eps)
// Included by the CPU and the CUDA kernels, so that both follow it.
#pragma once
#include <cmath>
#include "tensor/kernels.h"

namespace llatte {

// The scalars of a step, computed in double and rounded once.
template <class A>
struct AdamWRule {
  A keep, one_minus_beta1, beta2, one_minus_beta2, root_correction2, eps, step;
  AdamWRule(const AdamWStep& s, double weight_decay)
      : keep(A(1 - s.lr * weight_decay)),
        one_minus_beta1(A(1 - s.beta1)),
        beta2(A(s.beta2)),
        one_minus_beta2(A(1 - s.beta2)),
        root_correction2(A(std::sqrt(1 - std::pow(s.beta2, double(s.t))))),
        eps(A(s.eps)),
        step(A(s.lr / (1 - std::pow(s.beta1, double(s.t))))) {}

  // g: scaled already.
  LLATTE_HOST_DEVICE void operator()(A g, A& m, A& v, A& p) const {
    const A mi = m + one_minus_beta1 * (g - m);
    const A vi = beta2 * v + one_minus_beta2 * g * g;
    const A next = p * keep - step * (mi / (std::sqrt(vi) / root_correction2 + eps));
    m = mi, v = vi, p = next;
  }
};

// As torch's clip_grad_norm_: the small term keeps a zero norm from dividing by zero.
LLATTE_HOST_DEVICE inline double clip_scale(double clip_grad, double sum_squares) {
  const double scale = clip_grad / (std::sqrt(sum_squares) + 1e-6);
  return clip_grad > 0 && scale < 1 ? scale : 1.0;
}

}  // namespace llatte
