// The stream in and out of the cache, and the choice between lifting rows and absorbing the maps.
#include "nn/latent_attention.h"
#include <cmath>
#include <numeric>
#include "autograd/ops.h"
#include "tensor/kernels.h"  // add_bias, latent_attention

namespace llatte {
namespace {

double softmax_scale(const AttentionConfig& c) { return 1 / std::sqrt(static_cast<double>(c.E)); }

// [z | c_k | c_v].
Var joined(const LatentStream& s, bool shared) {
  const Var keys = s.keys();
  return shared ? keys : keys.value.defined() ? concat(keys, s.c_v_BTR, -1) : s.c_v_BTR;
}

Tensor positions(int64_t S) {
  std::vector<int32_t> pos(static_cast<size_t>(S));
  std::iota(pos.begin(), pos.end(), 0);
  return Tensor::from(pos, {S});
}

std::vector<int64_t> sections(const StreamWidths& w) { return {w.planes, w.c_k, w.shared ? 0 : w.c_v}; }

}  // namespace

Var LatentStream::keys() const {
  if (!z_BTP.value.defined()) return c_k_BTR;
  return c_k_BTR.value.defined() ? concat(z_BTP, c_k_BTR, -1) : z_BTP;
}

LatentCache::LatentCache(int64_t B, int64_t S, const StreamWidths& w, CacheType t, Device d)
    : rows_(B, S, sections(w), t, d) {}

LatentAttention::LatentAttention(const AttentionConfig& c, const StreamWidths& w)
    : c_(c),
      widths_(w),
      up_v_(c.rank_v ? c.rank_v : c.D, c.K * c.E, c.qkv_bias, c.dtype),
      o_proj_(c.H * c.E, c.D, false, c.dtype) {
  const int64_t E = c.E, G = c.H / c.K, stride = c.rank_v ? 0 : c.K * E;
  std::vector<int32_t> own;
  for (int64_t h = 0; h < c.H; ++h)
    for (int64_t e = 0; e < E; ++e) own.push_back(static_cast<int32_t>(h * stride + h / G * E + e));
  own_dims_ = Tensor::from(own, {c.H * E});
}

std::unique_ptr<LayerCache> LatentAttention::make_cache(int64_t B, int64_t S, CacheType t) const {
  return std::make_unique<LatentCache>(B, S, widths_, t, o_proj_.weight().value.device());
}

Var LatentAttention::forward(const Var& x_BTD, const AttentionInput& in) {
  const int64_t B = x_BTD.size(0), T = x_BTD.size(1);
  LLATTE_SHAPE(x_BTD, B, T, c_.D);
  LLATTE_CHECK(!in.probe || !in.cache, c_.kind, ": a probe watches whole sequences, not one from a cache");
  const Var q_BTHQ = queries(x_BTD, in);
  const LatentStream s = stream(x_BTD, in);
  const Var o_BTHE = in.cache ? attend_cached(q_BTHQ, s, in) : attend(x_BTD, q_BTHQ, s, in);
  LLATTE_SHAPE(o_BTHE, B, T, c_.H, c_.E);
  return o_proj_(reshape(o_BTHE, {B, T, c_.H * c_.E}));
}

Var LatentAttention::attend(const Var& x_BTD, const Var& q_BTHQ, const LatentStream& s,
                            const AttentionInput& in) const {
  const Var k_BTKQ = keys(s, in.rope, in.pos), v_BTKE = values(s.c_v_BTR);
  const Var o_BTHE = attention(q_BTHQ, k_BTKQ, v_BTKE, softmax_scale(c_));
  return in.probe ? in.probe->attention(in.layer, x_BTD, q_BTHQ, k_BTKQ, v_BTKE, o_BTHE) : o_BTHE;
}

// The new tokens join the cache, then see all of it, themselves too, as the cache has rounded it.
Var LatentAttention::attend_cached(const Var& q_BTHQ, const LatentStream& s, const AttentionInput& in) const {
  auto* latent = dynamic_cast<LatentCache*>(in.cache);
  LLATTE_CHECK(latent, c_.kind, ": this cache was made by another kind of attention");
  LLATTE_CHECK(!grad_enabled(), c_.kind, ": a cache is for decoding and keeps no gradients; hold a NoGrad");
  TokenStore& store = latent->rows();
  store.append(joined(s, widths_.shared).value);
  const int64_t B = q_BTHQ.size(0), T = q_BTHQ.size(1);
  const DType t = q_BTHQ.value.dtype();
  if (!absorbs(T, q_BTHQ.size(3))) {
    const LatentStream all = split(constant(store.read(t, {widths_.row()})));
    const Var k_BSKQ = keys(all, in.rope, positions(store.length()).to(in.pos.device()));
    return attention(q_BTHQ, k_BSKQ, values(all.c_v_BTR), softmax_scale(c_));
  }
  Tensor o_BTHR = Tensor::empty({B, T, c_.H, widths_.c_v}, t, q_BTHQ.value.device());
  kernels::latent_attention(absorb(q_BTHQ).value.contiguous(), store.rows(), store.length(),
                            softmax_scale(c_), widths_.first_value(), o_BTHR);
  return outputs(constant(o_BTHR));
}

// Absorbed, a query meets a row in H (keys + c_v) products, lifted in H (Q + E); but lifting a row costs as
// much for one query as for many.
bool LatentAttention::absorbs(int64_t T, int64_t Q) const {
  const int64_t lift = key_products() + c_.K * c_.E * c_.rank_v;
  return can_absorb() && T * c_.H * (widths_.keys() + widths_.c_v - Q - c_.E) <= lift;
}

Var LatentAttention::values(const Var& c_v_BSR) const {
  const Var v = c_.rank_v ? up_v_(c_v_BSR) : c_v_BSR;
  return reshape(v, {v.size(0), v.size(1), c_.K, c_.E});
}

// Probabilities add up to 1, so the bias of W_up_v comes through as it is.
Var LatentAttention::outputs(const Var& o_BTHR) const {
  const int64_t B = o_BTHR.size(0), T = o_BTHR.size(1), H = c_.H, E = c_.E;
  if (!c_.rank_v) return reshape(gather(reshape(o_BTHR, {B, T, H * c_.K * E}), -1, own_dims_), {B, T, H, E});
  const Var up_KRE = transpose(reshape(up_v_.weight(), {c_.K, E, c_.rank_v}), 1, 2);
  const Var o_BTHE = by_token(matmul(by_group(o_BTHR), up_KRE), B, T);
  if (!c_.qkv_bias) return o_BTHE;
  Tensor y = Tensor::empty({B * T, H * E}, o_BTHE.value.dtype(), o_BTHE.value.device());
  kernels::add_bias(o_BTHE.value.contiguous().reshape(y.shape()), gather(up_v_.bias(), 0, own_dims_).value,
                    y);
  return constant(y.reshape({B, T, H, E}));
}

// As one head of width 2P.
Var LatentAttention::turned(const Var& z_BTP, const Tensor& pair_1P, const AttentionInput& in) {
  const Var z_BT1P = reshape(z_BTP, {z_BTP.size(0), z_BTP.size(1), 1, z_BTP.size(2)});
  return reshape(rope(z_BT1P, in.rope.cos, in.rope.sin, in.pos, pair_1P), z_BTP.shape());
}

Var LatentAttention::by_group(const Var& x_BTHn) const {
  const int64_t N = x_BTHn.size(0) * x_BTHn.size(1), n = x_BTHn.size(3), G = c_.H / c_.K;
  return reshape(transpose(reshape(x_BTHn, {N, c_.K, G * n}), 0, 1), {c_.K, N * G, n});
}

Var LatentAttention::by_token(const Var& x_KNn, int64_t B, int64_t T) const {
  const int64_t n = x_KNn.size(2), G = c_.H / c_.K;
  return reshape(transpose(reshape(x_KNn, {c_.K, B * T, G * n}), 0, 1), {B, T, c_.H, n});
}

LatentStream LatentAttention::split(const Var& rows_BSW) const {
  const StreamWidths& w = widths_;
  const auto columns = [&](int64_t begin, int64_t n) {
    return n > 0 ? slice(rows_BSW, 2, begin, begin + n) : Var();
  };
  return {columns(0, w.planes), columns(w.planes, w.c_k), columns(w.first_value(), w.c_v)};
}

}  // namespace llatte
