// LAPACK and cuSOLVER (kernels.h) behind sentences: every routine gets finite, row-major copies. What costs
// N^3 is done on the device of the tensors; signs, order and other work of N^2 on the host.
#include "tensor/linalg.h"
#include <algorithm>
#include <cmath>
#include <complex>
#include "tensor/kernels.h"  // matmul, copy, svd, eigh, qr, solve_spd

namespace llatte::linalg {
namespace {

constexpr int64_t kMaxSide = int64_t(1) << 20;  // LAPACK counts in 32 bits

Tensor checked(const char* op, const Tensor& a) {
  LLATTE_CHECK(a.defined() && a.dtype() == DType::f64 && a.ndim() == 2 && a.size(0) > 0 && a.size(1) > 0 &&
                   std::max(a.size(0), a.size(1)) < kMaxSide,
               op, ": needs a matrix in f64 with at least one number, got ",
               a.defined() ? name(a.dtype()) : "none", " ", a.shape());
  const Tensor here = a.to(Device::cpu).contiguous();
  const double *p = here.data<double>(), *end = p + here.numel();
  LLATTE_CHECK(std::all_of(p, end, [](double x) { return std::isfinite(x); }), op, ": the matrix ", a.shape(),
               " holds a number that is not finite");
  return a.clone();
}

Tensor checked_square(const char* op, const Tensor& a) {
  Tensor copy = checked(op, a);
  LLATTE_CHECK(a.size(0) == a.size(1), op, ": needs a square matrix, got ", a.shape());
  return copy;
}

Tensor f64(const Shape& shape, Device d) { return Tensor::empty(shape, DType::f64, d); }

Tensor on_host(const Tensor& x) { return x.to(Device::cpu).contiguous(); }

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

// Ascending eigenvectors (N,N), in columns -> descending, as rows.
template <class T>
std::vector<T> descending_rows(const T* vectors, int64_t N) {
  std::vector<T> rows(static_cast<size_t>(N * N));
  for (int64_t i = 0; i < N; ++i)
    for (int64_t n = 0; n < N; ++n) rows[static_cast<size_t>(i * N + n)] = vectors[n * N + N - 1 - i];
  return rows;
}

Tensor reversed(const Tensor& ascending) {
  std::vector<double> values = ascending.to_vector<double>();
  std::reverse(values.begin(), values.end());
  return Tensor::from(values, ascending.shape()).to(ascending.device());
}

}  // namespace

Svd svd(const Tensor& a) {
  Tensor work = checked("svd", a);
  const int64_t M = a.size(0), N = a.size(1), P = std::min(M, N);
  const Device d = a.device();
  Svd r{f64({M, P}, d), f64({P}, d), f64({P, N}, d)};
  kernels::svd(work, r.u, r.s, r.vt);
  r.u = on_host(r.u), r.vt = on_host(r.vt);
  fix_signs(r.vt, r.u);
  return {r.u.to(d), r.s, r.vt.to(d)};
}

Eigh eigh(const Tensor& a) {
  Tensor work = checked_square("eigh", a), values = f64({a.size(0)}, a.device());
  kernels::eigh(work, true, values);
  const int64_t N = a.size(0);
  Tensor rows = Tensor::from(descending_rows(on_host(work).data<double>(), N), {N, N}),
         none = f64({0, 0}, Device::cpu);
  fix_signs(rows, none);
  return {reversed(values), transposed(rows).to(a.device())};
}

Tensor eigenvalues(const Tensor& a) {
  Tensor work = checked_square("eigenvalues", a), values = f64({a.size(0)}, a.device());
  kernels::eigh(work, false, values);
  return reversed(values);
}

EighComplex eigh(const Tensor& re, const Tensor& im) {
  using C = std::complex<double>;
  Tensor a = checked_square("eigh", re), b = checked_square("eigh", im);
  LLATTE_CHECK(re.shape() == im.shape(), "eigh: real part ", re.shape(), ", imaginary part ", im.shape());
  const int64_t N = re.size(0);
  Tensor values = f64({N}, re.device());
  kernels::eigh_complex(a, b, values);
  a = on_host(a), b = on_host(b);
  std::vector<C> work(static_cast<size_t>(N * N));
  for (int64_t i = 0; i < N * N; ++i)
    work[static_cast<size_t>(i)] = {a.data<double>()[i], b.data<double>()[i]};
  std::vector<C> rows = descending_rows(work.data(), N);
  for (int64_t i = 0; i < N; ++i) {
    const auto row = rows.begin() + i * N;
    const C pivot = *std::max_element(row, row + N, [](C x, C y) { return std::norm(x) < std::norm(y); });
    const C turn = std::conj(pivot) / std::abs(pivot);
    for (int64_t n = 0; n < N; ++n) {
      const C x = row[n] * turn;
      a.data<double>()[n * N + i] = x.real(), b.data<double>()[n * N + i] = x.imag();
    }
  }
  return {reversed(values), a.to(re.device()), b.to(re.device())};
}

Qr qr(const Tensor& a) {
  Qr x{checked("qr", a), f64({a.size(1), a.size(1)}, a.device())};
  LLATTE_CHECK(a.size(0) >= a.size(1), "qr: needs at least as many rows as columns, got ", a.shape());
  kernels::qr(x.q, x.r);
  return x;
}

Tensor solve_spd(const Tensor& a, const Tensor& b) {
  Tensor work = checked_square("solve_spd", a), x = checked("solve_spd", b);
  LLATTE_CHECK(a.size(0) == b.size(0), "solve_spd: a matrix ", a.shape(), " and a right side ", b.shape());
  kernels::solve_spd(work, x);
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
  const Tensor inverse_P = Tensor::from(inverse, f.s.shape()).to(a.device());
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
  const Tensor s = Tensor::from(values, e.values.shape()).to(a.device()), back = e.vectors.transpose(0, 1);
  return {product(scaled_columns(e.vectors, s, 0.5), back),
          product(scaled_columns(e.vectors, s, -0.5), back)};
}

Tensor product(const Tensor& a, const Tensor& b) {
  LLATTE_CHECK(a.ndim() == 2 && b.ndim() == 2 && a.size(1) == b.size(0), "product: ", a.shape(), " times ",
               b.shape());
  Tensor c = Tensor::zeros({a.size(0), b.size(1)}, DType::f64, a.device());
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
  Tensor y = a.to(Device::cpu).clone();
  const Tensor factors = on_host(s);
  for (int64_t i = 0; i < y.size(0); ++i) {
    const double factor = std::pow(factors.data<double>()[i], power);
    for (int64_t n = 0; n < y.size(1); ++n) y.data<double>()[i * y.size(1) + n] *= factor;
  }
  return y.to(a.device());
}

double mean_diagonal(const Tensor& a) {
  const Tensor here = a.to(Device::cpu);
  double sum = 0;
  for (int64_t i = 0; i < here.size(0); ++i) sum += here.ptr<double>()[i * (here.stride(0) + here.stride(1))];
  return sum / static_cast<double>(a.size(0));
}

Tensor add_to_diagonal(const Tensor& a, double x) {
  Tensor y = a.to(Device::cpu).clone();
  for (int64_t i = 0; i < y.size(0); ++i) y.data<double>()[i * (y.size(1) + 1)] += x;
  return y.to(a.device());
}

Tensor add_scaled(const Tensor& a, double x, const Tensor& b) {
  LLATTE_CHECK(a.shape() == b.shape(), "add_scaled: ", a.shape(), " and ", b.shape());
  Tensor y = a.to(Device::cpu).clone();
  const Tensor added = b.to(Device::cpu);
  for (int64_t i = 0; i < y.numel(); ++i) y.data<double>()[i] += x * added.data<double>()[i];
  return y.to(a.device());
}

}  // namespace llatte::linalg
