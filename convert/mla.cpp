// The weights of one converted layer.
//   D model width  H query heads  K kv heads  E head width  n = K E rows of W_k
#include "convert/mla.h"
#include <algorithm>
#include "convert/fisher.h"
#include "convert/low_rank.h"
#include "tensor/kernels.h"  // random_normal
#include "tensor/linalg.h"

namespace llatte {
namespace {

namespace la = linalg;

std::vector<int64_t> all_but(const std::vector<int64_t>& rows, int64_t n) {
  std::vector<int64_t> others;
  for (int64_t i = 0, next = 0; i < n; ++i) {
    const bool taken = next < static_cast<int64_t>(rows.size()) && rows[static_cast<size_t>(next)] == i;
    if (taken) ++next;
    else others.push_back(i);
  }
  return others;
}

// Rows of kv head h / G for every query head h.
std::vector<int64_t> repeated_rows(const LlamaConfig& c) {
  const int64_t E = c.head_dim, G = c.num_attention_heads / c.num_key_value_heads;
  std::vector<int64_t> rows;
  for (int64_t h = 0; h < c.num_attention_heads; ++h)
    for (int64_t e = 0; e < E; ++e) rows.push_back(h / G * E + e);
  return rows;
}

Tensor read_rows(const Checkpoint& source, const ConversionPlan& plan, int64_t l, const std::string& name) {
  const Tensor a = source.read(attention_name(l, name), DType::f64);
  return plan.settings.gqa2mha ? rows_of(a, repeated_rows(source.config)) : a;
}

// k_r + W k_n and F k_n, and the biases likewise.
void fold_keys(const KeyFold& f, KeyRows& r) {
  const auto column = [](const Tensor& bias) { return bias.reshape({-1, 1}); };
  if (f.kept.defined()) {
    r.k_r = la::add_scaled(r.k_r, 1, la::product(f.kept, r.k_n));
    if (r.k_r_bias.defined())
      r.k_r_bias = la::add_scaled(r.k_r_bias, 1, la::product(f.kept, column(r.k_n_bias)).reshape({-1}));
  }
  r.k_n = la::product(f.lost, r.k_n);
  if (r.k_n_bias.defined()) r.k_n_bias = la::product(f.lost, column(r.k_n_bias)).reshape({-1});
}

LatentMetric metric_of(const Checkpoint& source, const ConversionPlan& plan, int64_t l) {
  const Metric m = plan.settings.metric;
  if (m == Metric::plain) return {};
  const CalibrationFile statistics(plan.settings.calibration, plan.config);
  if (m == Metric::white) return {statistics.covariance(l), {}, {}};
  if (m == Metric::output) return {statistics.covariance(l), {}, output_metric(source, l)};
  const auto lost = lost_rows(plan.config.mla->kept[static_cast<size_t>(l)], plan.config.head_dim);
  const GradientMetric g = gradient_metric(statistics.gradients(l), lost);
  return {statistics.weighted_covariance(l), g.two_two, g.vv};
}

// [.., D] rows, or entries of a bias, back in the order of W_k.
Tensor merged(const Tensor& k_r, const Tensor& k_n, const std::vector<int64_t>& kept,
              const std::vector<int64_t>& lost) {
  if (lost.empty()) return k_r;
  if (kept.empty()) return k_n;
  std::vector<int64_t> from(kept.size() + lost.size());
  for (size_t i = 0; i < kept.size(); ++i) from[static_cast<size_t>(kept[i])] = static_cast<int64_t>(i);
  for (size_t i = 0; i < lost.size(); ++i)
    from[static_cast<size_t>(lost[i])] = static_cast<int64_t>(kept.size() + i);
  return rows_of(stacked(k_r, k_n), from);
}

LayerWeights ordinary_weights(const KeyRows& r, const KeptHeads& pairs, int64_t E) {
  const auto kept = kept_rows(pairs, E), lost = lost_rows(pairs, E);
  LayerWeights w{{"k_proj.weight", merged(r.k_r, r.k_n, kept, lost)}, {"v_proj.weight", r.v}};
  if (!r.v_bias.defined()) return w;
  w["k_proj.bias"] = merged(r.k_r_bias, r.k_n_bias, kept, lost), w["v_proj.bias"] = r.v_bias;
  return w;
}

LayerWeights latent_weights(const Checkpoint& source, const ConversionPlan& plan, int64_t l, const KeyRows& r,
                            LayerError& error) {
  const LatentWidths p = latent_widths(plan.config);
  const LatentFactors f = factor_latents(plan.settings.svd.method, r.k_n, r.v, std::max(p.rank_k, p.rank_v),
                                         metric_of(source, plan, l), plan.settings.balanced());
  error = {f.error, f.total};
  LayerWeights w;
  put(w, "W_k_r.weight", r.k_r), put(w, "W_down_k.weight", f.down_k), put(w, "W_down_v.weight", f.down_v);
  put(w, "W_up_k.weight", f.up_k), put(w, "W_up_v.weight", f.up_v);
  put(w, "W_k_r.bias", r.k_r_bias), put(w, "W_up_k.bias", r.k_n_bias), put(w, "W_up_v.bias", r.v_bias);
  return w;
}

// All that makes q, k and v; o_proj is the trained one.
LayerWeights random_weights(const LlamaConfig& c, int64_t l) {
  const std::string head = attention_name(l, "");
  LayerWeights w;
  uint64_t stream = static_cast<uint64_t>(l) << 8;
  for (const auto& [name, shape] : param_shapes(c)) {
    const std::string part = name.starts_with(head) ? name.substr(head.size()) : "";
    if (part.empty() || part.starts_with("o_proj") || part.find("norm") != part.npos) continue;
    Tensor a = Tensor::zeros(shape, DType::f64);
    if (shape.size() == 2) kernels::random_normal(42, stream++, 0, c.initializer_range, a);
    w[part] = a;
  }
  return w;
}

// up down, or up itself where x is read without a latent.
Tensor product_of(const Checkpoint& mla, int64_t l, const std::string& up, const std::string& down) {
  const Tensor u = mla.read(attention_name(l, up), DType::f64);
  return down.empty() ? u : la::product(u, mla.read(attention_name(l, down), DType::f64));
}

}  // namespace

LayerWeights mla_weights(const Checkpoint& source, const ConversionPlan& plan, int64_t l, LayerError& error) {
  if (plan.settings.from_scratch) return random_weights(plan.config, l);
  const KeptHeads& pairs = plan.config.mla->kept[static_cast<size_t>(l)];
  const KeyRows r = split_rows(source, plan, l, pairs);
  if (!is_latent(plan.config)) return ordinary_weights(r, pairs, plan.config.head_dim);
  return latent_weights(source, plan, l, r, error);
}

KeyRows split_rows(const Checkpoint& source, const ConversionPlan& plan, int64_t l, const KeptHeads& pairs) {
  const LlamaConfig& c = plan.config;
  const auto kept = kept_rows(pairs, c.head_dim), lost = lost_rows(pairs, c.head_dim);
  const Tensor k = read_rows(source, plan, l, "k_proj.weight");
  KeyRows r{rows_of(k, kept), rows_of(k, lost), read_rows(source, plan, l, "v_proj.weight"), {}, {}, {}};
  if (c.qkv_bias) {
    const Tensor bias = read_rows(source, plan, l, "k_proj.bias");
    r.k_r_bias = rows_of(bias, kept), r.k_n_bias = rows_of(bias, lost);
    r.v_bias = read_rows(source, plan, l, "v_proj.bias");
  }
  if (plan.settings.metric != Metric::fisher || lost.empty()) return r;
  fold_keys(fold(CalibrationFile(plan.settings.calibration, c).gradients(l), lost, kept), r);
  return r;
}

std::vector<int64_t> kept_rows(const KeptHeads& kept, int64_t E) {
  std::vector<int64_t> rows;
  for (size_t k = 0; k < kept.size(); ++k)
    for (const int64_t half : {int64_t{0}, E / 2})
      for (const int32_t j : kept[k]) rows.push_back(static_cast<int64_t>(k) * E + half + j);
  return rows;
}

std::vector<int64_t> lost_rows(const KeptHeads& kept, int64_t E) {
  return all_but(kept_rows(kept, E), static_cast<int64_t>(kept.size()) * E);
}

Checkpoint lifted(const Checkpoint& mla) {
  if (!is_latent(mla.config)) return mla;
  LlamaConfig c = mla.config;
  c.mla->svd = {};
  return with_attention(mla, c, [mla](int64_t l) {
    const LlamaConfig& from = mla.config;
    const LatentWidths w = latent_widths(from);
    const auto bias = [&](const char* name, int64_t rows) {
      return from.qkv_bias && rows > 0 ? mla.read(attention_name(l, name), DType::f64) : Tensor();
    };
    KeyRows r;
    if (w.kept > 0) r.k_r = mla.read(attention_name(l, "W_k_r.weight"), DType::f64);
    if (w.lost > 0) r.k_n = product_of(mla, l, "W_up_k.weight", w.rank_k ? "W_down_k.weight" : "");
    r.v = product_of(mla, l, "W_up_v.weight",
                     !w.rank_v  ? ""
                     : w.shared ? "W_down_k.weight"
                                : "W_down_v.weight");
    r.k_r_bias = bias("W_k_r.bias", w.kept), r.k_n_bias = bias("W_up_k.bias", w.lost);
    r.v_bias = bias("W_up_v.bias", 1);
    return ordinary_weights(r, from.mla->kept[static_cast<size_t>(l)], from.head_dim);
  });
}

Tensor output_metric(const Checkpoint& source, int64_t l) {
  const LlamaConfig& c = source.config;
  const int64_t H = c.num_attention_heads, K = c.num_key_value_heads, E = c.head_dim, n = K * E;
  const Tensor wo = source.read(attention_name(l, "o_proj.weight"), DType::f64);
  Tensor gam = Tensor::zeros({n, n}, DType::f64);
  for (int64_t h = 0; h < H; ++h) {
    const Tensor wo_DE = wo.slice(1, h * E, (h + 1) * E);
    const int64_t at = h / (H / K) * E;
    Tensor block = gam.slice(0, at, at + E).slice(1, at, at + E);
    kernels::matmul(wo_DE.transpose(0, 1), wo_DE, block, 1);
  }
  return la::scaled_rows(gam, Tensor::full({n}, 1 / la::mean_diagonal(gam), DType::f64));
}

ConversionPlan without_svd(const ConversionPlan& plan) {
  ConversionPlan p = plan;
  p.settings.svd = {}, p.config.mla->svd = {}, p.settings.refit_o = false;
  return p;
}

ConversionPlan at_full_rank(const ConversionPlan& plan) {
  ConversionPlan p = plan;
  p.settings.refit_o = false;
  if (!is_latent(p.config)) return p;
  const int64_t K = p.config.num_key_value_heads;
  const LatentWidths w = latent_widths(p.config);
  const int64_t R = exact_ranks(p.settings.svd.method, w.lost, w.kept + w.lost, p.config.hidden_size);
  LLATTE_CHECK(R > 0, "SVD.method ", static_cast<int>(p.settings.svd.method), " is exact at no rank");
  p.settings.svd.low_rank = p.config.mla->svd.low_rank = (R + K - 1) / K;
  return p;
}

}  // namespace llatte
