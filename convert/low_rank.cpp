// Truncated factorisations of one matrix, and MHA2MLA's ways (SvdMethod) of applying them to k and v.
#include "convert/low_rank.h"
#include <algorithm>
#include <cmath>
#include "tensor/linalg.h"

namespace llatte {
namespace {

namespace la = linalg;

// Directions of the outputs that hardly matter would be divided by almost nothing: their weight is raised to
// this share of the largest.
constexpr double kOutputFloor = 1e-5;

Tensor identity(int64_t N) { return la::add_to_diagonal(Tensor::zeros({N, N}, DType::f64), 1); }

// The first R rows or columns, filled up with zeros where there are fewer.
Tensor resized(const Tensor& a, int dim, int64_t R) {
  const int64_t have = std::min(a.size(dim), R);
  Shape shape = a.shape();
  shape[static_cast<size_t>(dim)] = R;
  Tensor y = Tensor::zeros(shape, DType::f64);
  y.slice(dim, 0, have).copy_from(a.slice(dim, 0, have));
  return y;
}

// Eigenvalues from the R-th on, and all of them; those below zero are rounding.
void take_error(const Tensor& eigenvalues, int64_t R, Factors& f) {
  f.eigenvalues = eigenvalues.to_vector<double>();
  for (size_t i = 0; i < f.eigenvalues.size(); ++i) {
    double& e = f.eigenvalues[i] = std::max(f.eigenvalues[i], 0.0);
    f.total += e;
    if (static_cast<int64_t>(i) >= R) f.error += e;
  }
}

Factors factor_plain(const Tensor& w_ND, int64_t R) {
  const la::Svd f = la::svd(w_ND);
  Factors r{resized(la::scaled_columns(f.u, f.s), 1, R), resized(f.vt, 0, R)};
  take_error(la::scaled_columns(f.s.reshape({1, -1}), f.s).reshape({-1}), R, r);
  return r;
}

Factors factor_aware(const Tensor& w_ND, int64_t R, const FactorMetric& metric) {
  const int64_t N = w_ND.size(0);
  la::Root T{identity(N), identity(N)};
  if (metric.outputs_NN.defined()) T = la::root_of(metric.outputs_NN, kOutputFloor);
  const Tensor tw_ND = la::product(T.root, w_ND);
  const Tensor twS_ND = metric.covariance_DD.defined() ? la::product(tw_ND, metric.covariance_DD) : tw_ND;
  const la::Eigh e = la::eigh(la::product(twS_ND, tw_ND.transpose(0, 1)));
  const Tensor U_NR = resized(e.vectors, 1, std::min({R, N, w_ND.size(1)}));
  Factors r{resized(la::product(T.inverse, U_NR), 1, R),
            resized(la::product(U_NR.transpose(0, 1), tw_ND), 0, R)};
  take_error(e.values, R, r);
  return r;
}

// sqrt(s) on both sides: up = U s^(1/2), down = s^(1/2) V^T. From the plain factors, whose columns of up have
// length s.
void share_singular_values(Factors& f) {
  const int64_t R = f.up_NR.size(1);
  Tensor s_R = Tensor::zeros({R}, DType::f64);
  const Tensor squares = la::product(f.up_NR.transpose(0, 1), f.up_NR);
  for (int64_t r = 0; r < R; ++r) {
    const double s = std::sqrt(squares.data<double>()[r * (R + 1)]);
    s_R.data<double>()[r] = s > 0 ? s : 1;  // a column of zeros stays one
  }
  f.up_NR = la::scaled_columns(f.up_NR, s_R, -0.5), f.down_RD = la::scaled_rows(f.down_RD, s_R, 0.5);
}

double squared_distance(const Tensor& w_ND, const Tensor& up_NR, const Tensor& down_RD) {
  const Tensor near_ND = la::product(up_NR, down_RD);
  double sum = 0;
  for (int64_t i = 0; i < w_ND.numel(); ++i) {
    const double d = w_ND.data<double>()[i] - near_ND.data<double>()[i];
    sum += d * d;
  }
  return sum;
}

// The latent that k and v share was not made for both: the mean of two, or that of one.
Tensor common_down(SvdMethod m, const Factors& k, const Factors& v) {
  if (m == SvdMethod::key_down) return k.down_RD;
  if (m == SvdMethod::value_down) return v.down_RD;
  Tensor mean = k.down_RD.clone();
  for (int64_t i = 0; i < mean.numel(); ++i)
    mean.data<double>()[i] = (mean.data<double>()[i] + v.down_RD.data<double>()[i]) / 2;
  return mean;
}

// up with up down = w as nearly as can be: the least-squares solution.
Tensor fitted_up(const Tensor& w_ND, const Tensor& down_RD) {
  return la::transposed(la::least_squares(down_RD.transpose(0, 1), w_ND.transpose(0, 1)));
}

LatentFactors with_common_down(SvdMethod m, const Tensor& k_ND, const Tensor& v_ND, int64_t R) {
  Factors k = factor(k_ND, R), v = factor(v_ND, R);
  if (m == SvdMethod::sqrt_average) share_singular_values(k), share_singular_values(v);
  LatentFactors f;
  f.down_k = common_down(m, k, v);
  f.up_k = m == SvdMethod::value_down ? fitted_up(k_ND, f.down_k) : k.up_NR;
  f.up_v = m == SvdMethod::key_down ? fitted_up(v_ND, f.down_k) : v.up_NR;
  f.error = squared_distance(k_ND, f.up_k, f.down_k) + squared_distance(v_ND, f.up_v, f.down_k);
  f.total = k.total + v.total;
  return f;
}

Tensor or_identity(const Tensor& a, int64_t N) { return a.defined() ? a : identity(N); }

LatentFactors factor_joint(const Tensor& k_ND, const Tensor& v_ND, int64_t R, const LatentMetric& m) {
  const int64_t N = k_ND.size(0);
  FactorMetric both{m.covariance_DD, {}};
  if (m.outputs_k.defined() || m.outputs_v.defined())
    both.outputs_NN = block_diagonal(or_identity(m.outputs_k, N), or_identity(m.outputs_v, v_ND.size(0)));
  const Factors f = factor(stacked(k_ND, v_ND), R, both);
  return {f.down_RD, {},     f.up_NR.slice(0, 0, N).clone(), f.up_NR.slice(0, N, f.up_NR.size(0)).clone(),
          f.error,   f.total};
}

LatentFactors factor_apart(SvdMethod m, const Tensor& k_ND, const Tensor& v_ND, int64_t R,
                           const LatentMetric& g) {
  LatentFactors r;
  const auto one = [&](const Tensor& w_ND, const Tensor& outputs, Tensor& down, Tensor& up) {
    Factors f = factor(w_ND, R, {g.covariance_DD, outputs});
    if (m == SvdMethod::sqrt_split) share_singular_values(f);
    down = f.down_RD, up = f.up_NR, r.error += f.error, r.total += f.total;
  };
  if (m == SvdMethod::only_value) r.up_k = k_ND;
  else one(k_ND, g.outputs_k, r.down_k, r.up_k);
  if (m == SvdMethod::only_key) r.up_v = v_ND;
  else one(v_ND, g.outputs_v, r.down_v, r.up_v);
  return r;
}

// Balances what reads one latent together.
void balance_latents(SvdMethod m, LatentFactors& f) {
  const int64_t N = f.up_k.size(0);
  const auto one = [](Tensor& up, Tensor& down) {
    Factors p{up, down};
    balance(p);
    up = p.up_NR, down = p.down_RD;
  };
  const bool apart = m == SvdMethod::split || m == SvdMethod::sqrt_split;
  if (m == SvdMethod::only_key || apart) one(f.up_k, f.down_k);
  if (m == SvdMethod::only_value || apart) one(f.up_v, f.down_v);
  if (f.down_v.defined() || m == SvdMethod::only_key) return;
  Tensor both = stacked(f.up_k, f.up_v);
  one(both, f.down_k);
  f.up_k = both.slice(0, 0, N).clone(), f.up_v = both.slice(0, N, both.size(0)).clone();
}

}  // namespace

Factors factor(const Tensor& w_ND, int64_t R, const FactorMetric& metric) {
  LLATTE_CHECK(R > 0, "factor: a latent of ", R, " values; have at least one");
  if (!metric.covariance_DD.defined() && !metric.outputs_NN.defined()) return factor_plain(w_ND, R);
  return factor_aware(w_ND, R, metric);
}

void balance(Factors& f) {
  const int64_t N = f.up_NR.size(0), R = f.up_NR.size(1);
  if (R > N) return;  // filled up with zeros: nothing that would be trained
  const la::Qr qr = la::qr(f.up_NR);
  f.up_NR = qr.q, f.down_RD = la::product(qr.r, f.down_RD);
}

LatentFactors factor_latents(SvdMethod m, const Tensor& k_ND, const Tensor& v_ND, int64_t R,
                             const LatentMetric& metric, bool balanced) {
  using enum SvdMethod;
  const bool common = m == average || m == sqrt_average || m == key_down || m == value_down;
  LLATTE_CHECK(m != none, "low rank: method none factors nothing");
  LLATTE_CHECK(!common || metric.plain(), "low rank: method ", static_cast<int>(m),
               " knows the plain metric only; have split, joint, only_key, only_value for the others");
  LatentFactors f = common       ? with_common_down(m, k_ND, v_ND, R)
                    : m == joint ? factor_joint(k_ND, v_ND, R, metric)
                                 : factor_apart(m, k_ND, v_ND, R, metric);
  if (balanced) balance_latents(m, f);
  return f;
}

int64_t most_ranks(SvdMethod m, int64_t rows_k, int64_t rows_v, int64_t D) {
  switch (m) {
    case SvdMethod::none: return 0;
    case SvdMethod::joint: return std::min(rows_k + rows_v, D);
    case SvdMethod::key_down:
    case SvdMethod::only_key: return std::min(rows_k, D);
    case SvdMethod::value_down:
    case SvdMethod::only_value: return std::min(rows_v, D);
    default: return std::min({rows_k, rows_v, D});
  }
}

int64_t exact_ranks(SvdMethod m, int64_t rows_k, int64_t rows_v, int64_t D) {
  using enum SvdMethod;
  if (m == split || m == sqrt_split) return std::min(std::max(rows_k, rows_v), D);
  return m == joint || m == only_key || m == only_value ? most_ranks(m, rows_k, rows_v, D) : 0;
}

Tensor stacked(const Tensor& a, const Tensor& b) {
  Shape shape = a.shape();
  shape[0] += b.size(0);
  Tensor y = Tensor::empty(shape, a.dtype());
  y.slice(0, 0, a.size(0)).copy_from(a);
  y.slice(0, a.size(0), shape[0]).copy_from(b);
  return y;
}

Tensor block_diagonal(const Tensor& a, const Tensor& b) {
  const int64_t n = a.size(0), m = b.size(0);
  Tensor y = Tensor::zeros({n + m, n + m}, DType::f64);
  y.slice(0, 0, n).slice(1, 0, n).copy_from(a);
  y.slice(0, n, n + m).slice(1, n, n + m).copy_from(b);
  return y;
}

Tensor rows_of(const Tensor& a, const std::vector<int64_t>& rows) {
  Shape shape = a.shape();
  shape[0] = static_cast<int64_t>(rows.size());
  Tensor y = Tensor::empty(shape, a.dtype());
  for (size_t i = 0; i < rows.size(); ++i) {
    const auto n = static_cast<int64_t>(i);
    y.slice(0, n, n + 1).copy_from(a.slice(0, rows[i], rows[i] + 1));
  }
  return y;
}

Tensor block_of(const Tensor& a, const std::vector<int64_t>& rows, const std::vector<int64_t>& columns) {
  return la::transposed(rows_of(la::transposed(rows_of(a, rows)), columns));
}

}  // namespace llatte
