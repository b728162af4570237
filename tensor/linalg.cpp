// LAPACK behind sentences: every routine gets finite, row-major copies, and its return code is read.
#include "tensor/linalg.h"
#include <lapacke.h>
#include <algorithm>
#include <cmath>
#include <complex>
#include "tensor/kernels.h"  // matmul, copy

namespace llatte::linalg {
namespace {

constexpr int64_t kMaxSide = int64_t(1) << 20;  // LAPACK counts in 32 bits

Tensor checked(const char* op, const Tensor& a) {
  LLATTE_CHECK(a.defined() && a.dtype() == DType::f64 && a.ndim() == 2 && a.size(0) > 0 && a.size(1) > 0 &&
                   std::max(a.size(0), a.size(1)) < kMaxSide,
               op, ": needs a matrix in f64 with at least one number, got ",
               a.defined() ? name(a.dtype()) : "none", " ", a.shape());
  Tensor copy = a.clone();
  const double *p = copy.data<double>(), *end = p + copy.numel();
  LLATTE_CHECK(std::all_of(p, end, [](double x) { return std::isfinite(x); }), op, ": the matrix ", a.shape(),
               " holds a number that is not finite");
  return copy;
}

Tensor checked_square(const char* op, const Tensor& a) {
  Tensor copy = checked(op, a);
  LLATTE_CHECK(a.size(0) == a.size(1), op, ": needs a square matrix, got ", a.shape());
  return copy;
}

// LAPACK says 0: done, below 0: a wrong argument (ours), above 0: this matrix defeats the method.
void check_done(const char* op, const Tensor& a, lapack_int info) {
  LLATTE_CHECK(info == 0, op, ": LAPACK did not finish on a matrix ", a.shape(), " (code ", info, "): ",
               info > 0 ? "the iteration did not converge" : "an argument was refused or memory is short");
}

lapack_int side(const Tensor& a, int d) { return static_cast<lapack_int>(a.size(d)); }

Tensor f64(int64_t rows, int64_t columns) { return Tensor::empty({rows, columns}, DType::f64); }

// The column of `by` whose entry in row i is largest decides the sign of row i of `by` and column i of
// `with`.
void fix_signs(Tensor& by, Tensor& with) {
  const int64_t P = by.size(0), N = by.size(1), M = with.size(0);
  double *rows = by.data<double>(), *columns = with.data<double>();
  for (int64_t i = 0; i < P; ++i) {
    double* row = rows + i * N;
    if (*std::max_element(row, row + N, [](double x, double y) { return std::abs(x) < std::abs(y); }) >= 0)
      continue;
    for (int64_t n = 0; n < N; ++n) row[n] = -row[n];
    for (int64_t m = 0; m < M; ++m) columns[m * P + i] = -columns[m * P + i];
  }
}

// LAPACK's ascending eigenvectors (N,N), in columns -> descending, as rows.
template <class T>
std::vector<T> descending_rows(const T* vectors, int64_t N) {
  std::vector<T> rows(static_cast<size_t>(N * N));
  for (int64_t i = 0; i < N; ++i)
    for (int64_t n = 0; n < N; ++n) rows[static_cast<size_t>(i * N + n)] = vectors[n * N + N - 1 - i];
  return rows;
}

Tensor reversed(std::vector<double> ascending) {
  std::reverse(ascending.begin(), ascending.end());
  return Tensor::from(ascending, {static_cast<int64_t>(ascending.size())});
}

}  // namespace

Svd svd(const Tensor& a) {
  Tensor work = checked("svd", a);
  const int64_t M = a.size(0), N = a.size(1), P = std::min(M, N);
  Svd r{f64(M, P), Tensor::empty({P}, DType::f64), f64(P, N)};
  check_done("svd", a,
             LAPACKE_dgesdd(LAPACK_ROW_MAJOR, 'S', side(a, 0), side(a, 1), work.data<double>(), side(a, 1),
                            r.s.data<double>(), r.u.data<double>(), static_cast<lapack_int>(P),
                            r.vt.data<double>(), side(a, 1)));
  fix_signs(r.vt, r.u);
  return r;
}

Eigh eigh(const Tensor& a) {
  Tensor work = checked_square("eigh", a);
  const int64_t N = a.size(0);
  std::vector<double> values(static_cast<size_t>(N));
  check_done(
      "eigh", a,
      LAPACKE_dsyevd(LAPACK_ROW_MAJOR, 'V', 'U', side(a, 0), work.data<double>(), side(a, 0), values.data()));
  Tensor rows = Tensor::from(descending_rows(work.data<double>(), N), {N, N}), none = f64(0, 0);
  fix_signs(rows, none);
  return {reversed(values), transposed(rows)};
}

Tensor eigenvalues(const Tensor& a) {
  Tensor work = checked_square("eigenvalues", a);
  std::vector<double> values(static_cast<size_t>(a.size(0)));
  check_done(
      "eigenvalues", a,
      LAPACKE_dsyevd(LAPACK_ROW_MAJOR, 'N', 'U', side(a, 0), work.data<double>(), side(a, 0), values.data()));
  return reversed(values);
}

EighComplex eigh(const Tensor& re, const Tensor& im) {
  using C = std::complex<double>;
  const Tensor a = checked_square("eigh", re), b = checked_square("eigh", im);
  LLATTE_CHECK(re.shape() == im.shape(), "eigh: real part ", re.shape(), ", imaginary part ", im.shape());
  const int64_t N = re.size(0);
  std::vector<C> work(static_cast<size_t>(N * N));
  for (int64_t i = 0; i < N * N; ++i)
    work[static_cast<size_t>(i)] = {a.data<double>()[i], b.data<double>()[i]};
  std::vector<double> values(static_cast<size_t>(N));
  check_done(
      "eigh", re,
      LAPACKE_zheevd(LAPACK_ROW_MAJOR, 'V', 'U', side(re, 0),
                     reinterpret_cast<lapack_complex_double*>(work.data()), side(re, 0), values.data()));
  std::vector<C> rows = descending_rows(work.data(), N);
  EighComplex r{reversed(values), f64(N, N), f64(N, N)};
  for (int64_t i = 0; i < N; ++i) {
    const auto row = rows.begin() + i * N;
    const C pivot = *std::max_element(row, row + N, [](C x, C y) { return std::norm(x) < std::norm(y); });
    const C turn = std::conj(pivot) / std::abs(pivot);
    for (int64_t n = 0; n < N; ++n) {
      const C x = row[n] * turn;
      r.re.data<double>()[n * N + i] = x.real(), r.im.data<double>()[n * N + i] = x.imag();
    }
  }
  return r;
}

Qr qr(const Tensor& a) {
  Qr x{checked("qr", a), Tensor::zeros({a.size(1), a.size(1)}, DType::f64)};
  const int64_t N = a.size(1);
  LLATTE_CHECK(a.size(0) >= N, "qr: needs at least as many rows as columns, got ", a.shape());
  std::vector<double> tau(static_cast<size_t>(N));
  double *q = x.q.data<double>(), *r = x.r.data<double>();
  check_done("qr", a, LAPACKE_dgeqrf(LAPACK_ROW_MAJOR, side(a, 0), side(a, 1), q, side(a, 1), tau.data()));
  for (int64_t i = 0; i < N; ++i) std::copy(q + i * N + i, q + (i + 1) * N, r + i * N + i);
  check_done("qr", a,
             LAPACKE_dorgqr(LAPACK_ROW_MAJOR, side(a, 0), side(a, 1), side(a, 1), q, side(a, 1), tau.data()));
  return x;
}

Tensor solve_spd(const Tensor& a, const Tensor& b) {
  Tensor work = checked_square("solve_spd", a), x = checked("solve_spd", b);
  LLATTE_CHECK(a.size(0) == b.size(0), "solve_spd: a matrix ", a.shape(), " and a right side ", b.shape());
  const lapack_int info = LAPACKE_dposv(LAPACK_ROW_MAJOR, 'U', side(a, 0), side(b, 1), work.data<double>(),
                                        side(a, 0), x.data<double>(), side(b, 1));
  LLATTE_CHECK(info <= 0, "solve_spd: the matrix ", a.shape(),
               " is not positive definite (its leading minor of ", "order ", info, "); add to its diagonal");
  check_done("solve_spd", a, info);
  return x;
}

Tensor least_squares(const Tensor& a, const Tensor& b) {
  const Svd f = svd(a);
  const Tensor right = checked("least_squares", b);
  LLATTE_CHECK(a.size(0) == b.size(0), "least_squares: a matrix ", a.shape(), " and a right side ",
               b.shape());
  const auto s = f.s.to_vector<double>();
  std::vector<double> inverse(s.size());
  for (size_t i = 0; i < s.size(); ++i) inverse[i] = s[i] > 1e-12 * s[0] ? 1 / s[i] : 0;
  const Tensor inverse_P = Tensor::from(inverse, f.s.shape());
  return product(f.vt.transpose(0, 1), scaled_rows(product(f.u.transpose(0, 1), right), inverse_P));
}

Root root_of(const Tensor& a, double floor) {
  const Eigh e = eigh(a);
  std::vector<double> values = e.values.to_vector<double>();
  const double lowest = floor * values.front();
  LLATTE_CHECK(lowest > 0 && values.back() > -1e-6 * values.front(), "root_of: the matrix ", a.shape(),
               " is not positive semidefinite: its eigenvalues run from ", values.back(), " to ",
               values.front());
  for (double& x : values) x = std::max(x, lowest);
  const Tensor s = Tensor::from(values, e.values.shape()), back = e.vectors.transpose(0, 1);
  return {product(scaled_columns(e.vectors, s, 0.5), back),
          product(scaled_columns(e.vectors, s, -0.5), back)};
}

Tensor product(const Tensor& a, const Tensor& b) {
  LLATTE_CHECK(a.ndim() == 2 && b.ndim() == 2 && a.size(1) == b.size(0), "product: ", a.shape(), " times ",
               b.shape());
  Tensor c = Tensor::zeros({a.size(0), b.size(1)}, DType::f64);
  if (a.numel() > 0 && b.numel() > 0) kernels::matmul(a, b, c, 0);
  return c;
}

Tensor transposed(const Tensor& a) { return a.transpose(0, 1).clone(); }

Tensor scaled_columns(const Tensor& a, const Tensor& s, double power) {
  return transposed(scaled_rows(a.transpose(0, 1), s, power));
}

Tensor scaled_rows(const Tensor& a, const Tensor& s, double power) {
  LLATTE_CHECK(s.ndim() == 1 && s.size(0) == a.size(0), "scaled_rows: ", s.shape(), " factors for ",
               a.shape());
  Tensor y = a.clone();
  for (int64_t i = 0; i < y.size(0); ++i) {
    const double factor = std::pow(s.data<double>()[i], power);
    for (int64_t n = 0; n < y.size(1); ++n) y.data<double>()[i * y.size(1) + n] *= factor;
  }
  return y;
}

double mean_diagonal(const Tensor& a) {
  double sum = 0;
  for (int64_t i = 0; i < a.size(0); ++i) sum += a.ptr<double>()[i * (a.stride(0) + a.stride(1))];
  return sum / static_cast<double>(a.size(0));
}

Tensor add_to_diagonal(const Tensor& a, double x) {
  Tensor y = a.clone();
  for (int64_t i = 0; i < y.size(0); ++i) y.data<double>()[i * (y.size(1) + 1)] += x;
  return y;
}

Tensor add_scaled(const Tensor& a, double x, const Tensor& b) {
  LLATTE_CHECK(a.shape() == b.shape(), "add_scaled: ", a.shape(), " and ", b.shape());
  Tensor y = a.clone();
  for (int64_t i = 0; i < y.numel(); ++i) y.data<double>()[i] += x * b.data<double>()[i];
  return y;
}

}  // namespace llatte::linalg
