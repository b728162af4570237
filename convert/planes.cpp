// Complex matrices as pairs of real ones, and the factorisation on them.
#include "convert/planes.h"
#include <algorithm>
#include <cmath>
#include <numeric>
#include "tensor/linalg.h"

namespace llatte {
namespace {

namespace la = linalg;

// Phases and mixtures of heads that hardly matter would be divided by almost nothing: their weight is raised
// to this share of the largest.
constexpr double kFloor = 1e-4;

Complex columns(const Complex& a, int64_t begin, int64_t end) {
  return {a.re.slice(1, begin, end).clone(), a.im.slice(1, begin, end).clone()};
}
Complex rows(const Complex& a, int64_t begin, int64_t end) {
  return {a.re.slice(0, begin, end).clone(), a.im.slice(0, begin, end).clone()};
}

// Rows (dim `first` of each of the heads) of w [heads 2F, .].
std::vector<int64_t> dims(int64_t first, int64_t F, int64_t head, int64_t g) {
  std::vector<int64_t> at;
  for (int64_t h = head; h < head + g; ++h) at.push_back(2 * F * h + first);
  return at;
}

// Where pair j of the heads of block b is.
struct PairRows {
  PairRows(int64_t j, int64_t F, int64_t b, int64_t g)
      : re(dims(j, F, b * g, g)), im(dims(j + F, F, b * g, g)) {}
  std::vector<int64_t> re, im;
};

Complex pair_metric(const Tensor& G, const PairRows& at) {
  const auto block = [&](const std::vector<int64_t>& r, const std::vector<int64_t>& c) {
    return block_of(G, r, c);
  };
  const Tensor half = Tensor::full({static_cast<int64_t>(at.re.size())}, 0.5, DType::f64);
  return {la::scaled_rows(la::add_scaled(block(at.re, at.re), 1, block(at.im, at.im)), half),
          la::scaled_rows(la::add_scaled(block(at.im, at.re), -1, block(at.re, at.im)), half)};
}

// V s^power V^H.
Complex power_of(const la::EighComplex& e, double lowest, double power) {
  std::vector<double> s = e.values.to_vector<double>();
  for (double& x : s) x = std::max(x, lowest);
  const Tensor s_N = Tensor::from(s, e.values.shape());
  return product({la::scaled_columns(e.re, s_N, power), la::scaled_columns(e.im, s_N, power)},
                 adjoint({e.re, e.im}));
}

// T and T^-1; undefined: the identity.
struct ComplexRoot {
  Complex root, inverse;
};

std::vector<ComplexRoot> roots(const Tensor& G, const std::vector<PairRows>& places) {
  std::vector<la::EighComplex> all;
  double largest = 0;
  for (const PairRows& at : places) {
    const Complex gam = pair_metric(G, at);
    all.push_back(la::eigh(gam.re, gam.im));
    largest = std::max(largest, all.back().values.data<double>()[0]);
  }
  LLATTE_CHECK(largest > 0, "planes: the metric has no positive eigenvalue at any pair, the largest is ",
               largest);
  std::vector<ComplexRoot> r;
  for (const la::EighComplex& e : all)
    r.push_back({power_of(e, kFloor * largest, 0.5), power_of(e, kFloor * largest, -0.5)});
  return r;
}

PlaneFactors factor_pair(const Complex& w_gD, const Tensor& covariance_DD, const ComplexRoot& T) {
  const Complex tw = T.root.re.defined() ? product(T.root, w_gD) : w_gD;
  const Complex twC = covariance_DD.defined()
                          ? Complex{la::product(tw.re, covariance_DD), la::product(tw.im, covariance_DD)}
                          : tw;
  const Complex M = product(twC, adjoint(tw));
  const la::EighComplex e = la::eigh(M.re, M.im);
  const int64_t P = std::min(w_gD.re.size(0), w_gD.re.size(1));
  const Complex U = columns({e.re, e.im}, 0, P);
  PlaneFactors f{T.inverse.re.defined() ? product(T.inverse, U) : U, product(adjoint(U), tw), {}};
  for (int64_t p = 0; p < P; ++p) f.eigenvalues.push_back(std::max(e.values.data<double>()[p], 0.0));
  return f;
}

// Q of A = Q R with orthonormal columns. Each column is made orthogonal to those before it twice, which is as
// good as can be.
Complex orthonormal(const Complex& A) {
  Complex Q{A.re.clone(), A.im.clone()};
  for (int64_t p = 0; p < A.re.size(1); ++p) {
    Complex q = columns(Q, p, p + 1);
    for (int round = 0; round < 2 && p > 0; ++round) {
      const Complex before = columns(Q, 0, p), in = product(before, product(adjoint(before), q));
      q = {la::add_scaled(q.re, -1, in.re), la::add_scaled(q.im, -1, in.im)};
    }
    const double length = std::sqrt(product(adjoint(q), q).re.item());
    LLATTE_CHECK(length > 0, "planes: column ", p, " of a lift depends on those before it");
    const Tensor inverse = Tensor::full({q.re.size(0)}, 1 / length, DType::f64);
    Q.re.slice(1, p, p + 1).copy_from(la::scaled_rows(q.re, inverse));
    Q.im.slice(1, p, p + 1).copy_from(la::scaled_rows(q.im, inverse));
  }
  return Q;
}

}  // namespace

Complex product(const Complex& a, const Complex& b) {
  return {la::add_scaled(la::product(a.re, b.re), -1, la::product(a.im, b.im)),
          la::add_scaled(la::product(a.re, b.im), 1, la::product(a.im, b.re))};
}

Complex adjoint(const Complex& a) {
  const Tensor im = la::transposed(a.im);
  return {la::transposed(a.re), la::scaled_rows(im, Tensor::full({im.size(0)}, -1, DType::f64))};
}

std::vector<PlaneFactors> factor_pairs(const Tensor& w_ND, int64_t F, int64_t g, const FactorMetric& metric) {
  const int64_t blocks = w_ND.size(0) / (2 * F * g);
  LLATTE_CHECK(w_ND.size(0) == 2 * F * g * blocks, "planes: ", w_ND.size(0), " rows are not blocks of ", g,
               " heads with ", F, " pairs");
  std::vector<PairRows> places;
  for (int64_t j = 0; j < F; ++j)
    for (int64_t b = 0; b < blocks; ++b) places.emplace_back(j, F, b, g);
  std::vector<ComplexRoot> T(places.size());
  if (metric.outputs_NN.defined() && F > 0) T = roots(metric.outputs_NN, places);
  std::vector<PlaneFactors> all;
  for (size_t i = 0; i < places.size(); ++i)
    all.push_back(
        factor_pair({rows_of(w_ND, places[i].re), rows_of(w_ND, places[i].im)}, metric.covariance_DD, T[i]));
  return all;
}

PlaneFactors first_planes(const PlaneFactors& f, int64_t m, bool balanced) {
  PlaneFactors y{
      columns(f.lift_gP, 0, m), rows(f.down_PD, 0, m), {f.eigenvalues.begin(), f.eigenvalues.begin() + m}};
  if (!balanced || m == 0) return y;
  const Complex Q = orthonormal(y.lift_gP);
  y.down_PD = product(product(adjoint(Q), y.lift_gP), y.down_PD);
  y.lift_gP = Q;
  return y;
}

PlaneWeights plane_weights(const std::vector<PlaneFactors>& factors, const Planes& planes, int64_t F,
                           bool balanced) {
  const int64_t P = planes.count(), blocks = static_cast<int64_t>(factors.size()) / F;
  const int64_t g = factors[0].lift_gP.re.size(0), D = factors[0].down_PD.re.size(1);
  const auto empty = [](int64_t m, int64_t n) { return Tensor::empty({m, n}, DType::f64); };
  PlaneWeights w{empty(2 * P, D), {empty(g, P), empty(g, P)}};
  for (const PlaneFactors& f : factors)
    w.total = std::accumulate(f.eigenvalues.begin(), f.eigenvalues.end(), w.total);
  w.error = w.total;
  for (int64_t p = 0; p < P;) {
    const auto at = static_cast<size_t>(p);
    int64_t end = p;
    while (end < P && planes.pair[static_cast<size_t>(end)] == planes.pair[at] &&
           planes.block[static_cast<size_t>(end)] == planes.block[at])
      ++end;
    const PlaneFactors& all = factors[static_cast<size_t>(planes.pair[at] * blocks + planes.block[at])];
    LLATTE_CHECK(end - p <= all.down_PD.re.size(0), "planes: pair ", planes.pair[at], " is to have ", end - p,
                 " planes, there are ", all.down_PD.re.size(0));
    const PlaneFactors f = first_planes(all, end - p, balanced);
    w.down_2PD.slice(0, p, end).copy_from(f.down_PD.re);
    w.down_2PD.slice(0, P + p, P + end).copy_from(f.down_PD.im);
    w.lift_gP.re.slice(1, p, end).copy_from(f.lift_gP.re);
    w.lift_gP.im.slice(1, p, end).copy_from(f.lift_gP.im);
    for (const double e : f.eigenvalues) w.error -= e;
    p = end;
  }
  return w;
}

Planes planes_of(const std::vector<int64_t>& counts, int64_t F) {
  Planes planes;
  const int64_t blocks = F ? static_cast<int64_t>(counts.size()) / F : 0;
  for (size_t i = 0; i < counts.size(); ++i)
    for (int64_t n = 0; n < counts[i]; ++n) {
      planes.pair.push_back(static_cast<int32_t>(static_cast<int64_t>(i) / blocks));
      planes.block.push_back(static_cast<int32_t>(static_cast<int64_t>(i) % blocks));
    }
  return planes;
}

}  // namespace llatte
