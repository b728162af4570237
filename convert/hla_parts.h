// What dealing out HLA's ranks (hla_ranks.cpp) and making its weights (hla.cpp) both look at: one layer of
// the source, factored as the metric says.
//   D model width  E head width  F = E/2 pairs
#pragma once
#include <algorithm>
#include "convert/hla.h"
#include "convert/hla_metric.h"
#include "convert/mla.h"
#include "convert/planes.h"

namespace llatte {

// k and q are latents that are lifted densely.
inline bool dense(HlaRope r) { return r == HlaRope::original || r == HlaRope::latent_literal; }
// Planes are those of the plain SVD.
inline bool plain_svd(HlaRope r) { return r == HlaRope::latent || r == HlaRope::latent_literal; }

// Places 0 .. n-1 by what `pair` says of each; of equal ones the lower first.
std::vector<int64_t> sorted_by(const std::vector<int32_t>& pair);
// latent, latent_literal: the pair that plane i = 0 .. rank/2 - 1 turns with, planes being dealt out to
// `heads` heads in turn. `key`: what an Error names.
std::vector<int32_t> plane_frequencies(const HlaSettings& s, const char* key, int64_t rank, int64_t heads,
                                       int64_t F);

// One layer of the source, seen by the plan's metric; what it is asked for is factored then.
struct LayerParts {
  LayerParts(const Checkpoint& s, const ConversionPlan& p, int64_t l)
      : source(s), plan(p), layer(l), hla(*p.config.hla), metric(s, p.settings, l) {
    std::vector<int32_t> below;
    for (int32_t j = 0; j < hla.rope_pairs; ++j) below.push_back(j);
    kept = KeptHeads(static_cast<size_t>(s.config.num_key_value_heads), below);
    rows = split_rows(source, plan, layer, kept);
  }
  int64_t D() const { return source.config.hidden_size; }
  int64_t F() const { return source.config.head_dim / 2; }
  int64_t block() const { return hla.head_block ? hla.head_block : source.config.num_key_value_heads; }
  int64_t group() const { return source.config.num_attention_heads / source.config.num_key_value_heads; }

  std::vector<PlaneFactors> key_planes() const {
    return factor_pairs(with_bias(rows.k_r, rows.k_r_bias), hla.rope_pairs, block(),
                        metric.rotated_keys(kept_rows(kept, 2 * F())));
  }
  std::vector<PlaneFactors> query_planes() const {
    return factor_pairs(weight_and_bias(source, layer, "q_proj"), F(), block() * group(),
                        metric.queries(true));
  }
  Factors unrotated_keys(int64_t R) const {
    return factor(rows.k_n, R, metric.unrotated_keys(lost_rows(kept, 2 * F())));
  }
  Factors dense_keys(int64_t R) const { return factor(rows.k_r, R, metric.dense_keys()); }
  Factors dense_queries(int64_t R) const {
    return factor(source.read(attention_name(layer, "q_proj.weight"), DType::f64), R, metric.queries(false));
  }
  Factors values(int64_t R) const { return factor(rows.v, R, metric.values()); }
  const HlaLayer& sizes() const { return hla.layers[static_cast<size_t>(layer)]; }
  int64_t most(const Tensor& w) const { return std::min(w.size(0), D()); }

  const Checkpoint& source;
  const ConversionPlan& plan;
  int64_t layer;
  const HlaConfig& hla;
  HlaMetric metric;
  KeptHeads kept;
  KeyRows rows;
};

}  // namespace llatte
