// A weight matrix as a product of two thin ones, W (N,D) ~= up (N,R) down (R,D): what makes a latent. All in
// f64. Plain: truncated SVD, MHA2MLA's own. Activation-aware: the best factors under a covariance S of the
// inputs and a metric Gam on the outputs, that is those that minimise E |Gam^(1/2) (W - up down) x|^2, S =
// E[x x^T].
//   N rows of a weight  D model width  R latent rank
#pragma once
#include "models/llama.h"

namespace llatte {

struct Factors {
  Tensor up_NR, down_RD;
  double error = 0;  // what is lost: the sum of the dropped eigenvalues (plain: squared singular values)
  double total = 0;  // the sum of all of them
  std::vector<double> eigenvalues = {};  // all, descending; none below 0
};

// Either may be undefined: the identity.
struct FactorMetric {
  Tensor covariance_DD, outputs_NN;
};

// R up to min(N,D); beyond it factors are filled up with zeros (a latent wider than the matrix needs).
//   plain:   W = U s V^T, up = U_R s_R, down = V_R^T.
//   aware:   T = Gam^(1/2), M = T W S W^T T = U e U^T, up = T^-1 U_R, down = U_R^T T W. No inverse of S is
//   needed.
Factors factor(const Tensor& w_ND, int64_t R, const FactorMetric& metric = {});

// up = Q R (thin QR): up := Q, down := R down. The product is the same; training recovers far more, since
// both sides then learn at the same pace.
void balance(Factors& f);

// One layer's k (the rows that lost RoPE) and v as latents. What the method does not factor is undefined; a
// shared latent has its down projection in down_k.
struct LatentFactors {
  Tensor down_k, down_v, up_k, up_v;
  double error = 0, total = 0;
};
struct LatentMetric {
  Tensor covariance_DD, outputs_k, outputs_v;  // undefined: the identity
  bool plain() const { return !covariance_DD.defined() && !outputs_k.defined() && !outputs_v.defined(); }
};

// Latents of R values under SvdMethod `m`. average, sqrt_average, key_down and value_down are plain only.
LatentFactors factor_latents(SvdMethod m, const Tensor& k_ND, const Tensor& v_ND, int64_t R,
                             const LatentMetric& metric, bool balanced);

// Singular values that a latent of the method can use: the most that R may be.
int64_t most_ranks(SvdMethod m, int64_t rows_k, int64_t rows_v, int64_t D);
// Ranks with which k and v are reproduced exactly; 0: no number of them does (average, key_down, ...).
int64_t exact_ranks(SvdMethod m, int64_t rows_k, int64_t rows_v, int64_t D);

Tensor stacked(const Tensor& a, const Tensor& b);                   // [a; b], by rows
Tensor block_diagonal(const Tensor& a, const Tensor& b);            // [[a, 0], [0, b]]
Tensor rows_of(const Tensor& a, const std::vector<int64_t>& rows);  // a picks rows, or entries of a vector
Tensor block_of(const Tensor& a, const std::vector<int64_t>& rows, const std::vector<int64_t>& columns);

}  // namespace llatte
