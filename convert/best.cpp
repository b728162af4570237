#include "convert/best.h"
#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include "convert/fisher.h"
#include "convert/low_rank.h"
#include "convert/mla.h"
#include "convert/unified.h"
#include "tensor/linalg.h"

namespace llatte {
namespace {

namespace la = linalg;

Tensor attention_weight(const Checkpoint& c, int64_t l, const char* name) {
  return c.read(str("model.layers.", l, ".self_attn.", name, ".weight"), DType::f64);
}

// Rows `at` of y, from row `first` on, += factor times rows `at` of x; both f64 [.,D].
void add_rows(const Tensor& x, const std::vector<int64_t>& at, double factor, int64_t first, Tensor& y) {
  const int64_t D = x.size(1);
  for (const int64_t row : at)
    for (int64_t d = 0; d < D; ++d)
      y.data<double>()[(first + row) * D + d] += factor * x.data<double>()[row * D + d];
}

// Y of a layer of MLA, [3n,D].
Tensor change_of_mla(const Checkpoint& source, const Checkpoint& changed, int64_t l, const KeptHeads& pairs) {
  const Tensor k = attention_weight(source, l, "k_proj"), v = attention_weight(source, l, "v_proj");
  const Tensor new_k = attention_weight(changed, l, "k_proj"), new_v = attention_weight(changed, l, "v_proj");
  const int64_t n = k.size(0), E = source.config.head_dim;
  const auto kept = kept_rows(pairs, E), lost = lost_rows(pairs, E);
  std::vector<int64_t> all = kept;
  all.insert(all.end(), lost.begin(), lost.end());
  Tensor y = Tensor::zeros({3 * n, k.size(1)}, DType::f64);
  add_rows(k, all, -1, 0, y), add_rows(new_k, kept, 1, 0, y);
  add_rows(new_k, lost, 1, n, y);
  add_rows(v, all, -1, 2 * n, y), add_rows(new_v, all, 1, 2 * n, y);
  return y;
}

// Y of a layer of HLA's mode unified.
Tensor change_of_unified(const Checkpoint& source, const Checkpoint& changed, int64_t l) {
  const Tensor k = attention_weight(source, l, "k_proj"), v = attention_weight(source, l, "v_proj");
  const int64_t n = k.size(0);
  std::vector<int64_t> all(static_cast<size_t>(n));
  std::iota(all.begin(), all.end(), 0);
  Tensor y = Tensor::zeros({3 * n, k.size(1)}, DType::f64);
  const Planes& planes = changed.config.hla->layers[static_cast<size_t>(l)].k;
  if (planes.count() > 0) {
    const auto lift = [&](const char* part) { return changed.read(attention_name(l, part), DType::f64); };
    const Tensor dense = dense_lift({lift("A_k_re"), lift("A_k_im")}, planes.pair, source.config.head_dim);
    add_rows(la::product(dense, attention_weight(changed, l, "W_k_r")), all, 1, 0, y);
  }
  const Tensor down = attention_weight(changed, l, "W_down_k");
  add_rows(la::product(attention_weight(changed, l, "W_up_k"), down), all, 1, n, y);
  add_rows(la::product(attention_weight(changed, l, "W_up_v"), down), all, 1, 2 * n, y);
  add_rows(k, all, -1, 0, y), add_rows(v, all, -1, 2 * n, y);
  return y;
}

ConversionSettings settings_for(int64_t pairs, int64_t low_rank, const std::string& calibration) {
  ConversionSettings s;
  s.rope.partial_rope_version = 4, s.rope.top_k_rope_dim = pairs;
  s.svd = {SvdMethod::joint, low_rank};
  s.metric = Metric::fisher, s.calibration = calibration, s.refit_o = true;
  return s;
}

}  // namespace

double predicted_loss(const Checkpoint& source, const ConversionPlan& plan) {
  ConversionPlan factors = plan;
  factors.settings.refit_o = false;
  const std::optional<HlaConfig>& hla = plan.config.hla;
  LLATTE_CHECK(!hla || hla->rope == HlaRope::unified, "convert: no loss is predicted for HLA.rope ",
               hla ? name(hla->rope) : "", "; have unified");
  const Checkpoint latent = convert_attention(source, factors), changed = hla ? latent : lifted(latent);
  const CalibrationFile statistics(plan.settings.calibration, source.config);
  double loss = 0;
  for (int64_t l = 0; l < source.config.num_hidden_layers; ++l) {
    const Tensor y = hla ? change_of_unified(source, changed, l)
                         : change_of_mla(source, changed, l, plan.config.mla->kept[static_cast<size_t>(l)]);
    loss += second_order_loss(statistics.gradients(l), y, statistics.weighted_covariance(l));
  }
  return loss;
}

ConversionSettings best_mla(const Checkpoint& source, int64_t cache_values, const std::string& calibration) {
  const int64_t K = source.config.num_key_value_heads, E = source.config.head_dim;
  LLATTE_CHECK(3 * K <= cache_values && cache_values < 2 * K * E, "convert: ", cache_values,
               " cached values per token and layer; this model takes ", 3 * K, " to ", 2 * K * E - 1);
  const int64_t per_head = cache_values / K, most = std::min((per_head - 1) / 2, E / 2 - 1);
  std::map<int64_t, double> losses;
  const auto loss = [&](int64_t pairs) {
    if (pairs < 1 || pairs > most) return HUGE_VAL;
    if (!losses.count(pairs))
      losses[pairs] =
          predicted_loss(source, make_plan(source, settings_for(pairs, per_head - 2 * pairs, calibration)));
    return losses[pairs];
  };
  // The expected loss has one minimum: each pair that keeps RoPE helps less than the one before, and costs
  // two ranks, each worth more than the one before.
  int64_t pairs = std::clamp<int64_t>(per_head / 5, 1, most);
  const int64_t step = loss(pairs + 1) < loss(pairs) ? 1 : -1;
  while (loss(pairs + step) < loss(pairs)) pairs += step;
  return settings_for(pairs, per_head - 2 * pairs, calibration);
}

ConversionSettings best_hla(int64_t cache_values, const std::string& calibration) {
  ConversionSettings s;
  s.hla.emplace();
  s.hla->rope = HlaRope::unified, s.hla->cache_values = cache_values;
  s.metric = Metric::fisher, s.calibration = calibration, s.refit_o = true;
  return s;
}

BestPlan best_plan(const Checkpoint& source, const std::string& which, int64_t cache_values,
                   const std::string& calibration) {
  std::vector<ConversionSettings> candidates;
  if (which != "mla") candidates.push_back(best_hla(cache_values, calibration));
  const bool no_mla = which == "any" && cache_values < 3 * source.config.num_key_value_heads;
  if (which != "hla" && !no_mla) candidates.push_back(best_mla(source, cache_values, calibration));
  BestPlan best{{}, HUGE_VAL};
  for (const ConversionSettings& s : candidates) {
    const ConversionPlan plan = make_plan(source, s);
    const double loss = predicted_loss(source, plan);
    if (loss < best.predicted_loss) best = {plan, loss};
  }
  return best;
}

}  // namespace llatte
