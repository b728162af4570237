// What a calibration file says about a layer, and the loss-aware conversion built on it: how much the loss
// suffers when k or v change, to second order, from gradients g (Fisher information G = E[g g^T]).
//   L layers  D model width  K kv heads  E head width  F = E/2 pairs  n = K E
// Symbols of the file: k the rotated key, 2 the key without rotation, v the value; Z = [g_k; g_2; g_v].
#pragma once
#include <filesystem>
#include "data/safetensors.h"
#include "models/llama.h"

namespace llatte {

// A file from `calibrate`, read layer by layer. Made for another model, or without what is asked for: an
// Error.
class CalibrationFile {
 public:
  CalibrationFile(const std::filesystem::path& file, const LlamaConfig& c);

  Tensor covariance(int64_t layer) const;  // S f64 [D,D]: E[x x^T] of the attention input
  // C f64 [D,D] = m(S) [Ck/m(Ck) + Cv/m(Cv) + 2 S/m(S)] / 4, m the mean of the diagonal: inputs weighted by
  // how much the loss listens to them.
  Tensor weighted_covariance(int64_t layer) const;
  // G f64 [3n,3n] = 0.25 Gp + 0.75 Gmix, Gmix's k and 2 rows and columns scaled by sqrt(tr Gp_kk / tr
  // Gmix_kk).
  Tensor gradients(int64_t layer) const;
  Tensor tokens() const;  // i32 [N,T]

 private:
  Tensor read(const std::string& name, int64_t layer, int64_t side) const;
  SafetensorsFile file_;
  int64_t L_, D_, n_;
};

// Blocks of G by the rows of one layer's k (indices into n) that are looked at, and all of v.
struct GradientMetric {
  Tensor kk, k2, two_two, vv;  // G_kk, G_k2, G_22, G_vv
};
GradientMetric gradient_metric(const Tensor& g, const std::vector<int64_t>& rows);

// F = (G_22 + rho I)^-1 (G_2k + rho I), rho = 1e-2 of the mean diagonal of G_22: k without rotation is best
// replaced by F k.
Tensor fold(const GradientMetric& g);

// f64 [K,F]: what the loss pays for taking the rotation from pair j of head kappa. Gd = G_kk - G_k2 F - F^T
// G_2k + F^T G_22 F is the metric; the pair's rows of W_k are one complex row w = a + i b, and the loss
// (Gd_aa + Gd_bb) (a C a^T + b C b^T).
Tensor derope_losses(const GradientMetric& g, const Tensor& covariance_DD, const Tensor& wk_nD, int64_t K);

}  // namespace llatte
