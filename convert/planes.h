// Complex low-rank factorisation of one RoPE frequency: what makes planes. Pair j of a head is the complex
// number (dim j) + i (dim j + F); rows j + i rows (j + F) of W_k (or W_q) over the heads of a block are a
// complex matrix w [heads,D], and w ~= A b: a plane is a row of b, z_p = b_p x, and A[:,p] is how it is
// lifted to the heads. RoPE multiplies all of it by one number exp(i t theta_j), so turning z is turning what
// it lifts to. The best A b under a covariance C of the inputs and a metric Gam on the rows (SPEC's T =
// Gam^(1/2)):
//   M = T w C w^H T = U e U^H,  A = T^-1 U,  b = U^H T w;  of m planes the error is the sum of e from m on.
//   D model width  F pairs of a head  P planes  g heads of a block
#pragma once
#include "convert/low_rank.h"

namespace llatte {

struct Complex {
  Tensor re, im;  // f64, of one shape
};
Complex product(const Complex& a, const Complex& b);
Complex adjoint(const Complex& a);  // a^H

// All planes that a pair has: columns of A and rows of b by descending eigenvalue.
struct PlaneFactors {
  Complex lift_gP, down_PD;
  std::vector<double> eigenvalues;  // [P], P = min(g,D); none below 0
};

// Of every pair and block of w [heads 2F, D], at pair * blocks + block, block b being heads [b g, (b+1) g).
// metric.outputs is real, over the rows of w; of pair j it is read as the complex block
//   ((G_aa + G_bb) + i (G_ba - G_ab)) / 2,  a the rows j, b the rows j + F,
// which is how it weighs errors whose phase may be anything: errors of planes and of real rows are in one
// unit. Its eigenvalues are raised to 1e-4 of the largest of all pairs.
std::vector<PlaneFactors> factor_pairs(const Tensor& w_ND, int64_t F, int64_t g, const FactorMetric& metric);

// The first m planes. balanced: A = Q R (thin QR), A := Q, b := R b (low_rank.h, balance).
PlaneFactors first_planes(const PlaneFactors& f, int64_t m, bool balanced);

// Of `planes` (models/llama.h), each the next best of its pair and block.
struct PlaneWeights {
  Tensor down_2PD;  // rows Re b_p, then rows Im b_p
  Complex lift_gP;
  double error = 0, total = 0;  // what is lost, the sum of the eigenvalues left out, and the sum of all
};
PlaneWeights plane_weights(const std::vector<PlaneFactors>& factors, const Planes& planes, int64_t F,
                           bool balanced);

// `counts` planes of every pair and block, laid out as in factor_pairs.
Planes planes_of(const std::vector<int64_t>& counts, int64_t F);

}  // namespace llatte
