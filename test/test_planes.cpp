// Planes: the factorisation of one frequency is the best there is, its error the sum of the dropped
// eigenvalues, and balancing changes no product.
//
// Tolerances. Matrices are f64 of size 1 with sides below 30: rounding of 1e-15, grown by T^-1 (eigenvalues
// down to 1e-4 of the largest, so a factor 1e2) and by the gaps of random eigenvalues: 1e-10.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <random>
#include "convert/planes.h"
#include "tensor/linalg.h"
#include "test/near.h"

using namespace llatte;
using namespace llatte::test;
namespace la = llatte::linalg;

namespace {

constexpr double kTol = 1e-10;
constexpr int64_t F = 3, D = 11, heads = 4;

Tensor random_matrix(int64_t rows, int64_t columns, unsigned seed) {
  std::mt19937 rng(seed);
  return Tensor::from(noise(rows * columns, rng), {rows, columns});
}

// Positive definite.
Tensor gram(int64_t n, unsigned seed) {
  const Tensor a = random_matrix(n, 2 * n, seed);
  return la::add_to_diagonal(la::product(a, a.transpose(0, 1)), 0.5);
}

FactorMetric metric(bool outputs) { return {gram(D, 3), outputs ? gram(2 * F * heads, 4) : Tensor()}; }

double entry(const Tensor& a, int64_t i, int64_t j) { return a.data<double>()[i * a.size(1) + j]; }

// Rows of pair j of heads [b g, (b + 1) g), as a complex matrix.
Complex rows_of_pair(const Tensor& w, int64_t j, int64_t b, int64_t g) {
  std::vector<int64_t> re, im;
  for (int64_t h = b * g; h < (b + 1) * g; ++h) re.push_back(2 * F * h + j), im.push_back(2 * F * h + j + F);
  return {rows_of(w, re), rows_of(w, im)};
}

// What `planes` of pair j make wrong, by the definition: E of (g . e(x))^2 / 2 over gradients g with G =
// E[g g^T] that are turned by every phase alike, that is tr(e^H Gam e C), entry by entry.
double error_of(const Complex& w, const PlaneFactors& f, const FactorMetric& m, int64_t j, int64_t b) {
  const int64_t g = w.re.size(0);
  const Complex near = product(f.lift_gP, f.down_PD);
  double sum = 0;
  for (int64_t x = 0; x < g; ++x)
    for (int64_t y = 0; y < g; ++y) {
      double re = x == y, im = 0;  // Gam_xy
      if (m.outputs_NN.defined()) {
        const int64_t rx = 2 * F * (b * g + x) + j, ry = 2 * F * (b * g + y) + j;
        re = (entry(m.outputs_NN, rx, ry) + entry(m.outputs_NN, rx + F, ry + F)) / 2;
        im = (entry(m.outputs_NN, rx + F, ry) - entry(m.outputs_NN, rx, ry + F)) / 2;
      }
      for (int64_t c = 0; c < D; ++c)
        for (int64_t d = 0; d < D; ++d) {
          const double xr = entry(w.re, x, c) - entry(near.re, x, c),
                       xi = entry(w.im, x, c) - entry(near.im, x, c);
          const double yr = entry(w.re, y, d) - entry(near.re, y, d),
                       yi = entry(w.im, y, d) - entry(near.im, y, d);
          // Re(conj(e_xc) Gam_xy e_yd) C_cd
          sum += entry(m.covariance_DD, c, d) * (re * (xr * yr + xi * yi) - im * (xr * yi - xi * yr));
        }
    }
  return sum;
}

double dropped(const PlaneFactors& f, size_t m) {
  double sum = 0;
  for (size_t i = m; i < f.eigenvalues.size(); ++i) sum += f.eigenvalues[i];
  return sum;
}

}  // namespace

TEST_CASE("the error of m planes is the sum of the dropped eigenvalues") {
  const Tensor w = random_matrix(2 * F * heads, D, 1);
  for (const bool outputs : {false, true})
    for (const int64_t g : {1, 2, 4}) {
      const FactorMetric m = metric(outputs);
      const std::vector<PlaneFactors> all = factor_pairs(w, F, g, m);
      REQUIRE(static_cast<int64_t>(all.size()) == F * heads / g);
      for (int64_t j = 0; j < F; ++j)
        for (int64_t b = 0; b < heads / g; ++b) {
          const PlaneFactors& f = all[static_cast<size_t>(j * (heads / g) + b)];
          double total = 0;
          for (const double e : f.eigenvalues) total += e;
          for (int64_t n = 1; n <= g; ++n)
            for (const bool balanced : {false, true}) {
              const PlaneFactors first = first_planes(f, n, balanced);
              const double error = error_of(rows_of_pair(w, j, b, g), first, m, j, b);
              CHECK(std::abs(error - dropped(f, static_cast<size_t>(n))) <= kTol * total);
            }
        }
    }
}

TEST_CASE("no other factors of the same rank are better") {
  const Tensor w = random_matrix(2 * F * heads, D, 1);
  const FactorMetric m = metric(true);
  const PlaneFactors f = first_planes(factor_pairs(w, F, heads, m)[1], 2, false);
  const Complex rows = rows_of_pair(w, 1, 0, heads);
  const double best = error_of(rows, f, m, 1, 0);
  for (unsigned seed = 10; seed < 30; ++seed)
    for (const double step : {1e-1, 1e-3}) {
      PlaneFactors moved{
          {f.lift_gP.re.clone(), f.lift_gP.im.clone()}, {f.down_PD.re.clone(), f.down_PD.im.clone()}, {}};
      std::mt19937 rng(seed);
      for (Tensor* t : {&moved.lift_gP.re, &moved.lift_gP.im, &moved.down_PD.re, &moved.down_PD.im}) {
        const Vec by = noise(t->numel(), rng);
        for (size_t i = 0; i < by.size(); ++i) t->data<double>()[i] += step * by[i];
      }
      CHECK(error_of(rows, moved, m, 1, 0) > best);
    }
}

TEST_CASE("with all planes nothing is lost, and balanced lifts are orthonormal") {
  const Tensor w = random_matrix(2 * F * heads, D, 2);
  for (const int64_t g : {2, 4}) {
    const std::vector<PlaneFactors> all = factor_pairs(w, F, g, metric(true));
    const Planes planes = planes_of(std::vector<int64_t>(all.size(), g), F);
    REQUIRE(planes.count() == F * heads);
    const PlaneWeights p = plane_weights(all, planes, F, true);
    CHECK(std::abs(p.error) <= kTol * p.total);
    for (int64_t i = 0; i < planes.count(); i += g) {  // the planes of one pair and block
      const auto part = [&](const Tensor& a) { return a.slice(1, i, i + g).clone(); };
      const Complex A{part(p.lift_gP.re), part(p.lift_gP.im)};
      const Complex one = product(adjoint(A), A);
      check_near("A^H A", to_vec(one.re), to_vec(la::add_to_diagonal(Tensor::zeros({g, g}, DType::f64), 1)),
                 kTol);
      check_near("A^H A, imaginary", to_vec(one.im), Vec(static_cast<size_t>(g * g), 0.0), kTol);
      const int64_t P = planes.count();
      const Complex b{p.down_2PD.slice(0, i, i + g).clone(), p.down_2PD.slice(0, P + i, P + i + g).clone()};
      const Complex got = product(A, b);
      const Complex want =
          rows_of_pair(w, planes.pair[static_cast<size_t>(i)], planes.block[static_cast<size_t>(i)], g);
      check_near("re", to_vec(got.re), to_vec(want.re), kTol);
      check_near("im", to_vec(got.im), to_vec(want.im), kTol);
    }
  }
}

TEST_CASE("a pair that turns by any phase has the same eigenvalues") {
  // w -> exp(i phi) w: what the metric sees must not depend on the position.
  const Tensor w = random_matrix(2 * F * heads, D, 5);
  Tensor turned = w.clone();
  const double c = std::cos(0.7), s = std::sin(0.7);
  for (int64_t h = 0; h < heads; ++h)
    for (int64_t j = 0; j < F; ++j)
      for (int64_t d = 0; d < D; ++d) {
        const int64_t re = (2 * F * h + j) * D + d, im = re + F * D;
        turned.data<double>()[re] = c * w.data<double>()[re] - s * w.data<double>()[im];
        turned.data<double>()[im] = s * w.data<double>()[re] + c * w.data<double>()[im];
      }
  const auto a = factor_pairs(w, F, heads, metric(true)), b = factor_pairs(turned, F, heads, metric(true));
  for (size_t j = 0; j < a.size(); ++j) check_near("e", b[j].eigenvalues, a[j].eigenvalues, kTol);
}

TEST_CASE("what cannot be is refused") {
  const Tensor w = random_matrix(2 * F * heads, D, 1);
  check_rejects([&] { factor_pairs(w, F, 3, {}); }, "24 rows are not blocks of 3 heads with 3 pairs");
  check_rejects(
      [&] {
        factor_pairs(w, F, heads, {{}, Tensor::zeros({24, 24}, DType::f64)});
      },
      "no positive eigenvalue");
  const auto all = factor_pairs(w, F, heads, {});
  check_rejects(
      [&] {
        plane_weights(all, planes_of({5, 0, 0}, F), F, true);
      },
      "pair 0 is to have 5 planes, there are 4");
}
