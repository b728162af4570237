// The last layer and the distillation loss in one (arXiv 1503.02531): chunk by chunk, as
// linear_cross_entropy, but two models' logits meet, z of the one that learns and u of its teacher.
//   p = softmax(u / tau), q = softmax(z / tau), q1 = softmax(z)
//   kl = tau^2 sum_v p log(p / q)      tau^2 keeps its gradient as large as the cross-entropy's, whatever tau
//   ce = -log q1[target]
//   d loss / dz = weight tau (q - p) + (1 - weight) (q1 - onehot(target))
#include <limits>
#include "tensor/cuda/row_losses.h"

namespace llatte::cuda {
namespace {

template <class A>
struct RowShared {
  PerWarp<A> warps;
};

template <class A>
__device__ A largest(const A* z, int64_t V, RowShared<A>& s) {
  constexpr int N = kPack<A>;
  A top = std::numeric_limits<A>::lowest();
  for_packs<N>(z, V, [&](int64_t at, const Pack<A, N>& pack) {
#pragma unroll
    for (int j = 0; j < N; ++j) top = at + j < V && pack.at[j] > top ? pack.at[j] : top;
  });
  return block_max(top, s.warps);
}

template <class A>
struct RowSums {
  A z_top, u_top;
  A q = 0, q1 = 0, p = 0;  // sums of exp((z - z_top) / tau), exp(z - z_top), exp((u - u_top) / tau)
  A log_ratio = 0;         // sum of exp((u - u_top) / tau) ((u - u_top) - (z - z_top)) / tau
};

template <class A>
__device__ RowSums<A> sums_of(const A* z, const A* u, int64_t V, A per_tau, RowShared<A>& s) {
  constexpr int N = kPack<A>;
  RowSums<A> r{largest(z, V, s), largest(u, V, s)};
  for_packs<N>(z, V, [&](int64_t at, const Pack<A, N>& zs) {
    const auto us = load<N>(u, at, V);
    for (int j = 0; j < N && at + j < V; ++j) {
      const A a = (zs.at[j] - r.z_top) * per_tau, b = (us.at[j] - r.u_top) * per_tau, e = exp_of(b);
      r.q += exp_of(a);
      r.q1 += exp_of(zs.at[j] - r.z_top);
      r.p += e;
      r.log_ratio += e * (b - a);
    }
  });
  r.q = block_sum(r.q, s.warps), r.q1 = block_sum(r.q1, s.warps);
  r.p = block_sum(r.p, s.warps), r.log_ratio = block_sum(r.log_ratio, s.warps);
  return r;
}

template <class A>
struct Rule {
  A weight, tau;
};

// kl, ce and their gradient of one row: a block. g may be z, or null; `first`: the chunk's first row.
template <class T, class A>
__global__ void __launch_bounds__(kRowThreads, 1)
    distill_rows(const A* student, const A* teacher, Targets targets, Rule<A> rule, int64_t first,
                 const A* per_row, A* kl, A* ce, T* gradient) {
  auto& s = block_shared<RowShared<A>>();
  constexpr int N = kPack<A, T>;
  const int64_t V = targets.V, n = first + blockIdx.x;
  const A *z = student + int64_t(blockIdx.x) * V, *u = teacher + int64_t(blockIdx.x) * V;
  T* g = gradient ? gradient + int64_t(blockIdx.x) * V : nullptr;
  if (!targets.counts(n)) {  // the whole block
    if (g) clear_row<N>(g, V);
    if (threadIdx.x == 0) kl[n] = ce[n] = 0;
    return;
  }
  const int64_t target = targets.target[n];
  const A z_target = z[target];  // read before g overwrites it: sums wait for all threads
  const A tau = rule.tau, per_tau = 1 / tau;
  const RowSums<A> r = sums_of(z, u, V, per_tau, s);
  if (threadIdx.x == 0) {
    kl[n] = tau * tau * (r.log_ratio / r.p + log_of(r.q) - log_of(r.p));
    ce[n] = log_of(r.q1) - (z_target - r.z_top);
  }
  if (!g) return;
  const A hard = (1 - rule.weight) * *per_row, soft = rule.weight * tau * *per_row;
  const A q = soft / r.q, p = soft / r.p, q1 = hard / r.q1;
  for_packs<N>(z, V, [&](int64_t at, const Pack<A, N>& zs) {
    const auto us = load<N>(u, at, V);
    Pack<T, N> to;
#pragma unroll
    for (int j = 0; j < N; ++j) {
      const A a = zs.at[j] - r.z_top;
      to.at[j] = T(q * exp_of(a * per_tau) - p * exp_of((us.at[j] - r.u_top) * per_tau) + q1 * exp_of(a) -
                   (at + j == target ? hard : A(0)));
    }
    store(g, at, V, to);
  });
}

struct Losses {
  Tensor &kl, &ce, &dx, &dw;
};

template <class T>
void run(const Tensor& x, const Tensor& w, const Tensor& tx, const Tensor& tw, const Targets& targets,
         const DistillRule& rule, const Losses& to) {
  using A = acc_t<T>;
  const int64_t N = x.size(0), V = w.size(0), C = std::min(N, kChunk);
  const bool wants_gradient = to.dx.defined() || to.dw.defined();
  const Tensor per_row = one_per_counted_row<A>(
      "count_targets", targets, "linear_distill: target {} at row {} is outside the vocabulary of {}");
  const auto chunk = [&](DType t) { return Tensor::empty({C, V}, t, Device::cuda); };
  Tensor student = chunk(dtype_of<A>()), teacher = chunk(dtype_of<A>());
  Tensor gradient;  // f32 and f64: the same memory as the student's logits
  if (wants_gradient) gradient = std::is_same_v<A, T> ? student : chunk(dtype_of<T>());

  for (int64_t r0 = 0; r0 < N; r0 += C) {
    const int64_t rows = std::min(C, N - r0);
    const Tensor xr = x.slice(0, r0, r0 + rows), txr = tx.slice(0, r0, r0 + rows);
    Tensor z = student.slice(0, 0, rows), u = teacher.slice(0, 0, rows);
    matmul(xr, w.transpose(0, 1), z, 0);
    matmul(txr, tw.transpose(0, 1), u, 0);
    launch("distill_rows", {unsigned(rows), kRowThreads, sizeof(RowShared<A>)}, distill_rows<T, A>,
           z.data<A>(), u.data<A>(), targets, Rule<A>{A(rule.weight), A(rule.temperature)}, r0,
           per_row.data<A>(), to.kl.data<A>(), to.ce.data<A>(),
           wants_gradient ? gradient.data<T>() : nullptr);
    if (!wants_gradient) continue;
    const Tensor g = gradient.slice(0, 0, rows);
    if (Tensor d = to.dx.defined() ? to.dx.slice(0, r0, r0 + rows) : Tensor(); d.defined())
      matmul(g, w, d, 0);
    if (to.dw.defined()) matmul(g.transpose(0, 1), xr, to.dw, r0 > 0 ? 1 : 0);
  }
}

}  // namespace

void linear_distill(const Tensor& x, const Tensor& w, const Tensor& teacher_x, const Tensor& teacher_w,
                    const Tensor& targets, int32_t ignore_index, const DistillRule& rule, Tensor& kl,
                    Tensor& ce, Tensor& dx, Tensor& dw) {
  const Targets t{targets.data<int32_t>(), ignore_index, x.size(0), w.size(0)};
  dispatch_float(x.dtype(), "linear_distill", [&]<class T>() {
    run<T>(x, w, teacher_x, teacher_w, t, rule, {kl, ce, dx, dw});
  });
}

}  // namespace llatte::cuda
