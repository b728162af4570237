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

  // S f64 [D,D]: E[x x^T] of the attention input; with_one: of [x; 1], [D+1,D+1].
  Tensor covariance(int64_t layer, bool with_one = false) const;
  // C f64 [D,D] = m(S) [Ck/m(Ck) + Cv/m(Cv) + 2 S/m(S)] / 4, m the mean of the diagonal: inputs weighted by
  // how much the loss listens to them. with_one: of [x; 1].
  Tensor weighted_covariance(int64_t layer, bool with_one = false) const;
  // G f64 [3n,3n] = 0.25 Gp + 0.75 Gmix, Gmix's k and 2 rows and columns scaled by sqrt(tr Gp_kk / tr
  // Gmix_kk).
  Tensor gradients(int64_t layer) const;
  Tensor query_gradients(int64_t layer) const;  // Gq f64 [HE,HE]: E[g_q g_q^T], q before RoPE
  Tensor tokens() const;                        // i32 [N,T]

 private:
  Tensor read(const std::string& name, int64_t layer, int64_t rows, int64_t columns) const;
  Tensor square(const std::string& name, int64_t layer, int64_t side) const;
  SafetensorsFile file_;
  int64_t L_, D_, n_, q_;
};

// By how much the loss of a token rises, to second order, when the outputs that g = E[g g^T] is about change
// by y x, E[x x^T] = c: 1/2 tr(y^T g y c).
double second_order_loss(const Tensor& g, const Tensor& y, const Tensor& c);

// Blocks of G by the rows of one layer's k (indices into n) that are looked at, and all of v.
struct GradientMetric {
  Tensor kk, k2, two_two, vv;  // G_kk, G_k2, G_22, G_vv
};
GradientMetric gradient_metric(const Tensor& g, const std::vector<int64_t>& rows);

// What stands in for the rows k_n of k that lose their rotation: k_n becomes F k_n, unrotated, and the rows
// k_r that keep theirs become k_r + W k_n.
struct KeyFold {
  Tensor lost;  // F f64 [lost,lost]
  Tensor kept;  // W f64 [kept,lost]; undefined where no row is kept
};
// The loss changes by g_2 . u + g_k . w - g_k . k_n, of which u = F k_n and w = W k_n leave the least (mean
// square):
//   [F; W] = (A + rho I)^-1 (B + rho [I; 0]),  A = [G_22, G_2k; G_k2, G_kk], B = [G_2k; G_kk]
// in the lost rows of 2 and the kept rows of k; B's columns are the lost rows of k. rho = 1e-2 of each
// block's mean diagonal.
KeyFold fold(const Tensor& g, const std::vector<int64_t>& lost, const std::vector<int64_t>& kept);
// The same where the unrotated keys are added in all dims, and what keeps its rotation is lift z, lift [n,2P]
// with orthonormal columns: k becomes (lift z, F k_n) and z += W k_n. F f64 [n,n], W f64 [2P,n].
KeyFold fold(const Tensor& g, const Tensor& lift_n2P);

// Gd = G_kk - G_k2 F - F^T G_2k + F^T G_22 F [n,n], F the fold of all rows: what the loss pays for taking the
// rotation from a change of k.
Tensor derope_metric(const Tensor& g);
// f64 [K,F]: for taking it from pair j of head kappa. The pair's rows of W_k are one complex row w = a + i b,
// and the loss (Gd_aa + Gd_bb) (a C a^T + b C b^T).
Tensor derope_losses(const Tensor& g, const Tensor& covariance_DD, const Tensor& wk_nD, int64_t K);

}  // namespace llatte
