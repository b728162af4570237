// Calibration: 2-norm scores against fixtures/tiny-mla/scores, gradients of keys and values against autograd,
// finite differences and plain loops, second moments against sums over those, resuming, refusals.
//
// Tolerances. Scores are f32 results of f32 products of some tens of terms: 1e-5, a hundred times the
// fixture's own distance between f32 and f64 (1.8e-7). In f64 rounding is 1e-16 and the longest chain some
// thousand operations: 1e-10. Moments are written as f32: 2^-24 = 6e-8 relative to the entry, 1e-6 of the
// largest.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>
#include <array>
#include "autograd/ops.h"
#include "convert/calibrate.h"
#include "convert/head_gradients.h"
#include "data/files.h"
#include "data/safetensors.h"
#include "models/checkpoint.h"
#include "tensor/kernels.h"
#include "test/near.h"
#include "test/on_device.h"
#include "test/temp_folder.h"

using namespace llatte;
using namespace llatte::test;

namespace {

const std::string kFixture = "test/fixtures/tiny-mla/";

std::unique_ptr<Llama> base(DType t) { return here(load_model(open_checkpoint(kFixture + "base"), t)); }

SafetensorsFile golden() { return SafetensorsFile::open(kFixture + "scores/golden.safetensors"); }
Tensor golden_tokens() { return golden().read("calibration_tokens", DType::i32); }

SafetensorsFile calibrated(Llama& model, const Tensor& tokens, const CalibrationSettings& s,
                           const std::filesystem::path& file, ScoreKind kind = ScoreKind::product) {
  Calibration c(model, tokens, s);
  while (c.done() < c.windows()) c.add_window();
  c.write(file, kind);
  return SafetensorsFile::open(file);
}

void set_first_row(Tensor& x, double value) {
  Tensor row = x.slice(0, 0, 1);
  row.copy_from(Tensor::full(row.shape(), value, x.dtype()));
}

void check_relative(const std::string& what, const Tensor& got, const Tensor& want, double tol) {
  REQUIRE(got.shape() == want.shape());
  const Vec g = to_vec(got), w = to_vec(want);
  double largest = 0;
  for (const double v : w) largest = std::max(largest, std::abs(v));
  REQUIRE_MESSAGE(largest > 0, what);
  for (size_t i = 0; i < w.size(); ++i)
    REQUIRE_MESSAGE(std::abs(g[i] - w[i]) <= tol * largest,
                    what << '[' << i << "]: " << g[i] << ", want " << w[i] << ", largest " << largest);
}

// ---- one layer's attention, small and random
constexpr int64_t T = 7, H = 4, K = 2, E = 6, G = H / K, N = K * E;
const double kScale = 1 / std::sqrt(double(E));

HeadInputs random_inputs(DType t, Device d = test_device()) {
  std::mt19937 rng(5);
  const auto some = [&](int64_t heads) { return to_tensor(noise(T * heads * E, rng), {T, heads, E}, t, d); };
  HeadInputs in;
  in.q_THE = some(H), in.k_TKE = some(K), in.v_TKE = some(K), in.do_THE = some(H);
  return in;
}

RopeTable table(DType acc) { return make_rope_table({1.0, 0.3, 0.1}, T, acc, test_device()); }

Tensor positions() { return from(std::vector<int32_t>{0, 1, 2, 3, 4, 5, 6}, {T}); }

// Of a tensor on the host, as all that follows by the formula.
double at(const Tensor& x_THE, int64_t t, int64_t h, int64_t e) {
  return x_THE.data<double>()[(t * x_THE.size(1) + h) * E + e];
}

// Dims (e, e + 3) of row t turned by its angles; backwards with sign -1.
double turned(const Tensor& x_THE, int64_t t, int64_t h, int64_t e, double sign = 1) {
  const double angle = sign * double(t) * (e % 3 == 0 ? 1.0 : e % 3 == 1 ? 0.3 : 0.1);
  const double other = at(x_THE, t, h, (e + 3) % E);
  return at(x_THE, t, h, e) * std::cos(angle) + (e < 3 ? -1 : 1) * other * std::sin(angle);
}

double dot_rotated(const HeadInputs& in, int64_t s, int64_t t, int64_t h) {
  double sum = 0;
  for (int64_t e = 0; e < E; ++e) sum += turned(in.q_THE, s, h, e) * turned(in.k_TKE, t, h / G, e);
  return sum;
}

// <o, do> of plain softmax attention whose keys have `extra` [T,K,E] added without rotation.
double objective(const HeadInputs& in, const Vec& extra) {
  double total = 0;
  for (int64_t h = 0; h < H; ++h)
    for (int64_t s = 0; s < T; ++s) {
      Vec w;
      double sum = 0;
      for (int64_t t = 0; t <= s; ++t) {
        double z = dot_rotated(in, s, t, h);
        for (int64_t e = 0; e < E; ++e) z += at(in.q_THE, s, h, e) * extra[(t * K + h / G) * E + e];
        w.push_back(std::exp(z * kScale));
        sum += w.back();
      }
      for (int64_t t = 0; t <= s; ++t)
        for (int64_t e = 0; e < E; ++e)
          total += w[t] / sum * at(in.v_TKE, t, h / G, e) * at(in.do_THE, s, h, e);
    }
  return total;
}

// Columns [begin, begin + N) of Z as (T,K,E).
Tensor part(const Tensor& z_T3n, int64_t begin) {
  return z_T3n.slice(1, begin, begin + N).contiguous().reshape({T, K, E});
}

// Gradients of <o, do> that the tape gives for q and k before RoPE and for v.
std::array<Tensor, 3> tape_gradients(const HeadInputs& in, DType t) {
  const RopeTable r = table(t);
  const Tensor pos = positions();
  const auto batched = [](const Tensor& x) { return x.reshape({1, x.size(0), x.size(1), x.size(2)}); };
  const Var q = leaf(batched(in.q_THE)), k = leaf(batched(in.k_TKE)), v = leaf(batched(in.v_TKE));
  const Var o = attention(rope(q, r.cos, r.sin, pos), rope(k, r.cos, r.sin, pos), v, kScale);
  backward(o, batched(in.do_THE));
  return {q.grad().reshape({T, H, E}), k.grad().reshape({T, K, E}), v.grad().reshape({T, K, E})};
}

// dS(s,t) of head h with w = p or pm, by the formula.
Vec score_gradient(const HeadInputs& in, int64_t h, int64_t s, bool mixed) {
  Vec p, dp;
  double sum = 0, mean = 0;
  for (int64_t t = 0; t <= s; ++t) {
    p.push_back(std::exp(dot_rotated(in, s, t, h) * kScale)), sum += p.back();
    dp.push_back(0);
    for (int64_t e = 0; e < E; ++e) dp.back() += at(in.do_THE, s, h, e) * at(in.v_TKE, t, h / G, e);
  }
  for (double& w : p) w = mixed ? w / sum / 2 + 0.5 / double(s + 1) : w / sum;
  for (size_t t = 0; t < p.size(); ++t) mean += p[t] * dp[t];
  for (size_t t = 0; t < p.size(); ++t) p[t] *= (dp[t] - mean) * kScale;
  return p;
}

// g_2 with pm.
Vec mixed_unrotated(const HeadInputs& in) {
  Vec g(T * N);
  for (int64_t h = 0; h < H; ++h)
    for (int64_t s = 0; s < T; ++s) {
      const Vec ds = score_gradient(in, h, s, true);
      for (int64_t t = 0; t <= s; ++t)
        for (int64_t e = 0; e < E; ++e) g[(t * K + h / G) * E + e] += ds[t] * at(in.q_THE, s, h, e);
    }
  return g;
}

// g_k with pm: summed rotated, turned back.
Vec mixed_rotated(const HeadInputs& in) {
  Tensor sum = Tensor::zeros({T, K, E}, DType::f64);
  for (int64_t h = 0; h < H; ++h)
    for (int64_t s = 0; s < T; ++s) {
      const Vec ds = score_gradient(in, h, s, true);
      for (int64_t t = 0; t <= s; ++t)
        for (int64_t e = 0; e < E; ++e)
          sum.data<double>()[(t * K + h / G) * E + e] += ds[t] * turned(in.q_THE, s, h, e);
    }
  Vec g(T * N);
  for (int64_t i = 0; i < T * N; ++i) g[i] = turned(sum, i / N, i / E % K, i % E, -1);
  return g;
}

// ---- the moments of a whole model, another way: gradients from a probe of the test's own
struct Layer {
  Tensor x_TD, z_T3n, zmix_T3n, q_TA;
};

struct Watcher final : AttentionProbe {
  RopeTable rope;
  std::vector<Layer> layers;
  Var attention(int64_t l, const Var& x, const Var& q, const Var& k, const Var& v, const Var& o) override {
    return record("watch", o.value, {o}, [=, this](const Tensor& d) -> Grads {
      const auto one = [](const Tensor& t) { return t.reshape({t.size(1), t.size(2), t.size(3)}); };
      const HeadGradients g = head_gradients({one(q.value), one(k.value), one(v.value), one(d)}, rope);
      layers[l] = {x.value.reshape({x.size(1), x.size(2)}), g.plain_T3n, g.mixed_T3n,
                   g.q_THE.reshape({g.q_THE.size(0), g.q_THE.size(1) * g.q_THE.size(2)})};
      return {d};
    });
  }
};

// Runs one window with labels drawn as calibration says: u = element t of stream `window`.
std::vector<Layer> watch(Llama& model, const Tensor& tokens_1T, uint64_t seed, uint64_t window) {
  Watcher w;
  w.layers.resize(model.config().num_hidden_layers);
  const int64_t length = tokens_1T.size(1);
  w.rope = make_rope_table(rope_frequencies(model.config()), length, DType::f64, test_device());
  Tensor u = empty({length}, DType::f64), labels = empty({length}, DType::i32);
  {
    const NoGrad off;
    kernels::random_uniform(seed, window, u);
    const Tensor logits = model.logits(model.hidden(tokens_1T)).value;
    kernels::sample(logits.reshape({length, logits.size(2)}), u, SampleRule(), labels);
  }
  model.set_probe(&w);
  const Var loss = model.loss(tokens_1T, labels.reshape({1, length}));
  backward(loss, full(loss.shape(), double(length), DType::f64));
  model.set_probe(nullptr);
  return w.layers;
}

Tensor product(const Tensor& a, const Tensor& b) {  // a^T b
  Tensor c = empty({a.size(1), b.size(1)}, DType::f64);
  kernels::matmul(a.transpose(0, 1), b, c, 0);
  return c;
}

const Tensor& grad_of(Llama& model, const std::string& wanted) {
  const Tensor* found = nullptr;
  model.params("", [&](const std::string& name, Var& p) {
    if (name == wanted) found = &p.grad();
  });
  REQUIRE(found);
  return *found;
}

Tensor of_layer(const Tensor& x_LMN, int64_t l) {
  return x_LMN.slice(0, l, l + 1).reshape({x_LMN.size(1), x_LMN.size(2)});
}

// sum_t |g(t)|^2 x(t) x(t)^T of one layer, g = columns [begin, begin + n), that of |g(t)|^2 x(t), and the sum
// of |g|^2.
double add_weighted(const Layer& l, int64_t begin, int64_t n, Vec& sum, double* mean) {
  const int64_t D = l.x_TD.size(1), Z = l.z_T3n.size(1);
  const Vec x = to_vec(l.x_TD), z = to_vec(l.z_T3n);
  double total = 0;
  for (int64_t t = 0; t < l.x_TD.size(0); ++t) {
    double norm = 0;
    for (int64_t i = begin; i < begin + n; ++i) norm += z[t * Z + i] * z[t * Z + i];
    total += norm;
    for (int64_t i = 0; i < D; ++i) mean[i] += norm * x[t * D + i];
    for (int64_t i = 0; i < D * D; ++i) sum[i] += norm * x[t * D + i / D] * x[t * D + i % D];
  }
  return total;
}

}  // namespace

TEST_CASE("2-norm scores and ranks equal the fixture's, in both forms") {
  const TempFolder tmp;
  const auto model = base(DType::f32);
  const SafetensorsFile f = calibrated(*model, golden_tokens(), {}, tmp / "c");
  check_relative("scores", f.read("scores"), golden().read("scores_f64"), 1e-5);
  CHECK(to_vec(f.read("rank")) == to_vec(golden().read("rank")));
  CHECK(f.entries().at("rank").dtype == "U8");
  CHECK(to_vec(f.read("tokens")) == to_vec(golden_tokens()));
  CHECK(f.entries().size() == 3);
  const SafetensorsFile old = calibrated(*model, golden_tokens(), {}, tmp / "s", ScoreKind::sum);
  check_relative("sum variant", old.read("scores"), golden().read("scores_sum_variant_f64"), 1e-5);
}

TEST_CASE("of equal scores the lower pair ranks higher") {
  const Tensor s = Tensor::from(std::vector<float>{1, 3, 3, 2, 5, 5}, {1, 2, 3});
  CHECK(descending_ranks(s) == std::string("\2\0\1\2\0\1", 6));
}

TEST_CASE("g_q, g_k and g_v are the tape's gradients for q and k before RoPE and for v") {
  for (const auto& [t, tol] : {std::pair{DType::f64, 1e-12}, std::pair{DType::f32, 2e-5}}) {
    const HeadInputs in = random_inputs(t);
    const HeadGradients g = head_gradients(in, table(t));
    const auto [dq, dk, dv] = tape_gradients(in, t);
    check_near("g_q", to_vec(g.q_THE), to_vec(dq), tol);
    check_near("g_k", to_vec(part(g.plain_T3n, 0)), to_vec(dk), tol);
    check_near("g_v", to_vec(part(g.plain_T3n, 2 * N)), to_vec(dv), tol);
    check_near("g_v, mixed", to_vec(part(g.mixed_T3n, 2 * N)), to_vec(dv), tol);
  }
}

TEST_CASE("g_2 is the slope along keys added without rotation") {
  const HeadInputs in = random_inputs(DType::f64, Device::cpu);
  const Vec g = to_vec(part(head_gradients(random_inputs(DType::f64), table(DType::f64)).plain_T3n, N));
  // Central differences: h^2 |f'''| / 6 = 2e-11 |f'''|, and 1e-15 |f| / h = 1e-9 of rounding for |f| of 10.
  const double h = 1e-5;
  for (size_t i = 0; i < g.size(); ++i) {
    Vec extra(g.size());
    extra[i] = h;
    const double up = objective(in, extra);
    extra[i] = -h;
    CHECK(near(g[i], (up - objective(in, extra)) / (2 * h), 1e-7));
  }
}

TEST_CASE("with mixed probabilities, by the formula") {
  const HeadInputs in = random_inputs(DType::f64, Device::cpu);
  const HeadGradients g = head_gradients(random_inputs(DType::f64), table(DType::f64));
  check_near("g_2 mixed", to_vec(part(g.mixed_T3n, N)), mixed_unrotated(in), 1e-12);
  check_near("g_k mixed", to_vec(part(g.mixed_T3n, 0)), mixed_rotated(in), 1e-12);
}

TEST_CASE("what the probe hands out adds up to the gradients of k_proj and v_proj") {
  const auto model = base(DType::f64);
  const std::vector<Layer> layers = watch(*model, golden_tokens().slice(0, 0, 1), 3, 0);
  const int64_t n = model->config().num_key_value_heads * model->config().head_dim;
  for (size_t l = 0; l < layers.size(); ++l) {
    const std::string at = str("model.layers.", l, ".self_attn.");
    const Tensor z = layers[l].z_T3n;
    check_relative("k", product(z.slice(1, 0, n), layers[l].x_TD), grad_of(*model, at + "k_proj.weight"),
                   1e-10);
    check_relative("v", product(z.slice(1, 2 * n, 3 * n), layers[l].x_TD),
                   grad_of(*model, at + "v_proj.weight"), 1e-10);
  }
}

TEST_CASE("moments are the sums over windows that they are said to be") {
  const TempFolder tmp;
  const auto model = base(DType::f64);
  const Tensor tokens = golden_tokens();
  const int64_t windows = tokens.size(0), length = tokens.size(1), D = model->config().hidden_size;
  const int64_t n = model->config().num_key_value_heads * model->config().head_dim, backward_windows = 3;
  const int64_t A = model->config().num_attention_heads * model->config().head_dim;
  CalibrationSettings s;
  s.covariance = true, s.gradient_windows = backward_windows, s.seed = 3;
  const SafetensorsFile f = calibrated(*model, tokens, s, tmp / "c");

  std::vector<std::vector<Layer>> runs;
  for (int64_t w = 0; w < windows; ++w) runs.push_back(watch(*model, tokens.slice(0, w, w + 1), 3, w));
  for (int64_t l = 0; l < model->config().num_hidden_layers; ++l) {
    Vec S(D * D), Ck(D * D), Cv(D * D), Gp(9 * n * n), Gmix(9 * n * n), Gq(A * A), means(3 * D);
    double k_norm = 0, v_norm = 0;
    for (int64_t w = 0; w < windows; ++w) {
      const Layer& run = runs[w][l];
      const Vec xx = to_vec(product(run.x_TD, run.x_TD));
      for (size_t i = 0; i < S.size(); ++i) S[i] += xx[i] / double(windows * length);
      const Vec x = to_vec(run.x_TD);
      for (int64_t i = 0; i < length * D; ++i) means[i % D] += x[i] / double(windows * length);
      if (w >= backward_windows) continue;
      k_norm += add_weighted(run, 0, n, Ck, means.data() + D);
      v_norm += add_weighted(run, 2 * n, n, Cv, means.data() + 2 * D);
      const Tensor z = run.z_T3n.slice(0, 1, length), zm = run.zmix_T3n.slice(0, 1, length);
      const Vec zz = to_vec(product(z, z)), mm = to_vec(product(zm, zm));
      const double rows = double(backward_windows * (length - 1));
      for (size_t i = 0; i < Gp.size(); ++i) Gp[i] += zz[i] / rows, Gmix[i] += mm[i] / rows;
      const Tensor q = run.q_TA.slice(0, 1, length);
      const Vec qq = to_vec(product(q, q));
      for (size_t i = 0; i < Gq.size(); ++i) Gq[i] += qq[i] / rows;
    }
    for (double& c : Ck) c /= k_norm;
    for (double& c : Cv) c /= v_norm;
    for (int64_t i = 0; i < D; ++i) means[D + i] /= k_norm, means[2 * D + i] /= v_norm;
    for (const auto& [name, want] : {std::pair{"S", &S},
                                     {"Ck", &Ck},
                                     {"Cv", &Cv},
                                     {"Gp", &Gp},
                                     {"Gmix", &Gmix},
                                     {"Gq", &Gq},
                                     {"means", &means}}) {
      const Tensor got = of_layer(f.read(name), l);
      check_relative(name, got, Tensor::from(*want, got.shape()), 1e-6);
    }
  }
}

TEST_CASE("calibrating leaves the model as it was") {
  const auto model = base(DType::f32);
  const TempFolder tmp;
  CalibrationSettings s;
  s.covariance = true;
  calibrated(*model, golden_tokens().slice(0, 0, 2), s, tmp / "c");
  model->params("", [](const std::string&, Var& p) {
    CHECK(p.node);
    CHECK(!p.grad().defined());
  });
}

TEST_CASE("the same bits again, and after an interruption") {
  const TempFolder tmp;
  const auto model = base(DType::f32);
  CalibrationSettings s;
  s.covariance = true, s.gradient_windows = 5;
  calibrated(*model, golden_tokens(), s, tmp / "whole");
  calibrated(*model, golden_tokens(), s, tmp / "again");
  CHECK(read_file(tmp / "whole") == read_file(tmp / "again"));
  Calibration first(*model, golden_tokens(), s);
  for (int i = 0; i < 3; ++i) first.add_window();
  first.save_partial(tmp / "partial");
  const auto reloaded = base(DType::f32);
  Calibration second(*reloaded, golden_tokens(), s);
  second.resume(tmp / "partial");
  CHECK(second.done() == 3);
  while (second.done() < second.windows()) second.add_window();
  second.write(tmp / "resumed", ScoreKind::product);
  CHECK(read_file(tmp / "whole") == read_file(tmp / "resumed"));
  s.seed = 1;
  calibrated(*model, golden_tokens(), s, tmp / "other");
  CHECK(read_file(tmp / "whole") != read_file(tmp / "other"));
}

TEST_CASE("a partial file of something else is refused") {
  const TempFolder tmp;
  const auto model = base(DType::f32);
  const Tensor tokens = golden_tokens();
  Calibration(*model, tokens, {}).save_partial(tmp / "p");
  Tensor changed = tokens.clone();
  changed.data<int32_t>()[5] ^= 1;
  check_rejects([&] { Calibration(*model, changed, {}).resume(tmp / "p"); }, "p was made with other data");
  CalibrationSettings s;
  s.covariance = true;
  check_rejects([&] { Calibration(*model, tokens, s).resume(tmp / "p"); }, "p was made with other settings");
  model->params("", [](const std::string&, Var& p) { set_first_row(p.value, 7); });
  check_rejects([&] { Calibration(*model, tokens, {}).resume(tmp / "p"); }, "p was made with other weights");
  check_rejects([&] { Calibration(*model, tokens, {}).resume(tmp / "none"); }, "none");
  write_safetensors(tmp / "q", {{"done", Tensor::zeros({}, DType::i32)}});
  check_rejects([&] { Calibration(*model, tokens, {}).resume(tmp / "q"); }, "remove it to start anew");
}

TEST_CASE("what cannot be calibrated is refused in words") {
  const TempFolder tmp;
  const auto model = base(DType::f32);
  CalibrationSettings s;
  s.covariance = true;
  check_rejects([&] { Calibration(*model, golden_tokens().slice(1, 0, 1), s); }, "windows of one token");
  check_rejects([&] { Calibration(*model, Tensor::zeros({0, 4}, DType::i32), {}); }, "at least one window");
  s.gradient_windows = 0;
  check_rejects([&] { Calibration(*model, golden_tokens(), s); }, "at least one window for gradients, got 0");
  check_rejects([&] { Calibration(*model, golden_tokens(), {}).write(tmp / "c", ScoreKind::sum); },
                "only 0 of 8 windows are done");
  model->params("", [](const std::string& name, Var& p) {
    if (name.ends_with("layers.1.self_attn.k_proj.weight")) set_first_row(p.value, NAN);
  });
  check_rejects([&] { calibrated(*model, golden_tokens(), {}, tmp / "c"); },
                "a 2-norm score of layer 1 is nan");
  CHECK(tmp.entries() == 0);
}
