// The theorem of docs/latent-rope.md in numbers: what commutes with the rotation of planes and what does not,
// the nearest map that does, and which scores depend on distance alone. All in f64.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <numeric>
#include "convert/commuting.h"
#include "data/safetensors.h"
#include "tensor/linalg.h"
#include "test/near.h"

using namespace llatte;
using namespace llatte::test;
namespace la = llatte::linalg;

// Both sides of a law use the same cosines, so only products and sums of at most 64 numbers of size 10 round:
// 1e-12 leaves a factor of about ten.
constexpr double kTol = 1e-12;
// Scores at two pairs of positions use different angles, up to 32768 radians, known to 4e-12 each; sums of
// some ten such terms of size 10 stay below 1e-10 of 1 + the score.
constexpr double kAngleTol = 1e-10;

static std::mt19937 rng(7);

static Tensor random_matrix(int64_t M, int64_t N) { return Tensor::from(noise(M * N, rng), {M, N}); }

static double random_time() { return static_cast<double>(rng() % 32769); }

static std::vector<double> rope_frequencies_of(int64_t planes) {
  std::vector<double> f;
  for (int64_t i = 0; i < planes; ++i)
    f.push_back(std::pow(10000.0, -static_cast<double>(i) / static_cast<double>(planes)));
  return f;
}

static Tensor minus(const Tensor& a, const Tensor& b) {
  Vec x = to_vec(a);
  const Vec y = to_vec(b);
  for (size_t i = 0; i < x.size(); ++i) x[i] -= y[i];
  return Tensor::from(x, a.shape());
}

static double squared_norm(const Tensor& a) {
  const Vec x = to_vec(a);
  return std::inner_product(x.begin(), x.end(), x.begin(), 0.0);
}

// The largest entry of W M(t) - M'(t) W.
static double commutator(const Tensor& w, const CommutingMap& m, const std::vector<double>& frequencies,
                         double t) {
  const Vec x = to_vec(minus(la::product(w, plane_rotation(m.b_D2P, frequencies, t)),
                             la::product(plane_rotation(m.c_N2P, frequencies, t), w)));
  return std::abs(
      *std::max_element(x.begin(), x.end(), [](double a, double b) { return std::abs(a) < std::abs(b); }));
}

// z [1,2P] with every plane turned by t.
static Tensor turned(const Tensor& z, const std::vector<double>& frequencies, double t) {
  const Tensor i = la::add_to_diagonal(Tensor::zeros({z.size(1), z.size(1)}, DType::f64), 1);
  return la::product(z, plane_rotation(i, frequencies, t).transpose(0, 1));
}

TEST_CASE("W of paired singular values commutes, at any time") {
  for (const Shape& s : {Shape{64, 32}, Shape{32, 16}, Shape{6, 8}}) {
    const Tensor w = random_matrix(s[0], s[1]);
    const CommutingMap m = nearest_commuting(w);
    const auto frequencies = rope_frequencies_of(static_cast<int64_t>(m.lambda.size()));
    for (int i = 0; i < 5; ++i) {
      const double t = random_time();
      CHECK(commutator(m.matrix_ND(), m, frequencies, t) < kTol);
      // The negative: w itself, whose singular values differ within a plane, does not commute.
      CHECK(commutator(w, m, frequencies, t) > 1e-2);
    }
  }
}

TEST_CASE("lambda is the mean of a plane's two singular values: any other is further away") {
  const Tensor w = random_matrix(24, 12);
  const CommutingMap best = nearest_commuting(w);
  const double least = squared_norm(minus(w, best.matrix_ND()));
  CHECK(near(least, best.residual, 1e-10));
  for (size_t i = 0; i < best.lambda.size(); ++i)
    for (double step : {1e-3, -1e-3, 0.5, -0.5}) {
      CommutingMap other = best;
      other.lambda[i] += step;  // both singular values of the plane move: 2 step^2 further
      CHECK(near(squared_norm(minus(w, other.matrix_ND())), least + 2 * step * step, 1e-10));
    }
}

TEST_CASE("and no other planes come nearer") {
  const Tensor w = random_matrix(20, 10);
  const CommutingMap best = nearest_commuting(w);
  for (int i = 0; i < 20; ++i) {
    // C and B turned a little: still orthonormal, and lambda the best for them, tr(C_i^T w B_i) / 2.
    CommutingMap other = best;
    const Tensor a = random_matrix(20, 10), b = random_matrix(10, 10);
    other.c_N2P = la::qr(minus(best.c_N2P, la::scaled_columns(a, Tensor::full({10}, 0.1, DType::f64)))).q;
    other.b_D2P = la::qr(minus(best.b_D2P, la::scaled_columns(b, Tensor::full({10}, 0.1, DType::f64)))).q;
    const Vec inner = to_vec(la::product(la::product(other.c_N2P.transpose(0, 1), w), other.b_D2P));
    for (size_t p = 0; p < other.lambda.size(); ++p)
      other.lambda[p] = (inner[2 * p * 11] + inner[(2 * p + 1) * 11]) / 2;
    CHECK(squared_norm(minus(w, other.matrix_ND())) > best.residual);
  }
}

TEST_CASE("planes, lambda and M(t) of an independent implementation") {
  const SafetensorsFile file = SafetensorsFile::open("test/fixtures/tiny-hla/commutation.safetensors");
  // of commutation.json: squared distances, printed to 16 digits
  const std::vector<std::pair<std::string, double>> cases = {{"k_like.", 4.167671360439653},
                                                             {"q_like.", 1.1360919391004116},
                                                             {"small.", 0.4785714633588972},
                                                             {"square.", 1.3371680880091255}};
  for (const auto& [at, residual] : cases) {
    const auto read = [&, prefix = at](const char* key) { return file.read(prefix + key, DType::f64); };
    const auto alpha = read("alpha").to_vector<double>();
    CHECK(near(squared_norm(minus(read("W0"), read("W"))), residual, 1e-10));
    const CommutingMap ours = nearest_commuting(read("W0"));
    check_near("lambda", ours.lambda, to_vec(read("lambda")), kTol);
    // Our signs of singular vectors may differ, which turns a plane the other way but leaves W.
    check_near("W", to_vec(ours.matrix_ND()), to_vec(read("W")), kTol);
    CHECK(near(ours.residual, residual, 1e-10));
    const CommutingMap theirs{read("C"), read("B"), read("lambda").to_vector<double>(), residual};
    check_near("M(17)", to_vec(plane_rotation(theirs.b_D2P, alpha, 17)), to_vec(read("M_t17")), kTol);
    CHECK(commutator(theirs.matrix_ND(), theirs, alpha, 17) < kTol);
    CHECK(commutator(read("W0"), theirs, alpha, 17) > 1e-2);
  }
}

TEST_CASE("an orthonormal up: its SVD chooses planes by rounding, B = I does not") {
  const Tensor up = la::svd(random_matrix(32, 8)).u;
  const la::Svd second = la::svd(up);
  // 1 to the 1e-12 of kTol: all equal, so any orthogonal B with C = up B is as good an SVD.
  check_near("singular values", to_vec(second.s), Vec(8, 1.0), kTol);
  const Tensor nudge = la::scaled_columns(random_matrix(32, 8), Tensor::full({8}, 1e-13, DType::f64));
  const la::Svd again = la::svd(minus(up, nudge));
  CHECK(squared_norm(minus(second.vt, again.vt)) > 0.1);  // other planes, from a change of 1e-13

  const CommutingMap m = commuting_projection(up);
  check_near("W = up", to_vec(m.matrix_ND()), to_vec(up), kTol);
  const auto frequencies = rope_frequencies_of(4);
  for (int i = 0; i < 5; ++i) CHECK(commutator(up, m, frequencies, random_time()) < kTol);
  check_near("plane i is latent coordinates 2i and 2i+1", to_vec(turned(up, frequencies, 9)),
             to_vec(la::product(up, plane_rotation(m.b_D2P, frequencies, -9))), kTol);
}

TEST_CASE("scores depend on distance alone exactly where equal frequencies meet in complex numbers") {
  const std::vector<int32_t> pair_q = {0, 0, 1, 2, 3, 3}, pair_k = {0, 1, 1, 3};
  const auto base = rope_frequencies_of(4);
  const auto of = [&](const std::vector<int32_t>& pairs) {
    std::vector<double> f;
    for (int32_t p : pairs) f.push_back(base[static_cast<size_t>(p)]);
    return f;
  };
  const Tensor any = random_matrix(12, 8), n = shift_invariant(any, pair_q, pair_k);
  const Tensor zq = random_matrix(1, 12), zk = random_matrix(1, 8);
  const auto score = [&](const Tensor& coupling, double s, double t) {
    const Tensor right = turned(zk, of(pair_k), t).transpose(0, 1);
    return la::product(turned(zq, of(pair_q), s), la::product(coupling, right)).item();
  };
  double moved = 0;
  for (int i = 0; i < 20; ++i) {
    const double s = random_time(), t = random_time(), shift = random_time();
    CHECK(near(score(n, s + shift, t + shift), score(n, s, t), kAngleTol));
    moved = std::max(moved, std::abs(score(any, s + shift, t + shift) - score(any, s, t)));
  }
  CHECK(moved > 0.1);
  // It is a projection: itself again, and orthogonal to what it left out.
  check_near("twice", to_vec(shift_invariant(n, pair_q, pair_k)), to_vec(n), 0);
  CHECK(near(squared_norm(any), squared_norm(n) + squared_norm(minus(any, n)), kTol));
}

TEST_CASE("the literal reading: rotate the stacked latents, lift, split into heads") {
  // q and k of two heads of width 8, each through its own 8 latents and its own C.
  const int64_t E = 8, latent = 8;
  const auto frequencies = rope_frequencies_of(latent / 2);
  const Tensor up_q = la::svd(random_matrix(2 * E, latent)).u, up_k = la::svd(random_matrix(2 * E, latent)).u;
  const Tensor cq = random_matrix(1, latent), ck = random_matrix(1, latent);
  const auto head_score = [&](int64_t head, double s, double t) {
    const auto lifted = [&](const Tensor& c, const Tensor& up, double at) {
      const Tensor stacked = la::product(turned(c, frequencies, at), up.transpose(0, 1));
      return stacked.slice(1, head * E, (head + 1) * E);
    };
    return la::product(lifted(cq, up_q, s), lifted(ck, up_k, t).transpose(0, 1)).item();
  };
  for (int64_t head = 0; head < 2; ++head) {
    double moved = 0;
    for (double shift : {1.0, 10.0, 100.0, 1000.0})
      moved = std::max(moved, std::abs(head_score(head, 7 + shift, 3 + shift) - head_score(head, 7, 3)));
    CHECK(moved > 0.1);
  }
}

TEST_CASE("what does not fit is said") {
  const Tensor w = random_matrix(6, 5);
  check_rejects([&] { nearest_commuting(w); }, "a plane needs two dimensions and (6,5) has 5");
  check_rejects([&] { commuting_projection(w); }, "a plane needs two dimensions and (6,5) has 5");
  check_rejects([&] { plane_rotation(w, {1, 2}, 0); }, "2 frequencies for the columns of (6,5)");
  check_rejects(
      [&] {
        shift_invariant(w, {0, 1}, {0});
      },
      "a coupling (6,5) of 2 and 1 planes; it must be (4,2)");
  check_rejects([&] { plane_rotation(Tensor::zeros({2, 2}), {1}, 0); }, "needs a matrix in f64, got f32");
  check_rejects([&] { shift_invariant(Tensor(), {}, {}); }, "needs a matrix in f64, got none");
}
