// AdamW (tensor/adamw_rule.h) in one pass over each parameter, and the sum of squares that clipping by the
// global norm needs.
#include <algorithm>
#include <cmath>
#include "tensor/adamw_rule.h"
#include "tensor/cpu/parallel.h"

namespace llatte::cpu {
namespace {

constexpr int64_t kBlock = int64_t(1) << 14;  // numbers that make one partial sum of squares

// p: the parameters at full precision; w: the same rounded, or p itself.
template <class T, class A>
void step(T* w, const A* grad, A grad_scale, A* m, A* v, A* p, int64_t n, const AdamWRule<A> rule) {
  for_each(n, [=](int64_t i) {
    A mi = m[i], vi = v[i], next = p[i];
    rule(grad[i] * grad_scale, mi, vi, next);
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

double sum_squares_of(const Tensor& x) {
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
  return total;
}

}  // namespace

void adamw(std::vector<AdamWTensors>& tensors, const Tensor& sum_squares, const AdamWStep& s) {
  LLATTE_CHECK(s.t >= 1, "adamw: step t is ", s.t, ", but it counts from 1");
  const double total = *sum_squares.data<double>(), grad_scale = clip_scale(s.clip_grad, total);
  if (!std::isfinite(total)) return;
  for (AdamWTensors& x : tensors)
    dispatch_float(x.w.dtype(), "adamw", [&]<class T>() {
      using A = acc_t<T>;
      Tensor& p = x.master.defined() ? x.master : x.w;  // w of bf16 without a master is refused by data<A>()
      step(x.w.data<T>(), x.g.data<A>(), A(grad_scale), x.m.data<A>(), x.v.data<A>(), p.data<A>(),
           x.w.numel(), AdamWRule<A>(s, x.weight_decay));
      if (std::is_same_v<T, A> && x.master.defined()) x.w.copy_from(x.master);
    });
}

void sum_squares(const std::vector<Tensor>& x, Tensor& out) {
  double total = 0;
  for (const Tensor& t : x) total += sum_squares_of(t);
  *out.data<double>() = total;
}

}  // namespace llatte::cpu
