// LAPACK's and cuSOLVER's results against their definitions, on random matrices, and what is refused.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "tensor/linalg.h"
#include "test/near.h"

using namespace llatte;
using namespace llatte::test;
namespace la = llatte::linalg;

// Backward-stable methods err by a small multiple of the unit roundoff, 1.1e-16, times the norm of the
// matrix: here norms are below 20 and orders below 40, so 1e-12 leaves a factor of about ten.
constexpr double kTol = 1e-12;

static Tensor random_matrix(int64_t M, int64_t N, int seed = 1, Device d = test_device()) {
  std::mt19937 rng(static_cast<unsigned>(seed));
  return from(noise(M * N, rng), {M, N}, d);
}

static void check_same(const char* what, const Tensor& got, const Tensor& want, double tol = kTol) {
  CHECK(got.shape() == want.shape());
  CHECK(got.device() == test_device());
  check_near(what, to_vec(got), to_vec(want), tol);
}

static Tensor identity(int64_t N) { return la::add_to_diagonal(zeros({N, N}, DType::f64), 1); }

static Tensor gram(const Tensor& a) { return la::product(a.transpose(0, 1), a); }

TEST_CASE("svd: the product, orthonormal factors, order and signs") {
  for (const Shape& s : {Shape{31, 17}, Shape{17, 31}, Shape{1, 9}, Shape{9, 1}}) {
    const Tensor a = random_matrix(s[0], s[1]);
    const la::Svd f = la::svd(a);
    check_same("u s vt", la::product(la::scaled_columns(f.u, f.s), f.vt), a);
    check_same("u^T u", gram(f.u), identity(f.s.size(0)));
    check_same("vt vt^T", gram(f.vt.transpose(0, 1)), identity(f.s.size(0)));
    const Vec values = to_vec(f.s), rows = to_vec(f.vt);
    CHECK(std::is_sorted(values.rbegin(), values.rend()));
    for (int64_t i = 0; i < f.s.size(0); ++i) {
      const auto row = rows.begin() + i * s[1];
      const auto less = [](double x, double y) { return std::abs(x) < std::abs(y); };
      CHECK(*std::max_element(row, row + s[1], less) > 0);
    }
    const la::Svd negative = la::svd(la::scaled_columns(a, full({s[1]}, -1, DType::f64)));
    check_same("signs come from the matrix", negative.vt, f.vt, 1e-10);  // well separated random values
  }
}

TEST_CASE("eigh: symmetric and Hermitian") {
  const int64_t N = 23;
  const Tensor a = random_matrix(N, N, 1, Device::cpu);
  Tensor symmetric = Tensor::zeros({N, N}, DType::f64), skew = symmetric.clone();
  for (int64_t i = 0; i < N; ++i)
    for (int64_t j = 0; j < N; ++j) {
      const double x = a.data<double>()[i * N + j], y = a.data<double>()[j * N + i];
      symmetric.data<double>()[i * N + j] = x + y, skew.data<double>()[i * N + j] = x - y;
    }
  symmetric = here(symmetric), skew = here(skew);
  const la::Eigh e = la::eigh(symmetric);
  check_same("v d v^T", la::product(la::scaled_columns(e.vectors, e.values), e.vectors.transpose(0, 1)),
             symmetric);
  CHECK(to_vec(e.values).front() > to_vec(e.values).back());
  check_same("values alone", la::eigenvalues(symmetric), e.values);

  // H v = v d for H = symmetric + i skew, part by part.
  const la::EighComplex h = la::eigh(symmetric, skew);
  const Tensor re = la::add_scaled(la::product(symmetric, h.re), -1, la::product(skew, h.im));
  const Tensor im = la::add_scaled(la::product(symmetric, h.im), 1, la::product(skew, h.re));
  check_same("re(H v)", re, la::scaled_columns(h.re, h.values));
  check_same("im(H v)", im, la::scaled_columns(h.im, h.values));
  const Tensor zero = zeros({N, N}, DType::f64);
  check_same("a real Hermitian matrix", la::eigh(symmetric, zero).values, e.values);
}

TEST_CASE("qr, solve_spd, least_squares, root_of") {
  const Tensor a = random_matrix(29, 13), b = random_matrix(29, 5, 2);
  const la::Qr f = la::qr(a);
  check_same("q r", la::product(f.q, f.r), a);
  check_same("q^T q", gram(f.q), identity(13));
  CHECK(to_vec(f.r)[5 * 13 + 4] == 0);

  const Tensor spd = la::add_to_diagonal(gram(a), 1), right = random_matrix(13, 4, 3);
  check_same("a x = b", la::product(spd, la::solve_spd(spd, right)), right);

  const Tensor x = la::least_squares(a, b);  // the normal equations: a^T a x = a^T b
  check_same("least squares", la::product(gram(a), x), la::product(a.transpose(0, 1), b), 1e-11);
  const Tensor wide = a.transpose(0, 1), y = la::least_squares(wide, right);
  check_same("under-determined: exact", la::product(wide, y), right);
  check_same("and of smallest norm: in the row space", y, la::product(a, la::solve_spd(gram(a), right)),
             1e-10);

  const la::Root r = la::root_of(spd, 1e-12);
  check_same("root root", la::product(r.root, r.root), spd);
  check_same("root inverse", la::product(r.root, r.inverse), identity(13), 1e-11);
  const la::Root clamped = la::root_of(gram(wide), 1e-4);  // 29 x 29 of rank 13
  const Vec values = to_vec(la::eigh(la::product(clamped.root, clamped.root)).values);
  CHECK(near(values.back() / values.front(), 1e-4, 1e-12));
  CHECK(la::mean_diagonal(identity(7)) == 1);
}

TEST_CASE("what cannot be computed is said") {
  Tensor bad = random_matrix(4, 4, 1, Device::cpu);
  bad.data<double>()[5] = std::nan("");
  bad = here(bad);
  check_rejects([&] { la::svd(bad); }, "svd: the matrix (4,4) holds a number that is not finite");
  check_rejects([&] { la::eigh(bad); }, "eigh: the matrix (4,4) holds a number that is not finite");
  check_rejects([&] { la::svd(zeros({2, 2})); }, "needs a matrix in f64");
  check_rejects([&] { la::svd(zeros({0, 2}, DType::f64)); }, "at least one number");
  check_rejects([&] { la::eigenvalues(bad); },
                "eigenvalues: the matrix (4,4) holds a number that is not finite");
  check_rejects([&] { la::eigh(random_matrix(3, 4)); }, "needs a square matrix, got (3,4)");
  check_rejects([&] { la::qr(random_matrix(3, 4)); }, "at least as many rows as columns, got (3,4)");
  const Tensor i = identity(3), minus = la::add_to_diagonal(i, -2);
  check_rejects([&] { la::solve_spd(minus, i); }, "not positive definite");
  check_rejects([&] { la::solve_spd(i, random_matrix(2, 2)); }, "right side (2,2)");
  check_rejects([&] { la::root_of(minus, 1e-5); }, "not positive semidefinite");
  check_rejects([&] { la::product(i, random_matrix(2, 2)); }, "product: (3,3) times (2,2)");
}
