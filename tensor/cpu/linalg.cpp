// Dense factorisations by LAPACK, in f64.
#include <lapacke.h>
#include <algorithm>
#include <complex>
#include "tensor/kernels.h"

namespace llatte::cpu {
namespace {

// LAPACK says 0: done, below 0: a wrong argument (ours), above 0: this matrix defeats the method.
void check_done(const char* op, const Tensor& a, lapack_int info) {
  LLATTE_CHECK(info == 0, op, ": LAPACK did not finish on a matrix ", a.shape(), " (code ", info, "): ",
               info > 0 ? "the iteration did not converge" : "an argument was refused or memory is short");
}

lapack_int side(const Tensor& a, int d) { return static_cast<lapack_int>(a.size(d)); }

}  // namespace

void svd(Tensor& a, Tensor& u, Tensor& s, Tensor& vt) {
  check_done("svd", a,
             LAPACKE_dgesdd(LAPACK_ROW_MAJOR, 'S', side(a, 0), side(a, 1), a.data<double>(), side(a, 1),
                            s.data<double>(), u.data<double>(), side(s, 0), vt.data<double>(), side(a, 1)));
}

void eigh(Tensor& a, bool vectors, Tensor& values) {
  check_done(vectors ? "eigh" : "eigenvalues", a,
             LAPACKE_dsyevd(LAPACK_ROW_MAJOR, vectors ? 'V' : 'N', 'U', side(a, 0), a.data<double>(),
                            side(a, 0), values.data<double>()));
}

void eigh_complex(Tensor& re, Tensor& im, Tensor& values) {
  double *x = re.data<double>(), *y = im.data<double>();
  std::vector<std::complex<double>> a(static_cast<size_t>(re.numel()));
  for (size_t i = 0; i < a.size(); ++i) a[i] = {x[i], y[i]};
  check_done(
      "eigh", re,
      LAPACKE_zheevd(LAPACK_ROW_MAJOR, 'V', 'U', side(re, 0),
                     reinterpret_cast<lapack_complex_double*>(a.data()), side(re, 0), values.data<double>()));
  for (size_t i = 0; i < a.size(); ++i) x[i] = a[i].real(), y[i] = a[i].imag();
}

void qr(Tensor& a, Tensor& r) {
  const int64_t N = a.size(1);
  std::vector<double> tau(static_cast<size_t>(N));
  double *q = a.data<double>(), *pr = r.data<double>();
  check_done("qr", a, LAPACKE_dgeqrf(LAPACK_ROW_MAJOR, side(a, 0), side(a, 1), q, side(a, 1), tau.data()));
  for (int64_t i = 0; i < N; ++i) {
    std::fill(pr + i * N, pr + i * N + i, 0.0);
    std::copy(q + i * N + i, q + (i + 1) * N, pr + i * N + i);
  }
  check_done("qr", a,
             LAPACKE_dorgqr(LAPACK_ROW_MAJOR, side(a, 0), side(a, 1), side(a, 1), q, side(a, 1), tau.data()));
}

void solve_spd(Tensor& a, Tensor& x) {
  const lapack_int info = LAPACKE_dposv(LAPACK_ROW_MAJOR, 'U', side(a, 0), side(x, 1), a.data<double>(),
                                        side(a, 0), x.data<double>(), side(x, 1));
  LLATTE_CHECK(info <= 0, "solve_spd: the matrix ", a.shape(),
               " is not positive definite (its leading minor of order ", info, "); add to its diagonal");
  check_done("solve_spd", a, info);
}

}  // namespace llatte::cpu
