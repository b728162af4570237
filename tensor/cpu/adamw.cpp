// AdamW in one pass over the parameters, in the arithmetic (f32 or f64) and the order of torch.optim.AdamW:
//   g *= grad_scale;   p -= lr wd p;   m += (1 - beta1)(g - m);   v = beta2 v + (1 - beta2) g^2
//   p -= lr / (1 - beta1^t) * m / (sqrt(v) / sqrt(1 - beta2^t) + eps)
// and the sum of squares that clipping by the global norm needs.
#include <algorithm>
#include <cmath>
#include "tensor/cpu/parallel.h"
#include "tensor/kernels.h"

namespace llatte::cpu {
namespace {

constexpr int64_t kBlock = int64_t(1) << 14;  // numbers that make one partial sum of squares

// The scalars of a step, computed in double and rounded once.
template <class A>
struct Scalars {
  A grad_scale, keep, one_minus_beta1, beta2, one_minus_beta2, root_correction2, eps, step;
  explicit Scalars(const AdamWStep& s)
      : grad_scale(A(s.grad_scale)),
        keep(A(1 - s.lr * s.weight_decay)),
        one_minus_beta1(A(1 - s.beta1)),
        beta2(A(s.beta2)),
        one_minus_beta2(A(1 - s.beta2)),
        root_correction2(A(std::sqrt(1 - std::pow(s.beta2, double(s.t))))),
        eps(A(s.eps)),
        step(A(s.lr / (1 - std::pow(s.beta1, double(s.t))))) {}
};

// p: the parameters at full precision; w: the same rounded, or p itself.
template <class T, class A>
void step(T* w, const A* grad, A* m, A* v, A* p, int64_t n, const Scalars<A> c) {
  for_each(n, [=](int64_t i) {
    const A g = grad[i] * c.grad_scale;
    const A mi = m[i] + c.one_minus_beta1 * (g - m[i]);
    const A vi = c.beta2 * v[i] + c.one_minus_beta2 * g * g;
    const A next = p[i] * c.keep - c.step * (mi / (std::sqrt(vi) / c.root_correction2 + c.eps));
    m[i] = mi, v[i] = vi, p[i] = next;
    if constexpr (!std::is_same_v<T, A>) w[i] = T(next);
  });
}

template <class T>
double sum_of_squares(const T* x, int64_t n) {
  double sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) sum += double(x[i]) * double(x[i]);
  return sum;
}

}  // namespace

void adamw(Tensor& w, const Tensor& g, Tensor& m, Tensor& v, Tensor& master, const AdamWStep& s) {
  LLATTE_CHECK(s.t >= 1, "adamw: step t is ", s.t, ", but it counts from 1");
  dispatch_float(w.dtype(), "adamw", [&]<class T>() {
    using A = acc_t<T>;
    Tensor& p = master.defined() ? master : w;  // w of bf16 without a master is refused by data<A>()
    step(w.data<T>(), g.data<A>(), m.data<A>(), v.data<A>(), p.data<A>(), w.numel(), Scalars<A>(s));
    if (std::is_same_v<T, A> && master.defined()) w.copy_from(master);
  });
}

void sum_squares(const Tensor& x, Tensor& out) {
  const int64_t n = x.numel(), blocks = (n + kBlock - 1) / kBlock;
  Tensor partial = Tensor::empty({blocks}, DType::f64);
  double* sums = partial.data<double>();
  dispatch_float(x.dtype(), "sum_squares", [&]<class T>() {
    const T* px = x.data<T>();
    for_rows(blocks, kBlock,
             [=](int64_t b) { sums[b] = sum_of_squares(px + b * kBlock, std::min(kBlock, n - b * kBlock)); });
  });
  double total = 0;
  for (int64_t b = 0; b < blocks; ++b) total += sums[b];
  *out.data<double>() = total;
}

}  // namespace llatte::cpu
