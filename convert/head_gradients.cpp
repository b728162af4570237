#include "convert/head_gradients.h"
#include <cmath>
#include <numeric>
#include "tensor/kernels.h"  // matmul, rope, causal_softmax_fwd, causal_softmax_bwd

namespace llatte {
namespace {

// One head or kv head of x (T,heads,E), as a matrix [T,E].
Tensor head_of(const Tensor& x, int64_t head) {
  const int64_t E = x.size(2);
  return x.reshape({x.size(0), x.size(1) * E}).slice(1, head * E, (head + 1) * E);
}

Tensor positions(int64_t T, Device d) {
  std::vector<int32_t> pos(static_cast<size_t>(T));
  std::iota(pos.begin(), pos.end(), 0);
  return Tensor::from(pos, {T}).to(d);
}

Tensor rotated(const Tensor& x_THE, const RopeTable& rope) {
  Tensor y = Tensor::empty_like(x_THE);
  kernels::rope(x_THE, rope.cos, rope.sin, positions(x_THE.size(0), x_THE.device()), Tensor(), false, y);
  return y;
}

// Of Z's 3K heads the first K, g_k, are turned back by R_-t.
void turn_back(Tensor& z_T3n, const RopeTable& rope, int64_t K, int64_t E) {
  std::vector<int32_t> pairs(static_cast<size_t>(3 * K * (E / 2)), -1);
  for (int64_t i = 0; i < K * (E / 2); ++i) pairs[static_cast<size_t>(i)] = static_cast<int32_t>(i % (E / 2));
  Tensor z = z_T3n.reshape({z_T3n.size(0), 3 * K, E});
  const Device d = z.device();
  const Tensor pairs_HP = Tensor::from(pairs, {3 * K, E / 2}).to(d);
  kernels::rope(z, rope.cos, rope.sin, positions(z.size(0), d), pairs_HP, true, z);
}

// to += a^T b, the sum over queries s.
void add_over_queries(const Tensor& a_ST, const Tensor& b_SE, Tensor to_TE) {
  kernels::matmul(a_ST.transpose(0, 1), b_SE, to_TE, 1);
}

// What every head needs, and the [T,T] matrices, whose memory all heads share.
struct Work {
  const HeadInputs& in;
  Tensor q_rot_THE, k_rot_TKE, p_TT, dp_TT, ds_TT;
  double scale;

  // Adds head h to g_k and g_2 of its kv head, with w = (1 - mix) p + mix / (s + 1).
  void add_keys(int64_t h, double mix, Tensor& z_T3n) {
    const int64_t K = in.k_TKE.size(1), E = in.k_TKE.size(2), kappa = h / (in.q_THE.size(1) / K);
    const Tensor z = z_T3n.reshape({z_T3n.size(0), 3 * K, E});
    kernels::causal_softmax_bwd(dp_TT, p_TT, scale, mix, ds_TT);
    add_over_queries(ds_TT, head_of(q_rot_THE, h), head_of(z, kappa));
    add_over_queries(ds_TT, head_of(in.q_THE, h), head_of(z, K + kappa));
  }

  void add_head(int64_t h, HeadGradients& g) {
    const int64_t T = in.k_TKE.size(0), K = in.k_TKE.size(1), E = in.k_TKE.size(2);
    const int64_t kappa = h / (in.q_THE.size(1) / K);
    const Tensor do_TE = head_of(in.do_THE, h);
    kernels::matmul(head_of(q_rot_THE, h), head_of(k_rot_TKE, kappa).transpose(0, 1), p_TT, 0);
    kernels::causal_softmax_fwd(p_TT, scale, p_TT);
    kernels::matmul(do_TE, head_of(in.v_TKE, kappa).transpose(0, 1), dp_TT, 0);
    add_keys(h, 0, g.plain_T3n);
    Tensor g_q_TE = head_of(g.q_THE, h);
    kernels::matmul(ds_TT, head_of(k_rot_TKE, kappa), g_q_TE, 0);
    add_keys(h, 0.5, g.mixed_T3n);
    add_over_queries(p_TT, do_TE, head_of(g.plain_T3n.reshape({T, 3 * K, E}), 2 * K + kappa));
  }
};

}  // namespace

HeadGradients head_gradients(const HeadInputs& in, const RopeTable& rope) {
  const int64_t T = in.q_THE.size(0), H = in.q_THE.size(1), E = in.q_THE.size(2), K = in.k_TKE.size(1);
  LLATTE_SHAPE(in.k_TKE, T, K, E);
  LLATTE_SHAPE(in.v_TKE, T, K, E);
  LLATTE_SHAPE(in.do_THE, T, H, E);
  const DType t = in.q_THE.dtype();
  const Device d = in.q_THE.device();
  const auto matrix = [&] { return Tensor::empty({T, T}, t, d); };
  Work work{in,
            rotated(in.q_THE, rope),
            rotated(in.k_TKE, rope),
            matrix(),
            matrix(),
            matrix(),
            1 / std::sqrt(static_cast<double>(E))};
  HeadGradients g{Tensor::zeros({T, 3 * K * E}, t, d), Tensor::zeros({T, 3 * K * E}, t, d),
                  Tensor::zeros({T, H, E}, t, d)};
  for (int64_t h = 0; h < H; ++h) work.add_head(h, g);
  g.mixed_T3n.slice(1, 2 * K * E, 3 * K * E).copy_from(g.plain_T3n.slice(1, 2 * K * E, 3 * K * E));
  turn_back(g.plain_T3n, rope, K, E);
  turn_back(g.mixed_T3n, rope, K, E);
  kernels::rope(g.q_THE, rope.cos, rope.sin, positions(T, d), Tensor(), true, g.q_THE);
  return g;
}

}  // namespace llatte
