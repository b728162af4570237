// The last layer and the distillation loss in one (arXiv 1503.02531): chunk by chunk, as
// linear_cross_entropy, but two models' logits meet, z of the one that learns and u of its teacher.
//   p = softmax(u / tau), q = softmax(z / tau), q1 = softmax(z)
//   kl = tau^2 sum_v p log(p / q)      tau^2 keeps its gradient as large as the cross-entropy's, whatever tau
//   ce = -log q1[target]
//   loss = weight kl + (1 - weight) ce
//   d loss / dz = weight tau (q - p) + (1 - weight) (q1 - onehot(target))
#include <algorithm>
#include <cmath>
#include "tensor/cpu/simd_math.h"
#include "tensor/kernels.h"

namespace llatte::cpu {
namespace {

constexpr int64_t kChunk = 128;  // rows, as in linear_cross_entropy.cpp

template <class A>
A largest(const A* z, int64_t V) {
  A top = z[0];
#pragma omp simd reduction(max : top)
  for (int64_t j = 0; j < V; ++j) top = std::max(top, z[j]);
  return top;
}

template <class A>
struct RowSums {
  A z_top, u_top;
  A q = 0, q1 = 0, p = 0;  // sums of exp((z - z_top) / tau), exp(z - z_top), exp((u - u_top) / tau)
  A log_ratio = 0;         // sum of exp((u - u_top) / tau) ((u - u_top) - (z - z_top)) / tau
};

template <class A>
RowSums<A> sums_of(const A* z, const A* u, int64_t V, A per_tau) {
  const A z_top = largest(z, V), u_top = largest(u, V);
  A q = 0, q1 = 0, p = 0, log_ratio = 0;
#pragma omp simd reduction(+ : q, q1, p, log_ratio)
  for (int64_t j = 0; j < V; ++j) {
    const A a = (z[j] - z_top) * per_tau, b = (u[j] - u_top) * per_tau, e = simd_exp(b);
    q += simd_exp(a);
    q1 += simd_exp(z[j] - z_top);
    p += e;
    log_ratio += e * (b - a);
  }
  return {z_top, u_top, q, q1, p, log_ratio};
}

// g := d loss / dz times `scale`. g may be z.
template <class A, class T>
void row_gradient(const A* z, const A* u, int64_t V, const RowSums<A>& s, A per_tau, A kl, A ce, T* g) {
  const A q = kl / s.q, p = kl / s.p, q1 = ce / s.q1, z_top = s.z_top, u_top = s.u_top;
#pragma omp simd
  for (int64_t j = 0; j < V; ++j)
    store(g + j, q * simd_exp((z[j] - z_top) * per_tau) - p * simd_exp((u[j] - u_top) * per_tau) +
                     q1 * simd_exp(z[j] - z_top));
}

template <class T>
struct Distill {
  using A = acc_t<T>;
  const int32_t* target;
  int32_t ignore;
  A per_row;  // 1 / rows that count
  int64_t V;
  A weight, tau;

  // Row n of student logits z and teacher logits u; g is null if no gradient is wanted.
  void row(int64_t n, A* z, const A* u, T* g, A* kl, A* ce) const {
    *kl = *ce = 0;
    if (target[n] == ignore) {
      if (g) std::fill(g, g + V, T(0));
      return;
    }
    const A per_tau = 1 / tau;
    const RowSums<A> s = sums_of(z, u, V, per_tau);
    *kl = tau * tau * (s.log_ratio / s.p + std::log(s.q) - std::log(s.p));
    *ce = std::log(s.q1) - (z[target[n]] - s.z_top);
    if (!g) return;
    const A hard = (1 - weight) * per_row, at_target = simd_exp(z[target[n]] - s.z_top) * hard / s.q1;
    const A soft = weight * tau * per_row, z_target = z[target[n]], u_target = u[target[n]];
    row_gradient(z, u, V, s, per_tau, soft, hard, g);
    // From A numbers once more: subtracting 1 from what was rounded to bf16 would round twice.
    g[target[n]] = T(soft * (simd_exp((z_target - s.z_top) * per_tau) / s.q -
                             simd_exp((u_target - s.u_top) * per_tau) / s.p) +
                     at_target - hard);
  }
};

void check_targets(const Tensor& targets, int32_t ignore, int64_t V) {
  for (int64_t n = 0; n < targets.numel(); ++n) {
    const int32_t t = targets.data<int32_t>()[n];
    LLATTE_CHECK(t == ignore || (t >= 0 && t < V), "linear_distill: target ", t, " at row ", n,
                 " is outside the vocabulary of ", V);
  }
}

template <class T>
void run(const Tensor& x, const Tensor& w, const Tensor& tx, const Tensor& tw, const Tensor& targets,
         int32_t ignore, const DistillRule& rule, Tensor& kl, Tensor& ce, Tensor& dx, Tensor& dw) {
  using A = acc_t<T>;
  const int64_t N = x.size(0), V = w.size(0), C = std::min(N, kChunk);
  const int32_t* target = targets.data<int32_t>();
  const int64_t counted = N - std::count(target, target + N, ignore);
  const Distill<T> distill{target, ignore,         counted ? A(1) / A(counted) : A(0),
                           V,      A(rule.weight), A(rule.temperature)};
  const bool wants_gradient = dx.defined() || dw.defined();

  Tensor student = Tensor::empty({C, V}, dtype_of<A>()), teacher = Tensor::empty({C, V}, dtype_of<A>());
  Tensor gradient;  // f32 and f64: the same memory as the student's logits
  if (wants_gradient) gradient = std::is_same_v<A, T> ? student : Tensor::empty({C, V}, dtype_of<T>());

  for (int64_t r0 = 0; r0 < N; r0 += C) {
    const int64_t rows = std::min(C, N - r0);
    const Tensor xr = x.slice(0, r0, r0 + rows), txr = tx.slice(0, r0, r0 + rows);
    Tensor z = student.slice(0, 0, rows), u = teacher.slice(0, 0, rows);
    matmul(xr, w.transpose(0, 1), z, 0);
    matmul(txr, tw.transpose(0, 1), u, 0);
    A *pz = z.data<A>(), *pu = u.data<A>(), *pkl = kl.data<A>() + r0, *pce = ce.data<A>() + r0;
    T* pg = wants_gradient ? gradient.data<T>() : nullptr;
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < rows; ++i)
      distill.row(r0 + i, pz + i * V, pu + i * V, pg ? pg + i * V : nullptr, pkl + i, pce + i);
    if (!wants_gradient) continue;
    const Tensor g = gradient.slice(0, 0, rows);
    if (Tensor d = dx.defined() ? dx.slice(0, r0, r0 + rows) : Tensor(); d.defined()) matmul(g, w, d, 0);
    if (dw.defined()) matmul(g.transpose(0, 1), xr, dw, r0 > 0 ? 1 : 0);
  }
}

}  // namespace

void linear_distill(const Tensor& x, const Tensor& w, const Tensor& teacher_x, const Tensor& teacher_w,
                    const Tensor& targets, int32_t ignore_index, const DistillRule& rule, Tensor& kl,
                    Tensor& ce, Tensor& dx, Tensor& dw) {
  check_targets(targets, ignore_index, w.size(0));
  dispatch_float(x.dtype(), "linear_distill", [&]<class T>() {
    run<T>(x, w, teacher_x, teacher_w, targets, ignore_index, rule, kl, ce, dx, dw);
  });
}

}  // namespace llatte::cpu
