// Maps that commute with a rotation of planes, which is what lets RoPE move through an up projection
// (docs/latent-rope.md). Plane i of a basis B [N,2P] is its columns 2i and 2i+1; it turns by t alpha_i:
//   M(t) = sum_i B_i R_i(t) B_i^T,  R_i(t) = [[cos, -sin], [sin, cos]] of t alpha_i
// W M(t) = M'(t) W for all t, with M' the same over C, where W = sum_i lambda_i C_i B_i^T. All in f64.
// Not here: conversions, which choose planes and complex coefficients directly.
//   N rows  D columns of a map  P planes
#pragma once
#include <vector>
#include "tensor/tensor.h"

namespace llatte {

// M(t) [N,N] of the planes of an orthonormal basis_N2P; one angular frequency a plane.
Tensor plane_rotation(const Tensor& basis_N2P, const std::vector<double>& frequencies, double t);

// W = C diag(lambda_i I_2) B^T.
struct CommutingMap {
  Tensor c_N2P, b_D2P;         // orthonormal columns
  std::vector<double> lambda;  // [P]
  double residual = 0;         // squared distance from the map it was made for
  Tensor matrix_ND() const;
};
// The nearest one to w_ND: C and B from its SVD, lambda_i the mean of singular values 2i and 2i+1, residual
// the sum of (s_2i - s_2i+1)^2 / 2. min(N,D) must be even. Where singular values are equal B is not
// determined by w: then commuting_projection is meant.
CommutingMap nearest_commuting(const Tensor& w_ND);
// An up projection with orthonormal columns: every B is a valid basis. B = I, C = up, lambda = 1.
CommutingMap commuting_projection(const Tensor& up_N2P);

// The part of a coupling N [2P,2Q] between P planes of a query and Q planes of a key whose scores
// z_q(s)^T N z_k(t) depend on s - t alone: blocks of unequal frequency are 0, the others [[a, -b], [b, a]]
// with a = (n00 + n11) / 2, b = (n10 - n01) / 2. Frequencies are given as numbers of pairs.
Tensor shift_invariant(const Tensor& n_PQ, const std::vector<int32_t>& pair_P,
                       const std::vector<int32_t>& pair_Q);

}  // namespace llatte
