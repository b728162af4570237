// The unified conversion (HLA.rope=unified): of a layer's keys what turns fastest and matters most stays in P
// rotated planes, which all kv heads share; the rest loses its rotation and is read, together with v, from
// one latent of R values. Closed form, from second moments of inputs and gradients (fisher.h).
//   Planes. Those of planes.h under the covariance C and the metric Gd, what the loss pays for taking a
//     rotation away (derope_metric, fisher.h): the P of largest eigenvalue over all pairs, their lift A
//     orthonormal within a pair.
//   What is left of W_k, W_n = W_k - A b, is made up for by unrotated keys F W_n and by the planes
//   themselves,
//     b += W W_n: [F; W] is the fold of fisher.h.
//   Latent. [F W_n; W_v] ~= up down, the best factors under C and the metric diag(G_22, G_vv).
//   D model width  K kv heads  E head width  F = E/2 pairs  n = K E  P planes  R latent width
#pragma once
#include "convert/attention.h"
#include "convert/fisher.h"
#include "convert/planes.h"

namespace llatte {

// A lift [K,P] as a dense matrix [n,2P]: plane p of pair j is columns p and P + p, and lifts to A_k (x + i y)
// in the pair's two dims of every head k.
Tensor dense_lift(const Complex& lift_KP, const std::vector<int32_t>& pair, int64_t E);

// Of one layer.
struct UnifiedSize {
  int64_t planes = 0, rank = 0;
  int64_t cached() const { return 2 * planes + rank; }
  bool operator==(const UnifiedSize&) const = default;
};

// One layer's statistics and planes, from which every size can be made.
class UnifiedLayer {
 public:
  UnifiedLayer(const Checkpoint& source, const CalibrationFile& statistics, int64_t layer);

  int64_t most_planes() const { return static_cast<int64_t>(by_worth_.size()); }
  Planes planes(int64_t P) const;
  // By how much the loss of a token is expected to rise with P planes and R = 0, 1, .. values: what the
  // rotations lost cost, and half the eigenvalues that the latent drops.
  std::vector<double> losses(int64_t P) const;
  // `balanced`: [up_k; up_v] orthonormal (low_rank.h). `error` is what the latent drops.
  LayerWeights weights(const Planes& planes, int64_t R, bool balanced, LayerError& error) const;

 private:
  // W_k in parts, biases as a last column: rotated keys lift down, unrotated ones.
  struct Keys {
    PlaneWeights planes;
    Tensor lift_n2P, unrotated_nD;
  };
  Keys keys(const Planes& planes) const;

  int64_t D_, K_, E_;
  Tensor wk_, wv_nD_, v_bias_;                       // [W_k | b] or W_k
  Tensor g_;                                         // G [3n,3n]
  Tensor key_covariance_, covariance_DD_, root_DD_;  // C of [x; 1] or x; C of x, C^(1/2)
  GradientMetric metric_;
  Tensor values_DD_;  // C^(1/2) W_v^T G_vv W_v C^(1/2)
  std::vector<PlaneFactors> factors_;
  std::vector<int32_t> by_worth_;  // pairs of all planes, largest eigenvalue first
};

// Sizes for all layers that cache `total` values at most, chosen by losses[layer][P][R]: every layer takes
// the least losses + mu (2P + R) with R >= 1, mu by bisection; what is left over goes to ranks, each time
// where it helps most. No layer caches less than `least`. An Error where `total` does not suffice for that.
using LossTable = std::map<int64_t, std::vector<double>>;  // P -> [R]
std::vector<UnifiedSize> allocate_unified(const std::vector<LossTable>& losses, int64_t total,
                                          int64_t least = 1);

// config.hla of what the settings ask for (HLA.cache or HLA.cache_values, a mean over the layers). Fewer than
// 1 value, or so many that nothing is saved, ranks by hand, another metric than fisher: an Error.
// Every layer keeps half of the mean at least. To second order the first layer hardly matters, so it would be
// left with next to nothing; but it is where the first token of a text is told from others, which later blow
// up its stream a hundredfold and take it as the one to attend to when there is nothing to attend to. The
// loss is flat while that happens, and a cliff where it no longer does.
HlaConfig unified_config(const Checkpoint& source, const ConversionSettings& settings);
LayerWeights unified_weights(const Checkpoint& source, const ConversionPlan& plan, int64_t layer,
                             LayerError& error);

}  // namespace llatte
