// Planes and latents of a layer; and how many of each every layer gets.
#include "convert/unified.h"
#include <algorithm>
#include <cmath>
#include <numeric>
#include "convert/hla_metric.h"
#include "tensor/linalg.h"

namespace llatte {
namespace {

namespace la = linalg;

constexpr double kCovarianceFloor = 1e-9;  // of C's eigenvalues, for its root
constexpr int64_t kBisections = 60;

Tensor last_column(const Tensor& a) { return a.slice(1, a.size(1) - 1, a.size(1)).clone().reshape({-1}); }

// What is left over becomes ranks, one at a time, each where it helps most.
void add_ranks(const std::vector<LossTable>& losses, int64_t left, std::vector<UnifiedSize>& sizes) {
  const auto gain = [&](size_t l) {
    const std::vector<double>& by_rank = losses[l].at(sizes[l].planes);
    const auto R = static_cast<size_t>(sizes[l].rank);
    return R + 1 < by_rank.size() ? by_rank[R] - by_rank[R + 1] : -HUGE_VAL;
  };
  for (; left > 0; --left) {
    size_t best = 0;
    for (size_t l = 1; l < sizes.size(); ++l)
      if (gain(l) > gain(best)) best = l;
    if (gain(best) < 0) return;
    ++sizes[best].rank;
  }
}

// Ranks of P planes that may be chosen: from here to the end of the table.
size_t first_rank(int64_t P, int64_t least, size_t size) {
  return std::min(static_cast<size_t>(std::max<int64_t>(1, least - 2 * P)), size - 1);
}

UnifiedSize cheapest(const LossTable& losses, double mu, int64_t least) {
  UnifiedSize best;
  double lowest = HUGE_VAL;
  for (const auto& [P, by_rank] : losses)
    for (size_t R = first_rank(P, least, by_rank.size()); R < by_rank.size(); ++R) {
      const double cost = by_rank[R] + mu * static_cast<double>(2 * P + static_cast<int64_t>(R));
      if (cost < lowest) lowest = cost, best = {P, static_cast<int64_t>(R)};
    }
  return best;
}

// Numbers of planes that are tried: all small ones, then steps of a quarter.
std::vector<int64_t> plane_grid(int64_t most) {
  std::vector<int64_t> grid;
  for (int64_t P = 0; P < most; P += std::max<int64_t>(1, P / 4)) grid.push_back(P);
  grid.push_back(most);
  return grid;
}

void check_settings(const LlamaConfig& c, const ConversionSettings& s) {
  const HlaSettings& h = *s.hla;
  LLATTE_CHECK(s.metric == Metric::fisher, "HLA.rope unified weighs planes and ranks by what the loss pays ",
               "for them; it needs HLA.metric=fisher, not ", name(s.metric));
  LLATTE_CHECK(
      !h.rank_q && !h.rank_k && !h.rank_v && h.head_block == 0,
      "HLA.rope unified chooses its own ranks, for planes that all heads share and a whole q: leave ",
      "HLA.rank_q, rank_k, rank_v and head_block out");
  LLATTE_CHECK(!c.qk_norm,
               "HLA.rope unified: the q/k norms of this model (Qwen3) stand between a latent and ",
               "its rotation; use a model without them");
}

}  // namespace

Tensor dense_lift(const Complex& lift_KP, const std::vector<int32_t>& pair, int64_t E) {
  const int64_t K = lift_KP.re.size(0), P = lift_KP.re.size(1);
  Tensor dense = Tensor::zeros({K * E, 2 * P}, DType::f64);
  for (int64_t k = 0; k < K; ++k)
    for (int64_t p = 0; p < P; ++p) {
      const double re = lift_KP.re.data<double>()[k * P + p], im = lift_KP.im.data<double>()[k * P + p];
      double* top = dense.data<double>() + (k * E + pair[static_cast<size_t>(p)]) * 2 * P;
      double* bottom = top + E / 2 * 2 * P;
      top[p] = re, top[P + p] = -im;
      bottom[p] = im, bottom[P + p] = re;
    }
  return dense;
}

UnifiedLayer::UnifiedLayer(const Checkpoint& source, const CalibrationFile& statistics, int64_t layer)
    : D_(source.config.hidden_size),
      K_(source.config.num_key_value_heads),
      E_(source.config.head_dim),
      wk_(weight_and_bias(source, layer, "k_proj")),
      wv_nD_(source.read(attention_name(layer, "v_proj.weight"), DType::f64)),
      g_(statistics.gradients(layer)),
      key_covariance_(statistics.weighted_covariance(layer, source.config.qkv_bias)),
      covariance_DD_(statistics.weighted_covariance(layer)),
      root_DD_(la::root_of(covariance_DD_, kCovarianceFloor).root) {
  if (source.config.qkv_bias) v_bias_ = source.read(attention_name(layer, "v_proj.bias"), DType::f64);
  std::vector<int64_t> rows(static_cast<size_t>(K_ * E_));
  std::iota(rows.begin(), rows.end(), 0);
  metric_ = gradient_metric(g_, rows);
  const Tensor v_nD = la::product(wv_nD_, root_DD_);
  values_DD_ = la::product(v_nD.transpose(0, 1), la::product(metric_.vv, v_nD));
  factors_ = factor_pairs(wk_, E_ / 2, K_, {key_covariance_, derope_metric(g_)});
  std::vector<std::pair<double, int32_t>> worth;
  for (size_t j = 0; j < factors_.size(); ++j)
    for (const double e : factors_[j].eigenvalues) worth.push_back({e, static_cast<int32_t>(j)});
  std::stable_sort(worth.begin(), worth.end(), [](auto& a, auto& b) { return a.first > b.first; });
  for (const auto& [e, pair] : worth) by_worth_.push_back(pair);
}

Planes UnifiedLayer::planes(int64_t P) const {
  Planes planes{{by_worth_.begin(), by_worth_.begin() + P}, {}};
  std::sort(planes.pair.begin(), planes.pair.end());
  planes.block.assign(planes.pair.size(), 0);
  return planes;
}

UnifiedLayer::Keys UnifiedLayer::keys(const Planes& planes) const {
  Keys k{plane_weights(factors_, planes, E_ / 2, true), {}, {}};
  k.lift_n2P = dense_lift(k.planes.lift_gP, planes.pair, E_);
  const Tensor lost_nD = la::add_scaled(wk_, -1, la::product(k.lift_n2P, k.planes.down_2PD));
  const KeyFold f = fold(g_, k.lift_n2P);
  k.unrotated_nD = la::product(f.lost, lost_nD);
  if (planes.count() > 0)
    k.planes.down_2PD = la::add_scaled(k.planes.down_2PD, 1, la::product(f.kept, lost_nD));
  return k;
}

std::vector<double> UnifiedLayer::losses(int64_t P) const {
  const Keys k = keys(planes(P));
  const int64_t n = K_ * E_;
  const Tensor change = la::add_scaled(la::product(k.lift_n2P, k.planes.down_2PD), -1, wk_);
  const double derope = second_order_loss(g_.slice(0, 0, 2 * n).slice(1, 0, 2 * n),
                                          stacked(change, k.unrotated_nD), key_covariance_);
  const Tensor u_nD = la::product(k.unrotated_nD.slice(1, 0, D_), root_DD_);
  const Tensor all =
      la::add_scaled(values_DD_, 1, la::product(u_nD.transpose(0, 1), la::product(metric_.two_two, u_nD)));
  const std::vector<double> e = la::eigenvalues(all).to_vector<double>();
  const auto most = static_cast<size_t>(std::min(2 * n, D_));
  std::vector<double> by_rank(most + 1, derope);
  for (size_t R = most; R-- > 0;) by_rank[R] = by_rank[R + 1] + std::max(e[R], 0.0) / 2;
  return by_rank;
}

LayerWeights UnifiedLayer::weights(const Planes& planes, int64_t R, bool balanced, LayerError& error) const {
  const Keys k = keys(planes);
  const LatentFactors f = factor_latents(SvdMethod::joint, k.unrotated_nD.slice(1, 0, D_).clone(), wv_nD_, R,
                                         {covariance_DD_, metric_.two_two, metric_.vv}, balanced);
  error = {f.error, f.total};
  LayerWeights w;
  put(w, "A_k_re", k.planes.lift_gP.re), put(w, "A_k_im", k.planes.lift_gP.im);
  put(w, "W_k_r.weight", k.planes.down_2PD.slice(1, 0, D_).clone());
  put(w, "W_down_k.weight", f.down_k), put(w, "W_up_k.weight", f.up_k), put(w, "W_up_v.weight", f.up_v);
  if (!v_bias_.defined()) return w;
  put(w, "W_k_r.bias", last_column(k.planes.down_2PD));
  w["W_up_k.bias"] = last_column(k.unrotated_nD), w["W_up_v.bias"] = v_bias_;
  return w;
}

std::vector<UnifiedSize> allocate_unified(const std::vector<LossTable>& losses, int64_t total,
                                          int64_t least) {
  const auto L = static_cast<int64_t>(losses.size());
  LLATTE_CHECK(least >= 1 && total >= L * least, "unified: ", total, " cached values for ", L,
               " layers; have at least ", std::max<int64_t>(1, least), " a layer");
  std::vector<UnifiedSize> sizes(losses.size());
  const auto cached = [&](double mu) {
    int64_t sum = 0;
    for (size_t l = 0; l < losses.size(); ++l) sum += (sizes[l] = cheapest(losses[l], mu, least)).cached();
    return sum;
  };
  double largest = 0;
  for (const LossTable& t : losses)
    for (const auto& [P, by_rank] : t) largest = std::max(largest, by_rank.front());
  // At mu = 2 `largest` no layer takes more than it must.
  double low = std::log(1e-30 * largest), high = std::log(2 * largest);
  for (int64_t i = 0; i < kBisections; ++i) {
    const double middle = (low + high) / 2;
    (cached(std::exp(middle)) <= total ? high : low) = middle;
  }
  add_ranks(losses, total - cached(std::exp(high)), sizes);
  return sizes;
}

HlaConfig unified_config(const Checkpoint& source, const ConversionSettings& s) {
  const LlamaConfig& c = source.config;
  check_settings(c, s);
  const int64_t whole = 2 * c.num_key_value_heads * c.head_dim;
  const int64_t values =
      s.hla->cache_values.value_or(static_cast<int64_t>(s.hla->cache * static_cast<double>(whole) + 1e-9));
  LLATTE_CHECK(0 < values && values < whole, "HLA.cache_values is ", values, ", this model takes 1 to ",
               whole - 1);
  const CalibrationFile statistics(s.calibration, c);
  std::vector<std::map<int64_t, Planes>> planes;
  std::vector<LossTable> losses;
  for (int64_t l = 0; l < c.num_hidden_layers; ++l) {
    const UnifiedLayer layer(source, statistics, l);
    planes.emplace_back(), losses.emplace_back();
    for (const int64_t P : plane_grid(std::min(values, layer.most_planes())))
      losses.back()[P] = layer.losses(P), planes.back()[P] = layer.planes(P);
  }
  HlaConfig h{HlaRope::unified, 0, 0, {}};
  const auto sizes = allocate_unified(losses, values * c.num_hidden_layers, std::max<int64_t>(1, values / 2));
  for (size_t l = 0; l < sizes.size(); ++l)
    h.layers.push_back({planes[l].at(sizes[l].planes), {}, 0, sizes[l].rank, sizes[l].rank});
  return h;
}

LayerWeights unified_weights(const Checkpoint& source, const ConversionPlan& plan, int64_t layer,
                             LayerError& error) {
  const UnifiedLayer from(source, CalibrationFile(plan.settings.calibration, source.config), layer);
  const HlaLayer& l = plan.config.hla->layers[static_cast<size_t>(layer)];
  return from.weights(l.k, l.rank_k, plan.settings.balanced(), error);
}

}  // namespace llatte
