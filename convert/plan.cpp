// Settings and a model in, a plan out; the plan as a table and as JSON.
#include "convert/plan.h"
#include <algorithm>
#include <cstdio>
#include <map>
#include "convert/fisher.h"
#include "convert/hla.h"
#include "convert/low_rank.h"
#include "convert/mla.h"
#include "convert/unified.h"
#include "data/files.h"
#include "data/json.h"
#include "models/hla_config.h"
#include "models/partial_rope.h"

namespace llatte {
namespace {

namespace fs = std::filesystem;

constexpr const char* kScoresName =
    "qk_tensor.safetensors";  // beside config.json, where the result has scores

void check_source(const Checkpoint& source, const ConversionSettings& s) {
  const std::string where = source.path.string();
  LLATTE_CHECK(
      !source.config.mla && !source.config.hla, where,
      ": its attention has been converted before (RoPE, SVD, HLA in its config); convert the original model");
  LLATTE_CHECK(s.metric == Metric::plain || !s.calibration.empty(), s.hla ? "HLA" : "SVD", ".metric ",
               name(s.metric), " needs convert.calibration, a file from calibrate --covariance");
  LLATTE_CHECK(!s.refit_o || !s.calibration.empty(),
               "convert.refit_o needs convert.calibration, a file from calibrate --covariance");
  LLATTE_CHECK(!s.from_scratch || (s.metric == Metric::plain && !s.refit_o),
               "convert.from_scratch makes random weights, which SVD.metric ", name(s.metric),
               " and convert.refit_o have nothing to say about; leave them out");
  LLATTE_CHECK(
      !s.gqa2mha || (s.metric == Metric::plain && !s.refit_o),
      "convert.gqa2mha changes the heads that a calibration file was made for; use SVD.metric plain ",
      "and leave convert.refit_o out");
}

LlamaConfig converted_config(const LlamaConfig& source, const ConversionSettings& s) {
  LlamaConfig c = source;
  if (s.gqa2mha) c.num_key_value_heads = c.num_attention_heads;
  c.mla = MlaConfig{};
  c.mla->rope = s.rope, c.mla->svd = s.svd;
  const int64_t group = source.num_attention_heads / source.num_key_value_heads;
  LLATTE_CHECK(!s.rope.n_gqa_group || *s.rope.n_gqa_group == group, "RoPE.n_gqa_group is ",
               s.rope.n_gqa_group.value_or(0), ", this model has ", group, " query heads to a kv head");
  c.mla->rope.n_gqa_group = c.num_attention_heads / c.num_key_value_heads;
  c.check();
  return c;
}

// Every query head with the scores of the kv head it had.
Tensor repeated_scores(const Tensor& scores_LKF, int64_t H) {
  const int64_t L = scores_LKF.size(0), K = scores_LKF.size(1), F = scores_LKF.size(2);
  Tensor y = Tensor::empty({L, H, F}, DType::f32);
  for (int64_t h = 0; h < H; ++h)
    y.slice(1, h, h + 1).copy_from(scores_LKF.slice(1, h * K / H, h * K / H + 1));
  return y;
}

// fisher: a pair's score is what the loss would pay for its rotation.
Tensor derope_scores(const Checkpoint& source, const std::string& calibration) {
  const LlamaConfig& c = source.config;
  const int64_t L = c.num_hidden_layers, K = c.num_key_value_heads, F = c.head_dim / 2;
  const CalibrationFile statistics(calibration, c);
  Tensor scores_LKF = Tensor::empty({L, K, F}, DType::f32);
  for (int64_t l = 0; l < L; ++l) {
    const Tensor wk = source.read(str("model.layers.", l, ".self_attn.k_proj.weight"), DType::f64);
    scores_LKF.slice(0, l, l + 1)
        .copy_from(derope_losses(statistics.gradients(l), statistics.weighted_covariance(l), wk, K)
                       .reshape({1, K, F}));
  }
  return scores_LKF;
}

Tensor scores_for(const Checkpoint& source, const ConversionSettings& s, int64_t heads) {
  const PartialRope& r = s.rope;
  if (!chooses_by_score(r)) return {};
  if (!r.qk_tensor_path && s.metric == Metric::fisher) return derope_scores(source, s.calibration);
  LLATTE_CHECK(r.qk_tensor_path, "RoPE.partial_rope_version ", r.partial_rope_version,
               " chooses pairs by their scores: RoPE.qk_tensor_path must name a file from calibrate");
  const Tensor scores = read_qk_scores(*r.qk_tensor_path, source.config);
  return heads == source.config.num_key_value_heads ? scores : repeated_scores(scores, heads);
}

void check_rank(const LlamaConfig& c) {
  const LatentWidths w = latent_widths(c);
  const int64_t most = most_ranks(c.mla->svd.method, w.lost, w.kept + w.lost, c.hidden_size);
  const int64_t R = std::max(w.rank_k, w.rank_v);
  LLATTE_CHECK(R <= most, "SVD.low_rank ", c.mla->svd.low_rank, " times ", c.num_key_value_heads,
               " kv heads is ", R, " ranks, but what is factored has only ", most, " singular values; use ",
               most / c.num_key_value_heads, " or less");
}

std::string width_text(int64_t width) { return width ? str(width) : "-"; }

std::string pairs_text(const KeptHeads& kept) {
  std::string text;
  for (const auto& head : kept) {
    if (!text.empty()) text += " | ";
    for (size_t i = 0; i < head.size(); ++i) text += str(i ? " " : "", head[i]);
  }
  return text;
}

std::string mla_table(const LlamaConfig& c) {
  const LatentWidths w = latent_widths(c);
  std::string table = "layer  latent k   latent v   pairs that keep RoPE, by kv head\n";
  const std::vector<KeptHeads>& kept = c.mla->kept;
  for (size_t l = 0; l < kept.size(); ++l) {
    char text[64];
    std::snprintf(text, sizeof text, "%5zu  %-9s  %-9s  ", l, width_text(w.rank_k).c_str(),
                  w.shared ? "the same" : width_text(w.rank_v).c_str());
    table += text + pairs_text(kept[l]) + '\n';
  }
  return table;
}

// `0-3:3 4:2 9`: pairs 0 to 3 have three planes each, 4 two, 9 one.
std::string planes_text(const Planes& planes) {
  std::map<int32_t, int64_t> counts;
  for (const int32_t j : planes.pair) ++counts[j];
  std::string text;
  for (auto first = counts.begin(); first != counts.end();) {
    auto last = first, next = std::next(first);
    while (next != counts.end() && next->first == last->first + 1 && next->second == first->second)
      last = next++;
    text += str(text.empty() ? "" : " ", first->first);
    if (last != first) text += str('-', last->first);
    if (first->second > 1) text += str(':', first->second);
    first = next;
  }
  return text;
}

std::string hla_table(const HlaConfig& h) {
  const bool shared = h.rope == HlaRope::unified;
  std::string table =
      str("mode ", name(h.rope), "\nlayer  planes k  latent k  latent v  q         pairs that planes ",
          "of k turn with (:planes of each)\n");
  for (size_t l = 0; l < h.layers.size(); ++l) {
    const HlaLayer& p = h.layers[l];
    const int64_t q = p.rank_q ? p.rank_q : 2 * p.q.count();
    char text[80];
    std::snprintf(text, sizeof text, "%5zu  %-8s  %-8s  %-8s  %-8s  ", l, width_text(p.k.count()).c_str(),
                  width_text(p.rank_k).c_str(), shared ? "the same" : width_text(p.rank_v).c_str(),
                  q ? width_text(q).c_str() : "whole");
    table += text + planes_text(p.k) + '\n';
  }
  return table;
}

LlamaConfig with_hla(LlamaConfig c, HlaConfig hla) {
  c.hla = std::move(hla);
  c.check();
  return c;
}

ConversionPlan hla_plan(const Checkpoint& source, ConversionSettings s) {
  const bool unified = s.hla->rope == HlaRope::unified;
  if (unified) s.hla->factor_q = false;
  HlaConfig hla = unified ? unified_config(source, s) : hla_config(source, s);
  return {s, with_hla(source.config, std::move(hla))};
}

// 1 for a pair that is kept: scores that choose it again.
Tensor scores_of(const KeptPairs& kept, int64_t F) {
  const auto L = static_cast<int64_t>(kept.size()), K = static_cast<int64_t>(kept.front().size());
  Tensor scores = Tensor::zeros({L, K, F}, DType::f32);
  for (size_t l = 0; l < kept.size(); ++l)
    for (size_t k = 0; k < kept[l].size(); ++k)
      for (const int32_t j : kept[l][k])
        scores.data<float>()[(static_cast<int64_t>(l) * K + static_cast<int64_t>(k)) * F + j] = 1;
  return scores;
}

KeptPairs pairs_from_json(const nlohmann::json& layers, const LlamaConfig& c, const std::string& where) {
  const int64_t F = c.head_dim / 2;
  try {
    KeptPairs kept;
    for (const auto& layer : layers) kept.push_back(layer.at("kept_pairs"));
    bool fits = static_cast<int64_t>(kept.size()) == c.num_hidden_layers;
    for (const auto& heads : kept) {
      fits = fits && static_cast<int64_t>(heads.size()) == c.num_key_value_heads;
      for (const auto& pairs : heads)
        fits = fits &&
               std::adjacent_find(pairs.begin(), pairs.end(), std::greater_equal<>()) == pairs.end() &&
               (pairs.empty() || (pairs.front() >= 0 && pairs.back() < F));
    }
    LLATTE_CHECK(fits, where, ": its pairs are not those of a model with ", c.num_hidden_layers, " layers, ",
                 c.num_key_value_heads, " kv heads and ", F, " pairs a head; make a plan for this model");
    return kept;
  } catch (const nlohmann::json::exception& e) {
    LLATTE_FAIL(where, ": this is no conversion plan: ", printable(e.what()));
  }
}

std::vector<std::string> words_from_json(const nlohmann::json& plan, const std::string& where) {
  try {
    return plan.at("settings").get<std::vector<std::string>>();
  } catch (const nlohmann::json::exception& e) {
    LLATTE_FAIL(where, ": this is no conversion plan: ", printable(e.what()));
  }
}

}  // namespace

ConversionPlan make_plan(const Checkpoint& source, const ConversionSettings& s) {
  check_source(source, s);
  if (s.hla) return hla_plan(source, s);
  LlamaConfig c = converted_config(source.config, s);
  if (is_latent(c)) check_rank(c);
  c.mla->scores = scores_for(source, s, c.num_key_value_heads);
  c.mla->kept = choose_pairs(c, c.mla->scores);
  if (c.mla->scores.defined()) c.mla->rope.qk_tensor_path = kScoresName;
  return {s, c};
}

std::string plan_table(const ConversionPlan& plan) {
  const std::string head = str("plan: metric ", name(plan.settings.metric), ", ",
                               mean_cache_values(plan.config), " cached values per token and layer\n");
  return head + (plan.config.hla ? hla_table(*plan.config.hla) : mla_table(plan.config));
}

void save_plan(const fs::path& file, const ConversionPlan& plan) {
  nlohmann::ordered_json j{{"settings", setting_words(plan.settings)}};
  if (plan.config.hla) j["HLA"] = hla_json(*plan.config.hla);
  else
    for (const KeptHeads& kept : plan.config.mla->kept) j["layers"].push_back({{"kept_pairs", kept}});
  write_file_atomic(file, j.dump(1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n");
}

ConversionPlan load_plan(const fs::path& file, const Checkpoint& source) {
  const nlohmann::json j = read_json(file);
  LLATTE_CHECK(j.is_object() && (j.contains("layers") || j.contains("HLA")) && j.contains("settings"),
               file.string(), ": this is no conversion plan: it has no `settings` and `layers` or `HLA`");
  const ConversionSettings s = parse_settings(words_from_json(j, file.string()));
  check_source(source, s);
  LLATTE_CHECK(s.hla.has_value() == j.contains("HLA"), file.string(),
               ": its settings and its layers are of two kinds of attention; make the plan anew");
  if (s.hla)
    return {s, with_hla(source.config,
                        read_hla(Fields(j.at("HLA"), file.string() + ": HLA"), source.config.head_dim))};
  LlamaConfig c = converted_config(source.config, s);
  if (is_latent(c)) check_rank(c);
  c.mla->kept = pairs_from_json(j.at("layers"), c, file.string());
  if (chooses_by_score(s.rope)) {
    c.mla->scores = scores_of(c.mla->kept, c.head_dim / 2);
    c.mla->rope.qk_tensor_path = kScoresName;
  }
  LLATTE_CHECK(choose_pairs(c, c.mla->scores) == c.mla->kept, file.string(),
               ": its pairs are not what RoPE.partial_rope_version ", s.rope.partial_rope_version, " keeps");
  return {s, c};
}

}  // namespace llatte
