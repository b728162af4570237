// Dense linear algebra for the conversion of weights, in f64: LAPACK on the CPU, cuSOLVER on the GPU; results
// are on the device of the arguments. Nothing here is differentiated and nothing runs in a training step.
//   1. Matrices are Tensors f64 [rows, columns], any strides; results are new and contiguous. Inputs stay.
//   2. A number that is not finite, a matrix that is not positive definite, a method that did not converge:
//   an
//      Error that says so. Sizes that do not fit each other too.
//   3. The signs of singular and eigenvectors, which the mathematics leaves open, are fixed: the entry of
//   largest
//      size of each (row of vt, column of vectors) is positive, so results depend on the matrix alone.
#pragma once
#include "tensor/tensor.h"

namespace llatte::linalg {

// a (M,N) = u (M,P) diag(s) vt (P,N), P = min(M,N), s f64 [P] descending.
struct Svd {
  Tensor u, s, vt;
};
Svd svd(const Tensor& a);

// a = vectors diag(values) vectors^T for a symmetric a [N,N], of which the upper triangle is read. values f64
// [N] DESCENDING, vectors in columns.
struct Eigh {
  Tensor values, vectors;
};
Eigh eigh(const Tensor& a);
Tensor eigenvalues(const Tensor& a);  // values alone, at a third of the work

// The same for a Hermitian re + i im (upper triangle); the entry of largest size of each vector is real and
// positive.
struct EighComplex {
  Tensor values, re, im;
};
EighComplex eigh(const Tensor& re, const Tensor& im);

// a (M,N) = q (M,N) r (N,N), M >= N: q has orthonormal columns, r is upper triangular.
struct Qr {
  Tensor q, r;
};
Qr qr(const Tensor& a);

// x (N,M) with a x = b, a [N,N] symmetric positive definite (Cholesky), b [N,M].
Tensor solve_spd(const Tensor& a, const Tensor& b);

// The x (N,K) of smallest norm among those that minimise |a x - b|, a [M,N] of any rank, b [M,K]: pinv(a) b.
// Singular values below 1e-12 of the largest count as zero.
Tensor least_squares(const Tensor& a, const Tensor& b);

// a^(1/2) and a^(-1/2) of a symmetric positive semidefinite a; eigenvalues below `floor` times the largest
// are raised to it first, so that both exist.
struct Root {
  Tensor root, inverse;
};
Root root_of(const Tensor& a, double floor);

Tensor product(const Tensor& a, const Tensor& b);                           // a b, strided views welcome
Tensor transposed(const Tensor& a);                                         // a contiguous copy of a^T
Tensor scaled_columns(const Tensor& a, const Tensor& s, double power = 1);  // a diag(s^power)
Tensor scaled_rows(const Tensor& a, const Tensor& s, double power = 1);     // diag(s^power) a
double mean_diagonal(const Tensor& a);
Tensor add_to_diagonal(const Tensor& a, double x);              // a + x I
Tensor add_scaled(const Tensor& a, double x, const Tensor& b);  // a + x b, contiguous, of any one shape

}  // namespace llatte::linalg
