// The unified conversion (HLA.rope=unified): of a layer's keys what turns fastest and matters most stays in P
// rotated planes, which all kv heads share; the rest loses its rotation and is read, together with v, from
// one latent of R values. Closed form, from second moments of inputs and gradients (fisher.h).
//   Channels. Pair j of all kv heads is one complex matrix R_j = rows j + i rows (j + F) of W_k. With Gd the
//     loss of taking rotations away (derope_losses, fisher.h), Gd_j its complex block of the pair, T =
//     Gd_j^(1/2) and T R_j C R_j^H T = U lam U^H, channel c of the pair is column c of A = T^-1 U, what it
//     lifts to, times row c of U^H T R_j, the plane; without its rotation the loss of a token rises by
//     lam_c / 2.
//   Planes: the P channels of largest lam; A orthonormal within a pair.
//   What is left of W_k, W_n, is made up for by unrotated keys F W_n and by the planes, += W W_n:
//     [F; W] as in fold (fisher.h), with the lift of the planes for the kept rows.
//   Latent: [F W_n; W_v] ~= up down, the best factors under C and the metric diag(G_22, G_vv).
//   D model width  K kv heads  E head width  F = E/2 pairs  n = K E  P planes  R latent width
#pragma once
#include <map>
#include <string>
#include <vector>
#include "convert/fisher.h"
#include "models/checkpoint.h"

namespace llatte {

// Of one layer.
struct UnifiedSize {
  int64_t planes = 0, rank = 0;
  int64_t cached() const { return 2 * planes + rank; }
  bool operator==(const UnifiedSize&) const = default;
};

// One layer's statistics and channels, from which every size can be made.
class UnifiedLayer {
 public:
  UnifiedLayer(const Checkpoint& source, const CalibrationFile& statistics, int64_t layer);

  int64_t most_planes() const { return static_cast<int64_t>(channels_.size()); }
  Planes planes(int64_t P) const;  // their pairs, ascending
  // By how much the loss of a token is expected to rise with P planes and R = 0, 1, .. values: what the
  // rotations lost cost, and half the eigenvalues that the latent drops.
  std::vector<double> losses(int64_t P) const;
  // W_k_r, A_k_re, A_k_im, W_down_k, W_up_k and W_up_v by their names on disk; f64. `balanced`: [up_k; up_v]
  // orthonormal (low_rank.h), as the columns of A are. Pairs that list a plane more often than there are kv
  // heads: an Error.
  std::map<std::string, Tensor> weights(const std::vector<int32_t>& pairs, int64_t R, bool balanced) const;

 private:
  struct Channel {
    double lam;
    int32_t pair;
  };
  // What P planes make of W_k, as matrices on its n rows: planes W_k = [Re z; Im z], rotated keys = lift z,
  // unrotated keys = unrotated W_k.
  struct KeyMaps {
    Tensor a_re_KP, a_im_KP;
    Tensor lift_n2P, planes_2Pn, unrotated_nn;
  };
  KeyMaps key_maps(const std::vector<int32_t>& pairs) const;
  void make_channels();

  int64_t K_, E_;
  Tensor wk_nD_, wv_nD_, wk_bias_, wv_bias_;
  Tensor g_, covariance_, covariance_root_;  // G [3n,3n], C and C^(1/2) [D,D]
  GradientMetric metric_;
  Tensor wcw_nn_, values_DD_;      // W_k C W_k^T, C^(1/2) W_v^T G_vv W_v C^(1/2)
  std::vector<Channel> channels_;  // lam descending
  struct PairFactors {
    Tensor a_re, a_im, tu_re, tu_im;  // [K,K]: A and T U, channels in columns, lam descending
  };
  std::vector<PairFactors> pairs_;  // [F]
};

// Sizes for all layers that cache `total` values at most, chosen by losses[layer][P][R]: every layer takes
// the least losses + mu (2P + R) with R >= 1, mu by bisection; what is left over goes to ranks, each time
// where it helps most. An Error where `total` is less than a value for every layer.
using LossTable = std::map<int64_t, std::vector<double>>;  // P -> [R]
std::vector<UnifiedSize> allocate_unified(const std::vector<LossTable>& losses, int64_t total);

// The layers of an HLA with `cache_values` numbers per token and layer on average; `predicted`, where given,
// becomes the expected rise of the loss. Fewer than 1 value, or so many that nothing is saved: an Error.
std::vector<HlaLayer> unified_layers(const Checkpoint& source, int64_t cache_values,
                                     const std::string& calibration, double* predicted = nullptr);

}  // namespace llatte
