// Conversions to HLA against the fixtures of test/fixtures/tiny-hla (an independent program in f64): singular
// values, the products of the factors, logits of the modes original, aligned and latent_literal; full rank;
// plans; and every setting that must be refused.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>
#include "convert/calibrate.h"
#include "convert/hla.h"
#include "convert/planes.h"
#include "convert/self_test.h"
#include "data/json.h"
#include "data/safetensors.h"
#include "tensor/linalg.h"
#include "test/model_case.h"
#include "test/temp_folder.h"

using namespace llatte;
using namespace llatte::test;
namespace la = llatte::linalg;

static const std::string kBase = "test/fixtures/tiny-mla/base";

struct Fixture {
  explicit Fixture(const std::string& name)
      : json(read_json("test/fixtures/tiny-hla/" + name + ".json")),
        file(SafetensorsFile::open("test/fixtures/tiny-hla/" + name + ".safetensors")) {
    for (const char* part : {"q", "k", "v"})
      ranks.push_back(str("HLA.rank_", part, '=', json.at("rank").at(part).get<int64_t>()));
  }
  std::vector<std::string> with(std::vector<std::string> words) const {
    words.insert(words.end(), ranks.begin(), ranks.end());
    return words;
  }
  Tensor read(const std::string& name) const { return file.read(name, DType::f64); }
  nlohmann::json json;
  SafetensorsFile file;
  std::vector<std::string> ranks;
  Checkpoint base = open_checkpoint(kBase);
};

static ConversionPlan plan_of(const Checkpoint& base, const std::vector<std::string>& words) {
  return make_plan(base, parse_settings(words));
}

static std::string at(int64_t l, const std::string& name) { return attention_name(l, name); }

// The real matrix that planes lift: rows (h E + j, h E + j + F) of sum over planes of A[h,p] b_p, all heads
// in one block.
static Tensor lifted_planes(const Checkpoint& c, int64_t l, const Planes& planes, const std::string& down,
                            const std::string& lift, int64_t F) {
  const Tensor b = c.read(at(l, down), DType::f64), re = c.read(at(l, lift + "_re"), DType::f64),
               im = c.read(at(l, lift + "_im"), DType::f64);
  const int64_t heads = re.size(0), P = planes.count(), D = b.size(1);
  Tensor w = Tensor::zeros({heads * 2 * F, D}, DType::f64);
  for (int64_t h = 0; h < heads; ++h)
    for (int64_t p = 0; p < P; ++p)
      for (int64_t d = 0; d < D; ++d) {
        const double a = re.data<double>()[h * P + p], i = im.data<double>()[h * P + p];
        const double x = b.data<double>()[p * D + d], y = b.data<double>()[(P + p) * D + d];
        const int64_t row = h * 2 * F + planes.pair[static_cast<size_t>(p)];
        w.data<double>()[row * D + d] += a * x - i * y;
        w.data<double>()[(row + F) * D + d] += a * y + i * x;
      }
  return w;
}

// Both sides are f64; eigenvalues are squares, so singular values have twice the relative error of f64's
// 1e-16 times the ratio to the largest: 1e-7 covers a ratio of 1e5.
TEST_CASE("singular values of every pair") {
  for (const char* name : {"rank_half", "rank_low"}) {
    const Fixture f(name);
    for (int64_t l = 0; l < 2; ++l)
      for (const auto& [part, heads] : {std::pair{"k", 2}, {"q", 4}}) {
        const Tensor w = f.base.read(at(l, str(part, "_proj.weight")), DType::f64);
        const Vec want = to_vec(f.read(str("aligned.sv.", l, '.', part)));
        const auto pairs = factor_pairs(w, 8, heads, {});
        REQUIRE(pairs.size() == 8);
        for (size_t j = 0; j < 8; ++j)
          for (size_t m = 0; m < static_cast<size_t>(heads); ++m)
            CHECK(near(std::sqrt(pairs[j].eigenvalues[m]), want[j * static_cast<size_t>(heads) + m], 1e-7));
      }
  }
}

TEST_CASE("ranks by layer are those of the fixtures, and so is the matrix that planes lift to") {
  for (const char* name : {"rank_half", "rank_low"}) {
    CAPTURE(name);
    const Fixture f(name);
    const ConversionPlan plan = plan_of(f.base, f.with({"HLA.rope=aligned"}));
    const Checkpoint hla = convert_attention(f.base, plan);
    for (const char* part : {"q", "k"})
      for (int64_t l = 0; l < 2; ++l) {
        const HlaLayer& layer = plan.config.hla->layers[static_cast<size_t>(l)];
        const Planes& planes = part[0] == 'q' ? layer.q : layer.k;
        std::vector<int64_t> counts(8, 0);
        for (const int32_t j : planes.pair) ++counts[static_cast<size_t>(j)];
        CHECK(counts ==
              f.json.at("aligned_ranks_m_j").at(part)[static_cast<size_t>(l)].get<std::vector<int64_t>>());
        if (!f.file.has(str("aligned.W.", l, '.', part))) continue;
        const Tensor w = lifted_planes(hla, l, planes, part[0] == 'q' ? "W_down_q.weight" : "W_k_r.weight",
                                       str("A_", part), 8);
        // The gap at the cut is 3e-3 of the largest singular value: rounding of 1e-16 grows to 1e-13.
        check_near(part, to_vec(w), to_vec(f.read(str("aligned.W.", l, '.', part))), 1e-11);
      }
  }
}

TEST_CASE("original: up is orthonormal, and the products are the fixtures'") {
  for (const char* name : {"rank_half", "rank_low"}) {
    CAPTURE(name);
    const Fixture f(name);
    const Checkpoint hla = convert_attention(f.base, plan_of(f.base, f.with({"HLA.rope=original"})));
    for (int64_t l = 0; l < 2; ++l)
      for (const char* part : {"q", "k", "v"}) {
        const Tensor up = hla.read(at(l, str("W_up_", part, ".weight")), DType::f64);
        const Tensor down = hla.read(at(l, str("W_down_", part, ".weight")), DType::f64);
        const std::string name_in = str(l, '.', part);
        check_near(part, to_vec(la::product(up, down)),
                   to_vec(la::product(f.read(name_in + ".up"), f.read(name_in + ".down"))), 1e-11);
        const Tensor one = la::product(up.transpose(0, 1), up);
        check_near("orthonormal", to_vec(one),
                   to_vec(la::add_to_diagonal(Tensor::zeros(one.shape(), DType::f64), 1)), 1e-12);
      }
  }
}

// f64 on both sides: rounding over two layers of width 64, 1e-10. In f32, 1e-7 per sum: 1e-4.
TEST_CASE("logits of original and aligned") {
  for (const char* name : {"rank_half", "rank_low"})
    for (const char* mode : {"original", "aligned"}) {
      CAPTURE(name);
      CAPTURE(mode);
      const Fixture f(name);
      const Checkpoint hla = convert_attention(f.base, plan_of(f.base, f.with({str("HLA.rope=", mode)})));
      const Tensor tokens = f.file.read("tokens", DType::i32);
      const Vec want = to_vec(f.read(str("logits_", mode)));
      CHECK(difference(logits(hla, tokens), want) < 1e-10);
      CHECK(difference(logits(hla, tokens, DType::f32), want) < 1e-4);
    }
}

// The fixtures' planes B . c, by another basis of the latent: up := up B, down := B^T down.
static Factors turned(const Tensor& up, const Tensor& down, const Tensor& B) {
  Factors f;
  f.up_NR = la::product(up, B), f.down_RD = la::product(B.transpose(0, 1), down);
  return f;
}

static std::vector<int32_t> modulo(int64_t planes, int64_t n) {
  std::vector<int32_t> pair;
  for (int64_t i = 0; i < planes; ++i) pair.push_back(static_cast<int32_t>(i % n));
  return pair;
}

static std::vector<int32_t> ascending(std::vector<int32_t> v) {
  std::sort(v.begin(), v.end());
  return v;
}

TEST_CASE("latent_literal: the fixtures' planes and frequencies, given") {
  for (const char* name : {"rank_half", "rank_low"}) {
    const Fixture f(name);
    const Tensor tokens = f.file.read("tokens", DType::i32);
    for (const auto& [frequencies, n] : {std::pair{"E4", 4}, {"E2", 8}})
      for (const char* basis : {"I", "B"}) {
        CAPTURE(name);
        CAPTURE(frequencies);
        CAPTURE(basis);
        LlamaConfig c = f.base.config;
        const int64_t R_k = f.json.at("rank").at("k"), R_q = f.json.at("rank").at("q"),
                      R_v = f.json.at("rank").at("v");
        const auto k_pair = modulo(R_k / 2, n), q_pair = modulo(R_q / 2, n);
        HlaLayer layer;
        layer.k = {ascending(k_pair), std::vector<int32_t>(k_pair.size(), 0)};
        layer.q = {ascending(q_pair), std::vector<int32_t>(q_pair.size(), 0)};
        layer.rank_q = R_q, layer.rank_k = R_k, layer.rank_v = R_v;
        c.hla = HlaConfig{HlaRope::latent_literal, 8, 0, {layer, layer}};
        const Checkpoint hla = with_attention(f.base, c, [&](int64_t l) {
          LayerWeights w;
          for (const auto& [part, pair] : {std::pair{"k", k_pair}, {"q", q_pair}}) {
            const std::string in = str(l, '.', part);
            const int64_t R = f.read(in + ".down").size(0);
            const Tensor B = basis[0] == 'B' ? f.read(in + ".B")
                                             : la::add_to_diagonal(Tensor::zeros({R, R}, DType::f64), 1);
            const Factors h = half_split(turned(f.read(in + ".up"), f.read(in + ".down"), B), pair);
            put(w, str("W_up_", part, ".weight"), h.up_NR),
                put(w, str("W_down_", part, ".weight"), h.down_RD);
          }
          put(w, "W_up_v.weight", f.read(str(l, ".v.up"))),
              put(w, "W_down_v.weight", f.read(str(l, ".v.down")));
          return w;
        });
        CHECK(difference(logits(hla, tokens),
                         to_vec(f.read(str("logits_latent.", frequencies, '.', basis)))) < 1e-10);
      }
  }
}

TEST_CASE("latent_literal by settings is B = I with the first E/4 frequencies, up to the SVD's signs") {
  // The sign of a singular vector turns a plane's coordinate around: rotations do not commute with that, so
  // only what does not depend on signs is compared: products and frequencies.
  const Fixture f("rank_half");
  const ConversionPlan plan = plan_of(f.base, f.with({"HLA.rope=latent_literal", "HLA.frequencies=first"}));
  const HlaLayer& layer = plan.config.hla->layers[0];
  CHECK(layer.k.pair == ascending(modulo(8, 4)));
  CHECK(layer.q.pair == ascending(modulo(16, 4)));
  const Checkpoint hla = convert_attention(f.base, plan);
  for (const char* part : {"q", "k"})
    check_near(part,
               to_vec(la::product(hla.read(at(1, str("W_up_", part, ".weight")), DType::f64),
                                  hla.read(at(1, str("W_down_", part, ".weight")), DType::f64))),
               to_vec(la::product(f.read(str("1.", part, ".up")), f.read(str("1.", part, ".down")))), 1e-11);
  const Vec got = logits(hla, f.file.read("tokens", DType::i32));
  CHECK(difference(got, to_vec(f.read("logits_original"))) > 0.1);
}

TEST_CASE("latent: planes dealt out to the heads, lifts one-hot") {
  const Checkpoint base = open_checkpoint(kBase);
  for (const auto& [word, step] : {std::pair{"even", 2}, {"first", 1}}) {
    CAPTURE(word);
    const ConversionPlan plan = plan_of(base, {"HLA.rope=latent", str("HLA.frequencies=", word)});
    const HlaConfig& h = *plan.config.hla;
    CHECK(h.head_block == 1);
    REQUIRE(h.layers[0].k.count() == 8);
    REQUIRE(h.layers[0].q.count() == 16);
    for (int32_t i = 0; i < 8; ++i) {
      CHECK(h.layers[0].k.pair[static_cast<size_t>(i)] == i / 2 * step);
      CHECK(h.layers[0].k.block[static_cast<size_t>(i)] == i % 2);
    }
    const Checkpoint hla = convert_attention(base, plan);
    const Vec k = to_vec(hla.read(at(0, "A_k_re"), DType::f64)),
              q = to_vec(hla.read(at(0, "A_q_re"), DType::f64));
    CHECK(k == Vec(8, 1.0));
    double sum = 0;
    for (size_t p = 0; p < 16; ++p) {
      sum += q[p] + q[16 + p];
      CHECK(q[p] * q[16 + p] == 0);
    }
    CHECK(sum == 16);
    CHECK(to_vec(hla.read(at(0, "A_q_im"), DType::f64)) == Vec(32, 0.0));
    // Plane i of head kappa is rows 2 (4 kappa + i) and the next of S V^T.
    const la::Svd s = la::svd(base.read(at(0, "k_proj.weight"), DType::f64));
    const Tensor down = hla.read(at(0, "W_k_r.weight"), DType::f64);
    for (int64_t p = 0; p < 8; ++p)
      for (int64_t half = 0; half < 2; ++half) {
        const int64_t from = 2 * (4 * (p % 2) + p / 2) + half;
        double dot = 0;
        for (int64_t d = 0; d < 64; ++d)
          dot += down.data<double>()[(8 * half + p) * 64 + d] * s.vt.data<double>()[from * 64 + d];
        CHECK(near(std::abs(dot), s.s.data<double>()[from], 1e-12));  // balance may turn both signs
      }
  }
}

// ---- activation-aware -------------------------------------------------------------------------------------

struct Calibrated {
  explicit Calibrated(const std::string& model = kBase) : base(open_checkpoint(model)) {
    const auto m = load_model(base, DType::f32);
    std::vector<int32_t> ids;
    for (int32_t i = 0; i < 8 * 24; ++i)
      ids.push_back((i * i + 7 * i) % static_cast<int32_t>(base.config.vocab_size));
    CalibrationSettings s;
    s.covariance = true;
    Calibration c(*m, Tensor::from(ids, {8, 24}), s);
    while (c.done() < c.windows()) c.add_window();
    c.write(file(), ScoreKind::product);
    tokens = Tensor::from(ids, {8, 24}).slice(0, 0, 2);
  }
  std::filesystem::path file() const { return folder / "cal"; }
  ConversionPlan plan(std::vector<std::string> words) const {
    words.push_back("HLA.calibration=" + file().string());
    return plan_of(base, words);
  }
  TempFolder folder;
  Checkpoint base;
  Tensor tokens;
};

static const char* const kMetrics[] = {"plain", "white", "omega", "output", "fisher"};

// f32 logits: 1e-4 of the largest, as for every full-rank conversion.
TEST_CASE("at full rank original and aligned are the model itself, under every metric") {
  for (const char* model : {"test/fixtures/tiny-mla/base", "test/fixtures/tiny-llama/qwen2"}) {
    const Calibrated c(model);
    const Vec want = logits(c.base, c.tokens, DType::f32);
    for (const char* metric : kMetrics)
      for (const char* block : {"0", "1"}) {
        CAPTURE(model);
        CAPTURE(metric);
        CAPTURE(block);
        const ConversionPlan plan =
            c.plan({"HLA.rope=aligned", str("HLA.metric=", metric), str("HLA.head_block=", block)});
        CHECK(difference(logits(convert_attention(c.base, plan), c.tokens, DType::f32), want) > 1e-3);
        for (const HlaRope rope : {HlaRope::original, HlaRope::aligned}) {
          const Checkpoint full = convert_attention(c.base, at_full_rank(c.base, plan, rope));
          CHECK(difference(logits(full, c.tokens, DType::f32), want) < 1e-4);
        }
      }
  }
}

TEST_CASE("every mode converts, within the cache it was given, and its files are the conversion") {
  const Calibrated c;
  const TempFolder folder;
  int n = 0;
  for (const char* mode : {"original", "aligned", "hybrid", "latent", "latent_literal"})
    for (const char* allocate : {"layer", "global", "joint"})
      for (const char* cache : {"0.5", "0.25"}) {
        const bool svd = std::string(mode).starts_with("latent");
        if (svd && (std::string(allocate) != "layer" || std::string(cache) != "0.5")) continue;
        CAPTURE(mode);
        CAPTURE(allocate);
        CAPTURE(cache);
        const ConversionPlan plan =
            c.plan({str("HLA.rope=", mode), str("HLA.cache=", cache), str("HLA.allocate=", allocate),
                    svd ? "HLA.metric=plain" : "HLA.metric=fisher", "HLA.rope_pairs=5"});
        CHECK(mean_cache_values(plan.config) <= 64 * std::stod(cache));
        CHECK(mean_cache_values(plan.config) >= 64 * std::stod(cache) - 2);
        const auto errors = std::make_shared<std::vector<LayerError>>();
        const Checkpoint hla = convert_attention(c.base, plan, errors);
        const auto path = folder / str(n++);
        save_checkpoint(path, hla, "hf", "f32");
        const Checkpoint back = open_checkpoint(path);
        const ConversionTest t = test_conversion(c.base, plan, hla, back);
        CHECK(t.original.passed());
        REQUIRE(t.full_rank);
        CHECK(t.full_rank->passed());
        CHECK(t.written.passed());
        for (const LayerError& e : *errors) CHECK((0 < e.error && e.error < e.total));
      }
}

// Its k and v are as good as nothing, so all that is dealt out goes elsewhere first.
TEST_CASE("aligned: a layer keeps most of an even part, however little its share in the loss seems to be") {
  Calibrated c;
  c.base.read = [read = c.base.read](const std::string& name, DType t) {
    Tensor w = read(name, t);
    if (name == at(0, "k_proj.weight") || name == at(0, "v_proj.weight"))
      w = la::scaled_rows(w, Tensor::full({w.size(0)}, 1e-3, t));
    return w;
  };
  for (const char* mode : {"aligned", "original"})
    for (const char* allocate : {"global", "joint"}) {
      CAPTURE(mode);
      CAPTURE(allocate);
      const ConversionPlan plan = c.plan(
          {str("HLA.rope=", mode), "HLA.cache=0.5", str("HLA.allocate=", allocate), "HLA.metric=fisher"});
      const int64_t kept = cache_values(plan.config, 0);                      // of 32
      if (std::string(mode) == "aligned") CHECK((23 <= kept && kept <= 24));  // a plane costs 2
      else CHECK(kept == 2);
      CHECK(mean_cache_values(plan.config) >= 31);
    }
}

// Squared distance of the logits from the original model's.
static double squares(const Calibrated& c, const std::vector<std::string>& words) {
  const Vec want = logits(c.base, c.tokens), got = logits(convert_attention(c.base, c.plan(words)), c.tokens);
  double sum = 0;
  for (size_t i = 0; i < got.size(); ++i) sum += (got[i] - want[i]) * (got[i] - want[i]);
  return sum;
}

TEST_CASE("knowing the inputs, or fitting o_proj, brings the logits nearer to the original ones") {
  const Calibrated c;
  for (const char* mode : {"original", "aligned", "hybrid"}) {
    CAPTURE(mode);
    const std::vector<std::string> plain{str("HLA.rope=", mode), "HLA.rope_pairs=6", "HLA.cache=0.4"};
    std::vector<std::string> white = plain, refit;
    white.push_back("HLA.metric=white"), refit = white, refit.push_back("convert.refit_o=true");
    CHECK(squares(c, white) < squares(c, plain));
    CHECK(squares(c, refit) < squares(c, white));
  }
}

TEST_CASE("biases: planes hold them, and lose little of them") {
  const Calibrated c("test/fixtures/tiny-llama/qwen2");
  for (const char* mode : {"original", "aligned", "hybrid", "latent"}) {
    CAPTURE(mode);
    const bool latent = std::string(mode) == "latent";
    const ConversionPlan plan = c.plan(
        {str("HLA.rope=", mode), latent ? "HLA.metric=plain" : "HLA.metric=white", "HLA.rope_pairs=2"});
    const Checkpoint hla = convert_attention(c.base, plan);
    for (const auto& [name, info] : hla.weights)
      CHECK_MESSAGE(hla.read(name, DType::f32).shape() == info.shape, name);
    for (const double x : logits(hla, c.tokens)) REQUIRE(std::isfinite(x));
  }
}

// ---- plans and refusals -----------------------------------------------------------------------------------

TEST_CASE("a plan is saved and read back") {
  const Calibrated c;
  const TempFolder folder;
  for (const char* mode : {"original", "aligned", "hybrid", "latent"}) {
    CAPTURE(mode);
    const bool latent = std::string(mode) == "latent";
    const ConversionPlan plan =
        c.plan({str("HLA.rope=", mode), latent ? "HLA.metric=plain" : "HLA.metric=fisher",
                "HLA.cache=0.3750001", latent ? "HLA.rank_k=16" : "HLA.allocate=joint", "HLA.rope_pairs=6",
                latent ? "HLA.rank_q=32" : "HLA.factor_q=true"});
    save_plan(folder / "plan.json", plan);
    const ConversionPlan back = load_plan(folder / "plan.json", c.base);
    CHECK(plan_table(back) == plan_table(plan));
    CHECK(setting_words(back.settings) == setting_words(plan.settings));
    const Checkpoint a = convert_attention(c.base, plan), b = convert_attention(c.base, back);
    for (const auto& [name, info] : a.weights)
      CHECK_MESSAGE(to_vec(a.read(name, DType::f64)) == to_vec(b.read(name, DType::f64)), name);
  }
  const auto said = [&](const std::string& text) {
    std::ofstream(folder / "bad.json") << text;
    return error_of([&] { load_plan(folder / "bad.json", c.base); });
  };
  CHECK(said(R"({"settings": ["HLA.rope=aligned"], "layers": []})").find("two kinds of attention") !=
        std::string::npos);
  CHECK(said(R"({"settings": ["HLA.rope=aligned"], "HLA": {"rope": "aligned", "layers": []}})")
            .find("layers") != std::string::npos);
}

TEST_CASE("the table names planes compactly") {
  const Checkpoint base = open_checkpoint(kBase);
  const std::string table = plan_table(plan_of(base, {"HLA.rope=aligned", "HLA.rank_k=16"}));
  CHECK(table.find("mode aligned") != std::string::npos);
  CHECK(table.find("0-4 6:2 7\n") != std::string::npos);
}

TEST_CASE("settings that are refused") {
  const Calibrated c;
  const auto refused = [&](std::vector<std::string> words, const char* needle) {
    check_rejects([&] { plan_of(c.base, words); }, needle);
  };
  refused({"HLA.rope=sideways"}, "HLA.rope is 'sideways', expected original, latent, aligned, hybrid");
  refused({"HLA.rope=aligned", "SVD.method=7"}, "keep one of the two");
  refused({"HLA.cache=0"}, "HLA.cache is '0', expected a share");
  refused({"HLA.cache=1.5"}, "above 0, up to 1");
  refused({"HLA.cache=nan"}, "HLA.cache is 'nan'");
  refused({"HLA.cache_values=65"}, "HLA.cache_values is 65, the model caches 64");
  refused({"HLA.rank_k=33"}, "HLA.rank_k is 33, but there are only 32 ranks");
  refused({"HLA.rank_k=0"}, "HLA.rank_k is 0, expected 1 or more");
  refused({"HLA.head_block=3"}, "HLA.head_block is 3, which does not divide the 2 kv heads");
  refused({"HLA.rope=hybrid", "HLA.rope_pairs=9"}, "HLA.rope_pairs is 9, expected 1 to the 8 pairs");
  refused({"HLA.metric=white"}, "HLA.metric white needs convert.calibration");
  refused({"HLA.metric=black"}, "expected plain, white, omega, output or fisher");
  refused({"SVD.metric=omega"}, "expected plain, white, output or fisher");
  refused({"HLA.allocate=joint"}, "it needs HLA.metric=fisher, not plain");
  refused({"HLA.rope=latent", "HLA.rank_k=6"}, "use a multiple of 4");
  refused({"HLA.rope=latent", "HLA.allocate=global"}, "gives every layer and head the same");
  refused({"HLA.frequencies=odd"}, "expected even or first");
  refused({"HLA.rank=3"}, "did you mean HLA.rank_");
  check_rejects([&] { c.plan({"HLA.rope=latent", "HLA.metric=white"}); }, "planes from the plain SVD");
  check_rejects([&] { c.plan({"HLA.metric=fisher", "HLA.allocate=joint", "HLA.cache=0.05"}); }, "HLA.cache");
  check_rejects([&] { plan_of(open_checkpoint("test/fixtures/tiny-llama/qwen3"), {"HLA.rope=aligned"}); },
                "q/k norms (Qwen3)");
  const Checkpoint done = convert_attention(c.base, plan_of(c.base, {"HLA.rope=aligned"}));
  check_rejects([&] { plan_of(done, {"HLA.rope=aligned"}); }, "has been converted before");
}

TEST_CASE("a file without query gradients says how to go on") {
  const Calibrated c;
  const SafetensorsFile all = SafetensorsFile::open(c.file());
  std::vector<std::pair<std::string, Tensor>> kept;
  for (const char* name : {"S", "Ck", "Cv", "Gp", "Gmix"}) kept.emplace_back(name, all.read(name));
  const auto old = c.folder / "old";
  write_safetensors(old, kept);
  const std::vector<std::string> words{"HLA.metric=fisher", "HLA.calibration=" + old.string()};
  check_rejects([&] { plan_of(c.base, words); }, "leave q whole with HLA.factor_q=false");
  std::vector<std::string> whole = words;
  whole.push_back("HLA.factor_q=false");
  CHECK(plan_of(c.base, whole).config.hla->layers[0].q.count() == 0);
}

TEST_CASE("without weights planes are dealt out evenly") {
  const LlamaConfig c = open_checkpoint(kBase).config;
  const auto layer = [&](const std::vector<std::string>& words) {
    const HlaConfig h = new_hla_config(c, parse_settings(words));
    LlamaConfig m = c;
    m.hla = h;
    m.check();
    CHECK(cache_values(m, 0) <= 32);
    return h.layers[0];
  };
  CHECK(layer({"HLA.rope=aligned"}).k.pair == std::vector<int32_t>{0, 1, 2, 3, 4, 5, 6, 7});
  CHECK(layer({"HLA.rope=aligned", "HLA.rank_k=8"}).k.pair == std::vector<int32_t>{0, 2, 4, 6});
  CHECK(layer({"HLA.rope=hybrid", "HLA.rope_pairs=4"}).k.pair == std::vector<int32_t>{0, 1, 2, 3});
  CHECK(layer({"HLA.rope=hybrid", "HLA.rope_pairs=4"}).rank_k == 8);
  CHECK(layer({"HLA.rope=original"}).rank_k == 16);
  CHECK(layer({"HLA.rope=latent"}).k.count() == 8);
  CHECK(layer({"HLA.rope=unified"}).rank_v == 24);
  check_rejects([&] { layer({"HLA.rope=aligned", "HLA.allocate=global"}); }, "there are none yet; use layer");
}
