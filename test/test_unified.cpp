// The unified conversion on the tiny base model, measured on the fixture's calibration tokens: what it says
// about the loss against dense matrices, what it makes against the model itself, and how it deals out values.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <algorithm>
#include "convert/best.h"
#include "convert/calibrate.h"
#include "convert/low_rank.h"
#include "convert/unified.h"
#include "data/safetensors.h"
#include "tensor/linalg.h"
#include "test/model_case.h"
#include "test/temp_folder.h"

using namespace llatte;
using namespace llatte::test;
namespace la = llatte::linalg;

static const std::string kTiny = "test/fixtures/tiny-mla/";
// Two layers of 2 kv heads of width 16, model width 64.
constexpr int64_t K = 2, E = 16, n = K * E, D = 64;

struct Calibrated {
  explicit Calibrated(const std::string& model = kTiny + "base") : base(open_checkpoint(model)) {
    const Tensor tokens =
        SafetensorsFile::open(kTiny + "scores/golden.safetensors").read("calibration_tokens", DType::i32);
    const auto loaded = load_model(base, DType::f32);
    CalibrationSettings settings;
    settings.covariance = true, settings.gradient_windows = tokens.size(0);
    Calibration run(*loaded, tokens, settings);
    while (run.done() < run.windows()) run.add_window();
    run.write(file(), ScoreKind::product);
  }
  std::string file() const { return (folder / "calibration.safetensors").string(); }
  CalibrationFile statistics() const { return {file(), base.config}; }
  UnifiedLayer layer(int64_t l) const { return {base, statistics(), l}; }
  Tensor weight(int64_t l, const char* name) const {
    return base.read(str("model.layers.", l, ".self_attn.", name, ".weight"), DType::f64);
  }
  TempFolder folder;
  Checkpoint base;
};

static LayerWeights weights(const UnifiedLayer& layer, const Planes& planes, int64_t R,
                            bool balanced = true) {
  LayerError error;
  return layer.weights(planes, R, balanced, error);
}

// The lift of the planes as a dense matrix [n,2P]: blocks [[Re A, -Im A], [Im A, Re A]].
static Tensor lift_of(const LayerWeights& w, const std::vector<int32_t>& pairs) {
  const auto P = static_cast<int64_t>(pairs.size());
  Tensor m = Tensor::zeros({n, 2 * P}, DType::f64);
  for (int64_t p = 0; p < P; ++p)
    for (int64_t k = 0; k < K; ++k) {
      const double re = w.at("A_k_re").data<double>()[k * P + p],
                   im = w.at("A_k_im").data<double>()[k * P + p];
      const int64_t top = k * E + pairs[static_cast<size_t>(p)], bottom = top + E / 2;
      m.data<double>()[top * 2 * P + p] = m.data<double>()[bottom * 2 * P + P + p] = re;
      m.data<double>()[top * 2 * P + P + p] = -im, m.data<double>()[bottom * 2 * P + p] = im;
    }
  return m;
}

// What the layer makes of x, as dense matrices on it.
struct Dense {
  Tensor rotated, unrotated, v;
};
static Dense dense(const LayerWeights& w, const Planes& planes) {
  const Tensor& down = w.at("W_down_k.weight");
  return {planes.count() == 0 ? Tensor::zeros({n, D}, DType::f64)
                              : la::product(lift_of(w, planes.pair), w.at("W_k_r.weight")),
          la::product(w.at("W_up_k.weight"), down), la::product(w.at("W_up_v.weight"), down)};
}

static Tensor difference(const Tensor& a, const Tensor& b) {
  Tensor y = a.clone();
  for (int64_t i = 0; i < y.numel(); ++i) y.data<double>()[i] -= b.data<double>()[i];
  return y;
}

// 1/2 tr(Y^T G Y C).
static double half_form(const Tensor& g, const Tensor& y, const Tensor& c) {
  const Tensor gy = la::product(g, y), yc = la::product(y, c);
  double sum = 0;
  for (int64_t i = 0; i < y.numel(); ++i) sum += gy.data<double>()[i] * yc.data<double>()[i];
  return sum / 2;
}

// Eigenvalues of T and C are raised to 1e-5 and 1e-9 of the largest, and the latent's up goes through T^-1:
// rounding of 1e-16 becomes 1e-9 at worst.
TEST_CASE("all planes and a latent for all of v are the layer itself") {
  const Calibrated c;
  for (int64_t l = 0; l < 2; ++l) {
    const UnifiedLayer layer = c.layer(l);
    REQUIRE(layer.most_planes() == n / 2);
    const Planes all = layer.planes(n / 2);
    CHECK(std::is_sorted(all.pair.begin(), all.pair.end()));
    const Dense d = dense(weights(layer, all, n), all);
    check_near("k", to_vec(d.rotated), to_vec(c.weight(l, "k_proj")), 1e-9);
    check_near("k without rotation", to_vec(d.unrotated), Vec(static_cast<size_t>(n * D)), 1e-9);
    check_near("v", to_vec(d.v), to_vec(c.weight(l, "v_proj")), 1e-9);
    // of the sum over all eigenvalues
    CHECK(layer.losses(n / 2)[n] < 1e-9 * layer.losses(n / 2)[0]);
  }
}

TEST_CASE("the expected loss is the second-order sum, written out with dense matrices") {
  const Calibrated c;
  const int64_t most = std::min(2 * n, D);
  for (int64_t l = 0; l < 2; ++l) {
    const UnifiedLayer layer = c.layer(l);
    const Tensor g = c.statistics().gradients(l), C = c.statistics().weighted_covariance(l);
    const auto block = [&](int64_t row, int64_t column) {
      return g.slice(0, row * n, (row + 1) * n).slice(1, column * n, (column + 1) * n).clone();
    };
    const Tensor keys = g.slice(0, 0, 2 * n).slice(1, 0, 2 * n).clone();
    const Tensor latent = block_diagonal(block(1, 1), block(2, 2));
    for (const int64_t P : {0, 1, 3, 5, 16}) {
      const Planes planes = layer.planes(P);
      const std::vector<double> losses = layer.losses(P);
      REQUIRE(static_cast<int64_t>(losses.size()) == most + 1);
      const Dense whole = dense(weights(layer, planes, most), planes);
      const double derope =
          half_form(keys, stacked(difference(whole.rotated, c.weight(l, "k_proj")), whole.unrotated), C);
      for (const int64_t R : {int64_t{1}, int64_t{7}, int64_t{20}, most}) {
        CAPTURE(P);
        CAPTURE(R);
        const Dense d = dense(weights(layer, planes, R), planes);
        const double tail =
            half_form(latent, difference(stacked(d.unrotated, d.v), stacked(whole.unrotated, whole.v)), C);
        // Floors of T (1e-5 of an eigenvalue) move the factors' optimum by as much.
        CHECK(std::abs(losses[static_cast<size_t>(R)] - derope - tail) <= 1e-4 * losses[0]);
      }
    }
  }
}

// Planes beyond the first few may gain nothing, for the fold's ridge holds back what makes up for them.
TEST_CASE("wider latents never cost more, and planes take the loss down") {
  const Calibrated c;
  const UnifiedLayer layer = c.layer(1);
  for (int64_t P = 0; P <= n / 2; ++P) {
    const std::vector<double> losses = layer.losses(P);
    CHECK(std::is_sorted(losses.rbegin(), losses.rend()));
  }
  const double none = layer.losses(0).back(), half = layer.losses(n / 4).back();
  CHECK(half < none);
  CHECK(layer.losses(n / 2).back() < half);
}

TEST_CASE("balanced: the same maps, and nothing is longer than 1") {
  const Calibrated c;
  const UnifiedLayer layer = c.layer(0);
  const Planes planes = layer.planes(11);
  const LayerWeights w = weights(layer, planes, 9), unbalanced = weights(layer, planes, 9, false);
  const Dense a = dense(w, planes), b = dense(unbalanced, planes);
  check_near("rotated", to_vec(a.rotated), to_vec(b.rotated), 1e-10);
  check_near("unrotated", to_vec(a.unrotated), to_vec(b.unrotated), 1e-10);
  check_near("v", to_vec(a.v), to_vec(b.v), 1e-10);
  const auto unit = [](int64_t size) {
    return to_vec(la::add_to_diagonal(Tensor::zeros({size, size}, DType::f64), 1));
  };
  const Tensor lift = lift_of(w, planes.pair), up = stacked(w.at("W_up_k.weight"), w.at("W_up_v.weight"));
  check_near("lift^T lift", to_vec(la::product(lift.transpose(0, 1), lift)), unit(22), 1e-12);
  check_near("up^T up", to_vec(la::product(up.transpose(0, 1), up)), unit(9), 1e-12);
}

static double cost_of(const std::vector<LossTable>& losses, const std::vector<UnifiedSize>& sizes) {
  double sum = 0;
  for (size_t l = 0; l < sizes.size(); ++l)
    sum += losses[l].at(sizes[l].planes)[static_cast<size_t>(sizes[l].rank)];
  return sum;
}

static int64_t cached(const std::vector<UnifiedSize>& sizes) {
  int64_t sum = 0;
  for (const UnifiedSize& s : sizes) sum += s.cached();
  return sum;
}

// Every choice of sizes for the layers from l on that caches `left` values at most.
static double best_of_all(const std::vector<LossTable>& losses, size_t l, int64_t left, int64_t least) {
  if (l == losses.size()) return 0;
  double best = HUGE_VAL;
  for (const auto& [P, by_rank] : losses[l])
    for (size_t R = 1; R < by_rank.size(); ++R) {
      if (2 * P + static_cast<int64_t>(R) < least) continue;
      const int64_t rest = left - 2 * P - static_cast<int64_t>(R);
      if (rest >= 0) best = std::min(best, by_rank[R] + best_of_all(losses, l + 1, rest, least));
    }
  return best;
}

TEST_CASE("values are dealt out as the best of all choices deals them out") {
  std::mt19937 rng(3);
  std::uniform_real_distribution<double> size(0.1, 3);
  for (int round = 0; round < 5; ++round) {
    std::vector<LossTable> one(3), several(3);
    for (size_t l = 0; l < 3; ++l) {
      const double a = size(rng), b = size(rng);
      for (int64_t P = 0; P < 4; ++P) {
        std::vector<double> by_rank;
        for (int64_t R = 0; R < 9; ++R)
          by_rank.push_back(a / static_cast<double>(1 + P) + b / static_cast<double>(1 + R));
        several[l][P] = by_rank;
        if (P == 2) one[l][P] = by_rank;
      }
    }
    for (int64_t total = 15; total <= 40; ++total) {
      const auto sizes = allocate_unified(one, total);
      CHECK(cached(sizes) <= total);
      CHECK(near(cost_of(one, sizes), best_of_all(one, 0, total, 1), 1e-12));
    }
    // A choice that some mu makes is the best for what it caches; in between, ranks fill what is left.
    int hits = 0;
    for (const int64_t least : {1, 5})
      for (int64_t total = 3 * least; total <= 40; ++total) {
        const auto sizes = allocate_unified(several, total, least);
        CHECK(cached(sizes) <= total);
        for (const UnifiedSize& s : sizes) CHECK(s.cached() >= least);
        const double cost = cost_of(several, sizes), best = best_of_all(several, 0, total, least);
        CHECK(cost <= 1.15 * best);
        hits += near(cost, best, 1e-12);
      }
    CHECK(hits > 20);
  }
}

static std::vector<std::string> words(const Calibrated& c, int64_t values) {
  return {"HLA.rope=unified", str("HLA.cache_values=", values), "HLA.metric=fisher",
          "HLA.calibration=" + c.file()};
}

TEST_CASE("the layers of a model keep to the budget, and a larger one is worth more") {
  const Calibrated c;
  double before = HUGE_VAL;
  for (const int64_t values : {1, 8, 24, 60}) {
    const ConversionPlan plan = make_plan(c.base, parse_settings(words(c, values)));
    REQUIRE(plan.config.hla->layers.size() == 2);
    int64_t sum = 0;
    for (const HlaLayer& l : plan.config.hla->layers) {
      CHECK(l.rank_k >= 1);
      CHECK(l.rank_k == l.rank_v);
      CHECK(l.k.block == std::vector<int32_t>(l.k.pair.size()));
      CHECK(2 * l.k.count() + l.rank_k >= values / 2);
      sum += 2 * l.k.count() + l.rank_k;
    }
    CHECK(sum <= 2 * values);
    CHECK(sum > 2 * values - 2);
    const double loss = predicted_loss(c.base, plan);
    CHECK(loss < before);
    before = loss;
  }
}

// In f64 what is left is rounding behind T^-1, see above; in f32 1e-7 a sum, through all layers.
TEST_CASE("at full size the model is the one it was made from, and refit_o leaves it so") {
  for (const char* model : {"test/fixtures/tiny-mla/base", "test/fixtures/tiny-llama/qwen2"}) {
    CAPTURE(model);
    const Calibrated c(model);
    ConversionPlan plan = make_plan(c.base, parse_settings(words(c, 8)));
    const int64_t rows = c.weight(0, "k_proj").size(0);
    for (int64_t l = 0; l < c.base.config.num_hidden_layers; ++l) {
      const UnifiedLayer layer = c.layer(l);
      plan.config.hla->layers[static_cast<size_t>(l)] = {layer.planes(rows / 2), {}, 0, rows, rows};
    }
    const Tensor tokens = SafetensorsFile::open(kTiny + "base/golden.safetensors").read("tokens", DType::i32);
    CHECK(difference(logits(convert_attention(c.base, plan), tokens, DType::f64),
                     logits(c.base, tokens, DType::f64)) < 1e-7);
    plan.settings.refit_o = true;
    CHECK(difference(logits(convert_attention(c.base, plan), tokens, DType::f32),
                     logits(c.base, tokens, DType::f32)) < 1e-4);
  }
}

TEST_CASE("the best plan for a cache is the one that is expected to cost least") {
  const Calibrated c;
  const BestPlan mla = best_plan(c.base, "mla", 18, c.file()), hla = best_plan(c.base, "hla", 18, c.file()),
                 any = best_plan(c.base, "any", 18, c.file());
  CHECK(mla.plan.config.mla);
  REQUIRE(hla.plan.config.hla);
  CHECK(hla.plan.config.hla->rope == HlaRope::unified);
  CHECK(hla.plan.settings.refit_o);
  CHECK(near(any.predicted_loss, std::min(mla.predicted_loss, hla.predicted_loss), 1e-12));
  CHECK(hla.predicted_loss == predicted_loss(c.base, hla.plan));
  // MLA needs three values for every kv head.
  CHECK(best_plan(c.base, "any", 5, c.file()).plan.config.hla);
  check_rejects([&] { best_plan(c.base, "mla", 5, c.file()); }, "this model takes 6 to 63");
}

TEST_CASE("biases go with the rows they belong to") {
  const Calibrated c("test/fixtures/tiny-llama/qwen2");
  const UnifiedLayer layer = c.layer(0);
  const Planes all = layer.planes(layer.most_planes());
  const int64_t rows = c.weight(0, "k_proj").size(0);
  const LayerWeights w = weights(layer, all, rows);
  // All planes: lift of their bias is k's bias, and nothing is left for the unrotated keys.
  const auto P = all.count();
  Vec lifted(static_cast<size_t>(rows));
  const int64_t heads = c.base.config.num_key_value_heads, width = c.base.config.head_dim;
  const auto bias = to_vec(w.at("W_k_r.bias")), re = to_vec(w.at("A_k_re")), im = to_vec(w.at("A_k_im"));
  for (int64_t p = 0; p < P; ++p)
    for (int64_t k = 0; k < heads; ++k) {
      const auto at = static_cast<size_t>(k * P + p), x = static_cast<size_t>(p),
                 y = static_cast<size_t>(P + p);
      const auto top = static_cast<size_t>(k * width + all.pair[x]),
                 bottom = top + static_cast<size_t>(width / 2);
      lifted[top] += re[at] * bias[x] - im[at] * bias[y],
          lifted[bottom] += im[at] * bias[x] + re[at] * bias[y];
    }
  const auto name = [](const char* part) { return std::string("model.layers.0.self_attn.") + part; };
  check_near("k", lifted, to_vec(c.base.read(name("k_proj.bias"), DType::f64)), 1e-9);
  check_near("k without rotation", to_vec(w.at("W_up_k.bias")), Vec(static_cast<size_t>(rows)), 1e-9);
  CHECK(to_vec(w.at("W_up_v.bias")) == to_vec(c.base.read(name("v_proj.bias"), DType::f64)));
}

TEST_CASE("what cannot be done is refused in words") {
  const Calibrated c;
  const auto planned = [&](int64_t values, std::vector<std::string> more) {
    std::vector<std::string> all = words(c, values);
    all.insert(all.end(), more.begin(), more.end());
    make_plan(c.base, parse_settings(all));
  };
  check_rejects([&] { planned(0, {}); }, "HLA.cache_values is 0");
  check_rejects([&] { planned(64, {}); }, "HLA.cache_values is 64, this model takes 1 to 63");
  check_rejects([&] { planned(8, {"HLA.metric=white"}); }, "it needs HLA.metric=fisher, not white");
  check_rejects([&] { planned(8, {"HLA.rank_v=3"}); }, "HLA.rope unified chooses its own ranks");
  check_rejects([&] { planned(8, {"HLA.calibration=" + kTiny + "scores/qk_tensor.safetensors"}); },
                "make the file with calibrate --covariance");
  check_rejects(
      [&] {
        weights(c.layer(0), {{1, 1, 1}, {0, 0, 0}}, 4);
      },
      "pair 1 is to have 3 planes, there are 2");
  check_rejects([] { allocate_unified(std::vector<LossTable>(3), 2); }, "2 cached values for 3 layers");
  check_rejects([] { allocate_unified(std::vector<LossTable>(3), 8, 3); }, "have at least 3 a layer");
}
