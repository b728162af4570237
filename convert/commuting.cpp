// Rotations of planes as matrices, the maps that commute with them, and the couplings they leave alone.
#include "convert/commuting.h"
#include <cmath>
#include "tensor/linalg.h"

namespace llatte {
namespace {

// B_i R_i(t), for all planes side by side.
Tensor turned(const Tensor& basis_N2P, const std::vector<double>& frequencies, double t) {
  Tensor y = basis_N2P.clone();
  const int64_t N = y.size(0), width = y.size(1);
  for (int64_t n = 0; n < N; ++n)
    for (int64_t i = 0; i < width / 2; ++i) {
      const double angle = t * frequencies[static_cast<size_t>(i)];
      double* at = y.data<double>() + n * width + 2 * i;
      const double x0 = at[0], x1 = at[1];
      at[0] = x0 * std::cos(angle) + x1 * std::sin(angle);
      at[1] = x1 * std::cos(angle) - x0 * std::sin(angle);
    }
  return y;
}

Tensor identity(int64_t n) { return linalg::add_to_diagonal(Tensor::zeros({n, n}, DType::f64), 1); }

void check_matrix(const char* op, const Tensor& a) {
  LLATTE_CHECK(a.defined() && a.dtype() == DType::f64 && a.ndim() == 2, op, ": needs a matrix in f64, got ",
               a.defined() ? name(a.dtype()) : "none", " ", a.shape());
}

void check_even(const char* op, int64_t n, const Shape& shape) {
  LLATTE_CHECK(n % 2 == 0, op, ": a plane needs two dimensions and ", shape, " has ", n,
               "; leave one out or add one");
}

}  // namespace

Tensor plane_rotation(const Tensor& basis_N2P, const std::vector<double>& frequencies, double t) {
  check_matrix("plane_rotation", basis_N2P);
  LLATTE_CHECK(basis_N2P.size(1) == 2 * static_cast<int64_t>(frequencies.size()),
               "plane_rotation: ", frequencies.size(), " frequencies for the columns of ", basis_N2P.shape(),
               "; each turns two of them");
  return linalg::product(turned(basis_N2P, frequencies, t), basis_N2P.transpose(0, 1));
}

Tensor CommutingMap::matrix_ND() const {
  std::vector<double> twice;
  for (double x : lambda) twice.insert(twice.end(), 2, x);
  const Tensor lambda_2P = Tensor::from(twice, {static_cast<int64_t>(twice.size())});
  return linalg::product(linalg::scaled_columns(c_N2P, lambda_2P), b_D2P.transpose(0, 1));
}

CommutingMap nearest_commuting(const Tensor& w_ND) {
  const linalg::Svd f = linalg::svd(w_ND);
  check_even("nearest_commuting", f.s.size(0), w_ND.shape());
  CommutingMap m{f.u, linalg::transposed(f.vt), {}, 0};
  const auto s = f.s.to_vector<double>();
  for (size_t i = 0; i < s.size(); i += 2) {
    m.lambda.push_back((s[i] + s[i + 1]) / 2);
    m.residual += (s[i] - s[i + 1]) * (s[i] - s[i + 1]) / 2;
  }
  return m;
}

CommutingMap commuting_projection(const Tensor& up_N2P) {
  check_matrix("commuting_projection", up_N2P);
  const int64_t width = up_N2P.size(1);
  check_even("commuting_projection", width, up_N2P.shape());
  return {up_N2P.clone(), identity(width), std::vector<double>(static_cast<size_t>(width / 2), 1.0), 0};
}

Tensor shift_invariant(const Tensor& n_PQ, const std::vector<int32_t>& pair_P,
                       const std::vector<int32_t>& pair_Q) {
  check_matrix("shift_invariant", n_PQ);
  const Shape want{2 * static_cast<int64_t>(pair_P.size()), 2 * static_cast<int64_t>(pair_Q.size())};
  LLATTE_CHECK(n_PQ.shape() == want, "shift_invariant: a coupling ", n_PQ.shape(), " of ", pair_P.size(),
               " and ", pair_Q.size(), " planes; it must be ", want);
  const Tensor given = n_PQ.contiguous();
  Tensor y = Tensor::zeros(want, DType::f64);
  const double* n = given.data<double>();
  for (int64_t p = 0; p < want[0]; p += 2)
    for (int64_t q = 0; q < want[1]; q += 2) {
      if (pair_P[static_cast<size_t>(p / 2)] != pair_Q[static_cast<size_t>(q / 2)]) continue;
      const int64_t above = p * want[1] + q, below = above + want[1];
      const double a = (n[above] + n[below + 1]) / 2, b = (n[below] - n[above + 1]) / 2;
      double* out = y.data<double>();
      out[above] = out[below + 1] = a, out[below] = b, out[above + 1] = -b;
    }
  return y;
}

}  // namespace llatte
