// Factors against their definitions: what is lost, that nothing loses less, and the statistics of a
// calibration file.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "convert/fisher.h"
#include "convert/low_rank.h"
#include "tensor/linalg.h"
#include "test/near.h"
#include "test/temp_folder.h"

using namespace llatte;
using namespace llatte::test;
namespace la = llatte::linalg;

constexpr int64_t N = 20, D = 17, R = 6;
// Everything is f64 with norms below a few hundred and condition numbers below 1e3 (the random Gram matrices
// are of three times as many samples as dimensions): rounding stays below 1e-16 * 1e2 * 1e3 = 1e-11.
constexpr double kTol = 1e-10;

static Tensor random_matrix(int64_t rows, int64_t columns, int seed) {
  std::mt19937 rng(static_cast<unsigned>(seed));
  return Tensor::from(noise(rows * columns, rng), {rows, columns});
}
static Tensor gram(int64_t n, int seed) {
  const Tensor x = random_matrix(3 * n, n, seed);
  return la::product(x.transpose(0, 1), x);
}
static double trace(const Tensor& a) { return la::mean_diagonal(a) * static_cast<double>(a.size(0)); }
static Tensor minus(const Tensor& a, const Tensor& b) {
  Tensor y = a.clone();
  for (int64_t i = 0; i < y.numel(); ++i) y.data<double>()[i] -= b.data<double>()[i];
  return y;
}
static Tensor product_of(const Factors& f) { return la::product(f.up_NR, f.down_RD); }
// tr Gam (W - W') S (W - W')^T: the mean squared error of the outputs under the metric.
static double loss(const Tensor& w, const Tensor& near, const Tensor& S, const Tensor& gam) {
  const Tensor e = minus(w, near);
  return trace(la::product(gam, la::product(e, la::product(S, e.transpose(0, 1)))));
}

TEST_CASE("plain factors are the truncated SVD") {
  const Tensor w = random_matrix(N, D, 1);
  const la::Svd svd = la::svd(w);
  const Factors f = factor(w, R);
  check_near("down is orthonormal", to_vec(la::product(f.down_RD, f.down_RD.transpose(0, 1))),
             to_vec(la::add_to_diagonal(Tensor::zeros({R, R}, DType::f64), 1)), kTol);
  double dropped = 0, all = 0;
  for (int64_t i = 0; i < D; ++i) {
    const double s = svd.s.data<double>()[i];
    all += s * s, dropped += i < R ? 0 : s * s;
  }
  CHECK(near(f.error, dropped, kTol));
  CHECK(near(f.total, all, kTol));
  const Tensor one_N = la::add_to_diagonal(Tensor::zeros({N, N}, DType::f64), 1);
  const Tensor one_D = la::add_to_diagonal(Tensor::zeros({D, D}, DType::f64), 1);
  CHECK(near(loss(w, product_of(f), one_D, one_N), dropped, kTol));
  // The aware form with both metrics the identity is the same approximation.
  check_near("identity metrics", to_vec(product_of(factor(w, R, {one_D, one_N}))), to_vec(product_of(f)),
             kTol);
}

TEST_CASE("aware factors: the error is the sum of the dropped eigenvalues, and nothing is nearer") {
  const Tensor w = random_matrix(N, D, 1), S = gram(D, 2), gam = gram(N, 3);
  const Tensor one_N = la::add_to_diagonal(Tensor::zeros({N, N}, DType::f64), 1);
  for (const FactorMetric& m : {FactorMetric{S, {}}, FactorMetric{S, gam}}) {
    const Tensor outputs = m.outputs_NN.defined() ? gam : one_N;
    const Factors f = factor(w, R, m);
    CHECK(f.error > 0);
    CHECK(near(loss(w, product_of(f), S, outputs) / f.error, 1, kTol));
    CHECK(near(loss(w, Tensor::zeros({N, D}, DType::f64), S, outputs) / f.total, 1, kTol));
    CHECK(loss(w, product_of(factor(w, R)), S, outputs) > 1.01 * f.error);
    for (int seed = 10; seed < 20; ++seed) {
      const Tensor up =
          minus(f.up_NR, la::scaled_rows(random_matrix(N, R, seed), Tensor::full({N}, 1e-3, DType::f64)));
      CHECK(loss(w, la::product(up, f.down_RD), S, outputs) > f.error);
    }
    check_near("full rank", to_vec(product_of(factor(w, D, m))), to_vec(w),
               1e-8);  // divides by small eigenvalues
    check_near("wider still", to_vec(product_of(factor(w, N + 5, m))), to_vec(w), 1e-8);
  }
}

TEST_CASE("balance keeps the product and makes up orthonormal") {
  Factors f = factor(random_matrix(N, D, 1), R, {gram(D, 2), gram(N, 3)});
  const Vec before = to_vec(product_of(f));
  balance(f);
  check_near("product", to_vec(product_of(f)), before, kTol);
  check_near("up^T up", to_vec(la::product(f.up_NR.transpose(0, 1), f.up_NR)),
             to_vec(la::add_to_diagonal(Tensor::zeros({R, R}, DType::f64), 1)), kTol);
}

TEST_CASE("latents of k and v, every method at full rank and below") {
  using enum SvdMethod;
  const Tensor k = random_matrix(8, D, 4), v = random_matrix(12, D, 5);
  const LatentMetric aware{gram(D, 2), gram(8, 6), gram(12, 7)};
  for (const SvdMethod m :
       {split, sqrt_split, joint, only_key, only_value, average, sqrt_average, key_down, value_down})
    for (const bool balanced : {false, true}) {
      CAPTURE(static_cast<int>(m));
      const int64_t exact = exact_ranks(m, 8, 12, D), most = exact ? exact : most_ranks(m, 8, 12, D);
      const LatentFactors full = factor_latents(m, k, v, most, {}, balanced),
                          part = factor_latents(m, k, v, 3, {}, balanced);
      const auto product = [](const Tensor& up, const Tensor& down) {
        return down.defined() ? la::product(up, down) : up;
      };
      const auto error = [&](const LatentFactors& f) {
        const bool apart = f.down_v.defined() || m == only_key || m == only_value;
        const Tensor dk = minus(k, product(f.up_k, f.down_k));
        const Tensor dv = minus(v, product(f.up_v, apart ? f.down_v : f.down_k));
        return trace(la::product(dk, dk.transpose(0, 1))) + trace(la::product(dv, dv.transpose(0, 1)));
      };
      CHECK(near(error(part), part.error, kTol));
      CHECK(part.error > 0.1);
      CHECK(near(error(full), full.error, kTol));
      CHECK((full.error < 1e-9) == (exact > 0));
      if (exact) {
        CHECK(near(error(factor_latents(m, k, v, D + 5, {}, balanced)), 0, kTol));
        CHECK(near(error(factor_latents(m, k, v, most, aware, balanced)), 0,
                   1e-12));  // squares of 1e-8 at most
      } else {
        check_rejects([&] { factor_latents(m, k, v, 3, aware, balanced); }, "knows the plain metric only");
      }
    }
  check_rejects([&] { factor_latents(none, k, v, 3, {}, false); }, "factors nothing");
  check_rejects([&] { factor_latents(joint, k, v, 0, {}, false); }, "a latent of 0 values");
}

TEST_CASE("stacking, blocks and rows") {
  const Tensor a = random_matrix(2, 2, 1), b = random_matrix(3, 3, 2);
  const Tensor both = block_diagonal(a, b);
  CHECK(both.shape() == Shape{5, 5});
  CHECK(both.data<double>()[1] == a.data<double>()[1]);
  CHECK(both.data<double>()[2] == 0);
  CHECK(both.data<double>()[4 * 5 + 2] == b.data<double>()[6]);
  const Tensor picked = rows_of(b, {2, 0});
  CHECK(to_vec(picked.slice(0, 0, 1)) == to_vec(b.slice(0, 2, 3)));
  CHECK(stacked(a, a).shape() == Shape{4, 2});
  CHECK(rows_of(b, {}).shape() == Shape{0, 3});
}

// A model of one layer whose calibration file is random.
struct Statistics {
  static constexpr int64_t n = 8, K = 2;
  Statistics() {
    c.num_hidden_layers = 1, c.hidden_size = D, c.num_key_value_heads = K, c.head_dim = 4;
    write_safetensors(folder / "cal", {{"S", file(gram(D, 1))},
                                       {"Ck", file(gram(D, 2))},
                                       {"Cv", file(gram(D, 3))},
                                       {"Gp", file(gram(3 * n, 4))},
                                       {"Gmix", file(gram(3 * n, 5))}});
  }
  static Tensor file(const Tensor& a) { return a.to(DType::f32).reshape({1, a.size(0), a.size(1)}); }
  TempFolder folder;
  LlamaConfig c;
};

TEST_CASE("calibration: weighted covariance and gradients as defined") {
  const Statistics s;
  const CalibrationFile cal(s.folder / "cal", s.c);
  const Tensor S = cal.covariance(0), C = cal.weighted_covariance(0), G = cal.gradients(0);
  const auto f32 = [](const Tensor& a) { return a.to(DType::f32).to(DType::f64); };
  const Tensor Ck = f32(gram(D, 2)), Cv = f32(gram(D, 3)), Gp = f32(gram(24, 4)), Gm = f32(gram(24, 5));
  const double m = la::mean_diagonal(S);
  const auto at = [](const Tensor& a, int64_t i, int64_t j) { return a.data<double>()[i * a.size(1) + j]; };
  const double want =
      m *
      (at(Ck, 3, 5) / la::mean_diagonal(Ck) + at(Cv, 3, 5) / la::mean_diagonal(Cv) + 2 * at(S, 3, 5) / m) / 4;
  CHECK(near(at(C, 3, 5), want, kTol));
  double tp = 0, tm = 0;
  for (int64_t i = 0; i < s.n; ++i) tp += at(Gp, i, i), tm += at(Gm, i, i);
  CHECK(near(at(G, 1, 2), 0.25 * at(Gp, 1, 2) + 0.75 * tp / tm * at(Gm, 1, 2), kTol));
  CHECK(near(at(G, 9, 20), 0.25 * at(Gp, 9, 20) + 0.75 * std::sqrt(tp / tm) * at(Gm, 9, 20), kTol));
  CHECK(near(at(G, 20, 20), 0.25 * at(Gp, 20, 20) + 0.75 * at(Gm, 20, 20), kTol));

  const GradientMetric g = gradient_metric(G, {1, 6});
  CHECK(at(g.kk, 0, 1) == at(G, 1, 6));
  CHECK(at(g.k2, 1, 0) == at(G, 6, 8 + 1));
  CHECK(at(g.two_two, 0, 1) == at(G, 9, 14));
  CHECK(at(g.vv, 2, 3) == at(G, 18, 19));
}

TEST_CASE("fold and derope losses as defined") {
  const Statistics s;
  const std::vector<int64_t> all{0, 1, 2, 3, 4, 5, 6, 7};
  const Tensor G = CalibrationFile(s.folder / "cal", s.c).gradients(0);
  const GradientMetric g = gradient_metric(G, all);
  const double rho = 1e-2 * la::mean_diagonal(g.two_two);
  const Tensor F = fold(G, all, {}).lost;
  check_near("(G22 + rho) F = G2k + rho", to_vec(la::product(la::add_to_diagonal(g.two_two, rho), F)),
             to_vec(la::add_to_diagonal(la::transposed(g.k2), rho)), kTol);

  // Gd by the residual of k's gradient: [I; -F]^T [[Gkk, Gk2], [G2k, G22]] [I; -F], in the direction of one
  // row.
  const Tensor wk = random_matrix(s.n, D, 8), C = gram(D, 9);
  const Tensor losses = derope_losses(G, C, wk, s.K);
  const auto gd = [&](int64_t i) {
    double sum = g.kk.data<double>()[i * 9];
    for (int64_t a = 0; a < s.n; ++a) {
      const double fa = F.data<double>()[a * s.n + i];
      sum -= 2 * g.k2.data<double>()[i * s.n + a] * fa;
      for (int64_t b = 0; b < s.n; ++b)
        sum += fa * g.two_two.data<double>()[a * s.n + b] * F.data<double>()[b * s.n + i];
    }
    return sum;
  };
  const auto size = [&](int64_t i) {
    const Tensor row = wk.slice(0, i, i + 1);
    return la::product(la::product(row, C), row.transpose(0, 1)).item();
  };
  // Head 1, pair 1: rows 4 + 1 and 4 + 1 + 2.
  CHECK(near(losses.data<double>()[1 * 2 + 1], (gd(5) + gd(7)) * (size(5) + size(7)), kTol));
  CHECK(losses.shape() == Shape{2, 2});
}

TEST_CASE("the fold leaves the least of what losing rotation costs") {
  // E (g_2 . F x + g_k . W x - g_k . x)^2 for one lost row x, by the moments in G; the ridge moves the
  // minimum by about a hundredth, so steps of 0.1 in any entry must cost more.
  const Statistics s;
  const Tensor G = CalibrationFile(s.folder / "cal", s.c).gradients(0);
  const std::vector<int64_t> lost{1, 3, 4, 6}, kept{0, 2, 5, 7};
  const KeyFold f = fold(G, lost, kept);
  REQUIRE(f.lost.shape() == Shape{4, 4});
  REQUIRE(f.kept.shape() == Shape{4, 4});
  const auto cost = [&](const std::vector<double>& c) {  // c^T G c
    double sum = 0;
    for (size_t i = 0; i < c.size(); ++i)
      for (size_t j = 0; j < c.size(); ++j) sum += c[i] * c[j] * G.data<double>()[i * c.size() + j];
    return sum;
  };
  for (size_t x = 0; x < 4; ++x) {
    std::vector<double> c(24, 0.0);
    c[static_cast<size_t>(lost[x])] = -1;
    for (size_t i = 0; i < 4; ++i) {
      c[static_cast<size_t>(8 + lost[i])] = f.lost.data<double>()[i * 4 + x];
      c[static_cast<size_t>(kept[i])] += f.kept.data<double>()[i * 4 + x];
    }
    const double least = cost(c);
    for (size_t i = 0; i < 4; ++i)
      for (const double step : {-0.1, 0.1})
        for (const int64_t row : {8 + lost[i], kept[i]}) {
          std::vector<double> moved = c;
          moved[static_cast<size_t>(row)] += step;
          CHECK(cost(moved) > least);
        }
  }
}

TEST_CASE("a calibration file that does not fit is refused") {
  const Statistics s;
  LlamaConfig other = s.c;
  other.hidden_size = D + 1;
  check_rejects([&] { CalibrationFile(s.folder / "cal", other).covariance(0); },
                "`S` is F32 (1,17,17), this model needs F32 (1,18,18)");
  check_rejects([&] { CalibrationFile(s.folder / "cal", s.c).tokens(); }, "there are no `tokens`");
  write_safetensors(s.folder / "zero",
                    {{"S", Tensor::zeros({1, D, D})}, {"Gp", Statistics::file(gram(24, 1))}});
  check_rejects([&] { CalibrationFile(s.folder / "zero", s.c).covariance(0); }, "has a mean diagonal of 0");
  check_rejects([&] { CalibrationFile(s.folder / "zero", s.c).gradients(0); }, "there is no tensor `Gmix`");
  check_rejects([&] { CalibrationFile(s.folder / "none", s.c); }, "none");
}
