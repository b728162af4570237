// What is in the latents of a layer.
//   D model width  H query heads  K kv heads  F pairs of a head  P planes
#include "convert/hla.h"
#include "convert/hla_parts.h"
#include "tensor/linalg.h"

namespace llatte {
namespace {

namespace la = linalg;

// `down`: W_k_r or W_down_q; `lift`: A_k or A_q.
void put_planes(const PlaneWeights& p, int64_t D, const std::string& down, const std::string& lift,
                LayerWeights& w) {
  put(w, down + ".weight", p.down_2PD.slice(1, 0, D).clone());
  if (p.down_2PD.size(1) > D) put(w, down + ".bias", p.down_2PD.slice(1, D, D + 1).clone().reshape({-1}));
  put(w, lift + "_re", p.lift_gP.re), put(w, lift + "_im", p.lift_gP.im);
}

void put_factors(Factors f, bool balanced, const std::string& part, const Tensor& bias, LayerWeights& w) {
  if (balanced) balance(f);
  put(w, "W_down_" + part + ".weight", f.down_RD), put(w, "W_up_" + part + ".weight", f.up_NR);
  put(w, "W_up_" + part + ".bias", bias);
}

template <class Factored>
void add_error(const Factored& f, LayerError& e) {
  e.error += f.error, e.total += f.total;
}

// W = f.down f.up of k or q; plane i of latent values (2i, 2i+1). Lifts are one-hot: [group,P].
PlaneWeights svd_planes(const Tensor& w_ND, const std::vector<int32_t>& pair, int64_t heads, int64_t group) {
  const auto P = static_cast<int64_t>(pair.size());
  Factors f = factor(w_ND, 2 * P);
  balance(f);
  PlaneWeights w{half_split(f, pair).down_RD,
                 {Tensor::zeros({group, P}, DType::f64), Tensor::zeros({group, P}, DType::f64)},
                 f.error,
                 f.total};
  const std::vector<int64_t> order = sorted_by(pair);
  for (int64_t p = 0; p < P; ++p) {
    const int64_t head = order[static_cast<size_t>(p)] / (P / heads);
    w.lift_gP.re.data<double>()[head % group * P + p] = 1;
  }
  return w;
}

// Mode latent.
void latent_planes(const LayerParts& p, LayerWeights& w, LayerError& e) {
  const LlamaConfig& c = p.source.config;
  const HlaSettings& s = *p.plan.settings.hla;
  const HlaLayer& l = p.sizes();
  const int64_t H = c.num_attention_heads, K = c.num_key_value_heads;
  const PlaneWeights k = svd_planes(with_bias(p.rows.k_r, p.rows.k_r_bias),
                                    plane_frequencies(s, "rank_k", 2 * l.k.count(), K, p.F()), K, 1);
  put_planes(k, p.D(), "W_k_r", "A_k", w), add_error(k, e);
  if (l.q.count() == 0) return;
  put_planes(svd_planes(weight_and_bias(p.source, p.layer, "q_proj"),
                        plane_frequencies(s, "rank_q", 2 * l.q.count(), H, p.F()), H, p.group()),
             p.D(), "W_down_q", "A_q", w);
}

// Modes aligned and hybrid.
void aligned_planes(const LayerParts& p, bool balanced, LayerWeights& w, LayerError& e) {
  const HlaLayer& l = p.sizes();
  const PlaneWeights k = plane_weights(p.key_planes(), l.k, p.hla.rope_pairs, balanced);
  put_planes(k, p.D(), "W_k_r", "A_k", w), add_error(k, e);
  if (l.q.count() > 0)
    put_planes(plane_weights(p.query_planes(), l.q, p.F(), balanced), p.D(), "W_down_q", "A_q", w);
  if (p.rows.k_n.numel() == 0) return;
  if (l.rank_k == 0) {  // none of it is kept
    const Factors none = p.unrotated_keys(1);
    e.error += none.total, e.total += none.total;
    return;
  }
  const Factors n = p.unrotated_keys(l.rank_k);
  put_factors(n, balanced, "k", p.rows.k_n_bias, w), add_error(n, e);
}

// Modes original and latent_literal.
void dense_latents(const LayerParts& p, bool balanced, LayerWeights& w, LayerError& e) {
  const LlamaConfig& c = p.source.config;
  const HlaSettings& s = *p.plan.settings.hla;
  const HlaLayer& l = p.sizes();
  const bool literal = p.hla.rope == HlaRope::latent_literal;
  const auto put_one = [&](Factors f, const char* part, const char* key, int64_t heads, const Tensor& bias) {
    if (balanced || literal) balance(f);
    if (literal) f = half_split(f, plane_frequencies(s, key, f.down_RD.size(0), heads, p.F()));
    put_factors(f, false, part, bias, w);
  };
  const Factors k = p.dense_keys(l.rank_k);
  add_error(k, e);
  put_one(k, "k", "rank_k", c.num_key_value_heads, p.rows.k_r_bias);
  if (l.rank_q == 0) return;
  const Tensor bias =
      c.qkv_bias ? p.source.read(attention_name(p.layer, "q_proj.bias"), DType::f64) : Tensor();
  put_one(p.dense_queries(l.rank_q), "q", "rank_q", c.num_attention_heads, bias);
}

}  // namespace

Factors half_split(const Factors& f, const std::vector<int32_t>& pair) {
  const std::vector<int64_t> order = sorted_by(pair);
  std::vector<int64_t> rows;
  for (const int64_t part : {0, 1})
    for (const int64_t i : order) rows.push_back(2 * i + part);
  Factors y = f;
  y.down_RD = rows_of(f.down_RD, rows);
  y.up_NR = la::transposed(rows_of(la::transposed(f.up_NR), rows));
  return y;
}

LayerWeights hla_weights(const Checkpoint& source, const ConversionPlan& plan, int64_t layer,
                         LayerError& error) {
  const LayerParts p(source, plan, layer);
  const bool balanced = plan.settings.balanced();
  LayerWeights w;
  if (p.hla.rope == HlaRope::latent) latent_planes(p, w, error);
  else if (dense(p.hla.rope)) dense_latents(p, balanced, w, error);
  else aligned_planes(p, balanced, w, error);
  const Factors v = p.values(p.sizes().rank_v);
  put_factors(v, balanced, "v", p.rows.v_bias, w), add_error(v, error);
  return w;
}

}  // namespace llatte
