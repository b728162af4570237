// Conversions to MLA against the fixtures of test/fixtures/tiny-mla, made by MHA2MLA's own program and by an
// independent one in f64: pairs, rows, factors, singular values, logits; and every setting that must be
// refused.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <fstream>
#include <nlohmann/json.hpp>
#include "convert/best.h"
#include "convert/calibrate.h"
#include "convert/fisher.h"
#include "convert/low_rank.h"
#include "convert/mla.h"
#include "convert/refit.h"
#include "convert/self_test.h"
#include "data/json.h"
#include "data/safetensors.h"
#include "tensor/linalg.h"
#include "test/model_case.h"
#include "test/temp_folder.h"

using namespace llatte;
using namespace llatte::test;
namespace la = llatte::linalg;

static const std::string kTiny = "test/fixtures/tiny-mla/";
static const std::string kScores = kTiny + "scores/qk_tensor.safetensors";

static std::string method_word(const nlohmann::json& m) {
  return m.is_string() ? m.get<std::string>() : m.dump();
}

static void add_words(const std::string& section, const nlohmann::json& object,
                      std::vector<std::string>& words) {
  for (const auto& [key, value] : object.items()) {
    if (key == "qk_tensor_path") continue;  // relative to upstream's folder
    words.push_back(section + "." + key + "=" + method_word(value));
  }
}

struct Case {
  explicit Case(const std::string& name, const std::string& folder = "nanotron-era/")
      : json(read_json(kTiny + folder + name + ".json")),
        file(SafetensorsFile::open(kTiny + folder + name + ".safetensors")) {
    add_words("RoPE", json.at("RoPE"), words);
    add_words("SVD", json.at("SVD"), words);
    const int version = json.at("RoPE").at("partial_rope_version");
    if (version == 4 || version == 6) words.push_back("RoPE.qk_tensor_path=" + kScores);
    if (json.value("gqa2mha", false)) words.push_back("convert.gqa2mha=true");
  }
  ConversionPlan plan() const { return make_plan(base, parse_settings(words)); }
  Checkpoint converted() const { return convert_attention(base, plan()); }
  nlohmann::json json;
  SafetensorsFile file;
  Checkpoint base = open_checkpoint(kTiny + "base");
  std::vector<std::string> words;
};

static const std::vector<std::string> kPlainCases{"v1_m2", "v1_m7", "v2_m2", "v2_m7", "v3_m2",
                                                  "v3_m7", "v4_m2", "v4_m3", "v4_m5", "v4_m6",
                                                  "v4_m7", "v5_m2", "v5_m7", "v6_m2", "v6_m7"};

static std::string at(int64_t l, const std::string& name) {
  return str("model.layers.", l, ".self_attn.", name);
}

static Tensor product(const std::function<Tensor(const std::string&)>& read, int64_t l, const std::string& up,
                      const std::string& down) {
  return la::product(read(at(l, up)), read(at(l, down)));
}

TEST_CASE("pairs and rows are those of the fixtures, to the bit") {
  for (const std::string& name : kPlainCases) {
    CAPTURE(name);
    const Case c(name);
    const ConversionPlan plan = c.plan();
    CHECK(plan.config.mla->kept == c.json.at("kept_pairs").get<KeptPairs>());
    const Checkpoint mla = convert_attention(c.base, plan);
    for (int64_t l = 0; l < 2; ++l) {
      const std::string rows = at(l, "W_k_r.weight");
      CHECK(to_vec(mla.read(rows, DType::f32)) == to_vec(c.file.read(rows, DType::f32)));
    }
    for (const auto& [entry, e] : c.file.entries()) {
      if (!entry.starts_with("model.")) continue;
      const auto same = [&](const auto& w) { return w.first == entry && w.second.shape == e.shape; };
      CHECK_MESSAGE(std::any_of(mla.weights.begin(), mla.weights.end(), same), entry);
    }
  }
}

// The fixtures' factors come from an SVD in f32, whose error (about 1e-6 of the largest weight) is amplified
// by the gap of singular values at the cut, a hundredth of the largest: 1e-4 is the most it can become.
TEST_CASE("factors: the products are the fixtures'") {
  for (const std::string& name : kPlainCases) {
    CAPTURE(name);
    const Case c(name);
    const Checkpoint mla = c.converted();
    const auto ours = [&](const std::string& n) { return mla.read(n, DType::f64); };
    const auto theirs = [&](const std::string& n) { return c.file.read(n, DType::f64); };
    for (int64_t l = 0; l < 2; ++l) {
      const std::string down_v = c.file.has(at(l, "W_down_v.weight")) ? "W_down_v.weight" : "W_down_k.weight";
      check_near("k", to_vec(product(ours, l, "W_up_k.weight", "W_down_k.weight")),
                 to_vec(product(theirs, l, "W_up_k.weight", "W_down_k.weight")), 1e-4);
      check_near("v", to_vec(product(ours, l, "W_up_v.weight", down_v)),
                 to_vec(product(theirs, l, "W_up_v.weight", down_v)), 1e-4);
    }
  }
}

// Methods 1 and 4 average two down projections whose signs are free: what does not depend on them are the
// lengths of the columns of up, which are singular values or their roots.
TEST_CASE("averaged down projections: the singular values are in the up projections") {
  for (const auto& [name, power] : {std::pair{"v4_m1", 1.0}, {"v4_m4", 0.5}}) {
    CAPTURE(name);
    const Case c(name);
    const Checkpoint mla = c.converted();
    for (const auto& [part, sv] : {std::pair{"W_up_k.weight", "sv.0.k_c"}, {"W_up_v.weight", "sv.0.v"}}) {
      const Tensor up = mla.read(at(0, part), DType::f64), s = c.file.read(sv, DType::f64);
      const Tensor squares = la::product(up.transpose(0, 1), up);
      for (int64_t r = 0; r < 12; ++r)
        CHECK(near(squares.data<double>()[r * 13], std::pow(s.data<double>()[r], 2 * power), 1e-9));
    }
    const Tensor theirs = c.file.read(at(0, "W_down_k.weight"), DType::f64);
    CHECK(mla.read(at(0, "W_down_k.weight"), DType::f64).shape() == theirs.shape());
  }
}

TEST_CASE("singular values") {
  for (const std::string& name : kPlainCases) {
    CAPTURE(name);
    const Case c(name);
    const ConversionPlan plan = c.plan();
    for (int64_t l = 0; l < 2; ++l) {
      const Tensor k = rows_of(c.base.read(at(l, "k_proj.weight"), DType::f64),
                               lost_rows(plan.config.mla->kept[static_cast<size_t>(l)], 16));
      const Tensor v = c.base.read(at(l, "v_proj.weight"), DType::f64);
      for (const auto& [part, w] : {std::pair{"k_c", k}, {"v", v}, {"joint", stacked(k, v)}}) {
        const Vec got = to_vec(la::svd(w).s),
                  want = to_vec(c.file.read(str("sv.", l, ".", part), DType::f64));
        REQUIRE(got.size() == want.size());
        for (size_t i = 0; i < want.size(); ++i) CHECK(std::abs(got[i] - want[i]) <= 1e-9 * want[0]);
      }
    }
  }
}

// f64 throughout on both sides, so what is left is rounding, amplified by the gap at the cut: 1e-8. In f32
// the rounding of weights and sums, 1e-7 each over two layers of width 64: 1e-4 has room to spare.
TEST_CASE("logits after conversion") {
  std::vector<std::string> cases = kPlainCases;
  for (const char* more : {"v1_m0", "v2_m0", "v3_m0", "v4_m0", "v5_m0", "v6_m0", "gqa2mha_v1_m7"})
    cases.push_back(more);
  for (const std::string& name : cases) {
    CAPTURE(name);
    const Case c(name);
    const Tensor tokens = c.file.read("tokens", DType::i32);
    const Vec want = to_vec(c.file.read("logits_f64", DType::f64));
    const Checkpoint mla = c.converted();
    CHECK(difference(logits(mla, tokens), want) < 1e-8);
    CHECK(difference(logits(lifted(mla), tokens), want) < 1e-8);
    CHECK(difference(logits(mla, tokens, DType::f32), want) < 1e-4);
  }
}

TEST_CASE("only_key and only_value") {
  for (const char* word : {"only_key", "only_value"}) {
    CAPTURE(word);
    const std::string stem = kTiny + "current/2-norm_" + word;
    const SafetensorsFile file = SafetensorsFile::open(stem + ".safetensors");
    const Checkpoint base = open_checkpoint(kTiny + "base");
    const Checkpoint mla = convert_attention(
        base, make_plan(base, parse_settings({"RoPE.partial_rope_version=4", "RoPE.top_k_rope_dim=3",
                                              "RoPE.qk_tensor_path=" + kScores, "SVD.low_rank=6",
                                              std::string("SVD.method=") + word})));
    const Vec got = logits(mla, file.read("tokens", DType::i32));
    CHECK(difference(got, to_vec(file.read("logits_f64", DType::f64))) < 1e-8);
  }
}

TEST_CASE("biases: k's on the rows it is split into, v's on up_v") {
  const Checkpoint base = open_checkpoint("test/fixtures/tiny-llama/qwen2");
  for (const char* word : {"joint", "split"}) {
    CAPTURE(word);
    const SafetensorsFile golden =
        SafetensorsFile::open(kTiny + "current/hf_qwen2_high_" + word + "/golden.safetensors");
    const Checkpoint mla = convert_attention(
        base, make_plan(base, parse_settings({"RoPE.partial_rope_version=1", "RoPE.top_k_rope_dim=1",
                                              "SVD.low_rank=2", std::string("SVD.method=") + word})));
    const Vec got = logits(mla, golden.read("tokens", DType::i32));
    CHECK(difference(got, to_vec(golden.read("logits_conversion_f64", DType::f64))) < 1e-8);
  }
}

TEST_CASE("at full rank nothing is lost; from scratch everything is") {
  for (const char* method : {"split", "sqrt_split", "joint", "only_key", "only_value"}) {
    CAPTURE(method);
    Case c("v4_m7");
    c.words.push_back(std::string("SVD.method=") + method);
    const ConversionPlan plan = c.plan();
    const Tensor tokens = c.file.read("tokens", DType::i32);
    const Vec whole = logits(convert_attention(c.base, without_svd(plan)), tokens);
    CHECK(difference(logits(convert_attention(c.base, at_full_rank(plan)), tokens), whole) < 1e-10);
    CHECK(difference(logits(convert_attention(c.base, plan), tokens), whole) > 1e-3);
  }
  Case c("v4_m7");
  c.words.push_back("convert.from_scratch=true");
  const Checkpoint random = c.converted(), again = c.converted();
  double squares = 0, count = 0;
  for (const char* name :
       {"q_proj.weight", "W_k_r.weight", "W_down_k.weight", "W_up_k.weight", "W_up_v.weight"}) {
    const Vec w = to_vec(random.read(at(1, name), DType::f64));
    CHECK(w == to_vec(again.read(at(1, name), DType::f64)));
    for (const double x : w) squares += x * x, count += 1;
  }
  // The standard deviation of an estimated one is std / sqrt(2 N), 0.8 % for N = 7,700: 5 % is 6 of them.
  CHECK(std::abs(std::sqrt(squares / count) / c.base.config.initializer_range - 1) < 0.05);
  CHECK(to_vec(random.read(at(1, "o_proj.weight"), DType::f32)) ==
        to_vec(c.base.read(at(1, "o_proj.weight"), DType::f32)));
}

TEST_CASE("what is written is what was converted") {
  const TempFolder folder;
  for (const char* name : {"v4_m7", "v6_m2", "v1_m7", "v4_m0"}) {
    CAPTURE(name);
    const Case c(name);
    const Checkpoint mla = c.converted();
    save_checkpoint(folder / name, mla, "hf", "f32");
    const Checkpoint back = open_checkpoint(folder / name);
    CHECK(back.config.mla->kept == mla.config.mla->kept);
    for (const auto& [weight, info] : mla.weights)
      CHECK_MESSAGE(to_vec(back.read(weight, DType::f32)) == to_vec(mla.read(weight, DType::f32)), weight);
  }
}

TEST_CASE("the self-test, of the whole model and of the first layer of a large one") {
  const Case c("v4_m2");
  const ConversionPlan plan = c.plan();
  const Checkpoint mla = c.converted();
  Checkpoint wrong = mla;
  wrong.read = [read = mla.read](const std::string& name, DType t) {
    Tensor a = read(name, t);
    if (name == at(0, "W_up_v.weight")) a.data<float>()[0] += 1;
    return a;
  };
  for (const int64_t large : {int64_t{0}, int64_t{1} << 40}) {
    const ConversionTest good = test_conversion(c.base, plan, mla, mla, large);
    CHECK(good.original.passed());
    REQUIRE(good.full_rank);
    CHECK(good.full_rank->passed());
    CHECK(good.full_rank->max_error > 0);
    CHECK(good.written.passed());
    CHECK_FALSE(test_conversion(c.base, plan, mla, wrong, large).written.passed());
  }
  const double whole = test_conversion(c.base, plan, mla, mla).original.max_logit;
  CHECK(test_conversion(c.base, plan, mla, mla, 0).original.max_logit != whole);
}

TEST_CASE("a plan is saved and read back") {
  const TempFolder folder;
  for (const char* name : {"v4_m7", "v6_m2", "v2_m2", "v4_m0"}) {
    CAPTURE(name);
    const Case c(name);
    const ConversionPlan plan = c.plan();
    save_plan(folder / "plan.json", plan);
    const ConversionPlan back = load_plan(folder / "plan.json", c.base);
    CHECK(back.config.mla->kept == plan.config.mla->kept);
    CHECK(plan_table(back) == plan_table(plan));
    CHECK(to_vec(convert_attention(c.base, back)
                     .read(plan.config.mla->svd.method == SvdMethod::none ? at(1, "k_proj.weight")
                                                                          : at(1, "W_up_v.weight"),
                           DType::f64)) ==
          to_vec(convert_attention(c.base, plan)
                     .read(plan.config.mla->svd.method == SvdMethod::none ? at(1, "k_proj.weight")
                                                                          : at(1, "W_up_v.weight"),
                           DType::f64)));
  }
  const Checkpoint base = open_checkpoint(kTiny + "base");
  const auto said = [&](const std::string& text) {
    std::ofstream(folder / "bad.json") << text;
    return error_of([&] { load_plan(folder / "bad.json", base); });
  };
  CHECK(has(said("[]"), "this is no conversion plan"));
  CHECK(has(said(R"({"settings": 3, "layers": []})"), "this is no conversion plan"));
  CHECK(has(said(R"({"settings": [], "layers": []})"), "are not those of a model with 2 layers"));
  CHECK(has(said(R"({"settings": [], "layers": [{"kept_pairs": "x"}]})"), "this is no conversion plan"));
  CHECK(has(
      said(
          R"({"settings": ["RoPE.partial_rope_version=1"], "layers": [{"kept_pairs": [[0],[0]]}, {"kept_pairs": [[0],[9]]}]})"),
      "are not those of a model"));
}

TEST_CASE("settings that must be refused") {
  const TempFolder folder;
  write_safetensors(folder / "wrong_shape", {{"scores", Tensor::zeros({2, 2, 9})}});
  const Checkpoint base = open_checkpoint(kTiny + "base");
  const nlohmann::json refuse = read_json(kTiny + "refuse.json");
  REQUIRE(refuse.at("cases").size() == 14);
  for (const auto& one : refuse.at("cases")) {
    std::vector<std::string> words;
    add_words("RoPE", one.at("RoPE"), words);
    add_words("SVD", one.at("SVD"), words);
    const nlohmann::json path = one.at("RoPE").value("qk_tensor_path", nlohmann::json());
    if (path.is_string())
      words.push_back("RoPE.qk_tensor_path=" + (folder / path.get<std::string>()).string());
    const std::string said = error_of([&] { make_plan(base, parse_settings(words)); });
    CHECK_MESSAGE(said != "no error was thrown", one.at("why").get<std::string>());
    CHECK(said.find('\n') == said.npos);
  }
}

TEST_CASE("other settings that are refused, in words") {
  const Checkpoint base = open_checkpoint(kTiny + "base");
  const auto said = [&](std::vector<std::string> words, const Checkpoint& from) {
    words.push_back("RoPE.partial_rope_version=1"), words.push_back("RoPE.top_k_rope_dim=2");
    return error_of([&] { make_plan(from, parse_settings(words)); });
  };
  CHECK(has(said({"SVD.lowrank=3"}, base), "unknown setting SVD.lowrank; did you mean SVD.low_rank?"));
  CHECK(has(said({"SVD.low_rank"}, base), "is no setting; write key.path=value"));
  CHECK(has(said({"SVD.low_rank=3x"}, base), "SVD.low_rank is '3x', expected a whole number"));
  CHECK(has(said({"SVD.method=8"}, base), "SVD.method is '8', expected 0 to 7"));
  CHECK(has(said({"SVD.version=best"}, base), "SVD.version is 'best'"));
  CHECK(has(said({"SVD.metric=white"}, base), "SVD.metric white needs convert.calibration"));
  CHECK(has(said({"SVD.metric=black"}, base), "expected plain, white, output or fisher"));
  CHECK(has(said({"SVD.allocate=joint"}, base), "only uniform is possible"));
  CHECK(has(said({"convert.refit_o=yes"}, base), "expected true or false"));
  CHECK(has(said({"convert.refit_o=true"}, base), "convert.refit_o needs convert.calibration"));
  CHECK(has(said({"RoPE.n_gqa_group=3"}, base), "RoPE.n_gqa_group is 3, this model has 2"));
  CHECK(has(said({"SVD.method=7", "SVD.low_rank=29"}, base),
            "is 58 ranks, but what is factored has only 56 singular values; use 28"));
  CHECK(has(said({"convert.gqa2mha=true", "SVD.metric=white", "convert.calibration=x"}, base),
            "convert.gqa2mha changes the heads"));
  CHECK(has(said({}, open_checkpoint(kTiny + "nanotron-era/hf_v2_m2")), "has been converted before"));
  CHECK(has(said({"SVD.method=7", "SVD.low_rank=2"}, open_checkpoint("test/fixtures/tiny-llama/qwen3")),
            "SVD.method 0"));
}

// The base model measured on the fixture's calibration tokens.
struct Calibrated {
  Calibrated() {
    const Tensor tokens =
        SafetensorsFile::open(kTiny + "scores/golden.safetensors").read("calibration_tokens", DType::i32);
    const auto model = load_model(base, DType::f32);
    CalibrationSettings settings;
    settings.covariance = true, settings.gradient_windows = tokens.size(0);
    Calibration run(*model, tokens, settings);
    while (run.done() < run.windows()) run.add_window();
    run.write(file(), ScoreKind::product);
  }
  std::filesystem::path file() const { return folder / "calibration.safetensors"; }
  ConversionPlan plan(std::vector<std::string> words) const {
    for (const char* w :
         {"RoPE.partial_rope_version=4", "RoPE.top_k_rope_dim=3", "SVD.method=7", "SVD.low_rank=6"})
      words.insert(words.begin(), w);
    words.push_back("convert.calibration=" + file().string());
    return make_plan(base, parse_settings(words));
  }
  TempFolder folder;
  Checkpoint base = open_checkpoint(kTiny + "base");
};

// T = Gam^(1/2) is inverted with eigenvalues down to 1e-5 of the largest, so the last 1e-16 of f64 may grow
// to 1e-11 in a weight; through two layers 1e-8 is left far behind.
TEST_CASE("our metrics: exact at full rank, and balanced") {
  const Calibrated c;
  const Tensor tokens = SafetensorsFile::open(kTiny + "base/golden.safetensors").read("tokens", DType::i32);
  for (const char* metric : {"white", "output", "fisher"})
    for (const std::string method : {"joint", "split"}) {
      CAPTURE(metric);
      CAPTURE(method);
      const ConversionPlan plan = c.plan(
          {"RoPE.qk_tensor_path=" + kScores, std::string("SVD.metric=") + metric, "SVD.method=" + method});
      const Vec whole = logits(convert_attention(c.base, without_svd(plan)), tokens);
      CHECK(difference(logits(convert_attention(c.base, at_full_rank(plan)), tokens), whole) < 1e-8);
      const auto errors = std::make_shared<std::vector<LayerError>>();
      const Checkpoint mla = convert_attention(c.base, plan, errors);
      const Tensor up_k = mla.read(at(1, "W_up_k.weight"), DType::f64);
      const Tensor up =
          method == "joint" ? stacked(up_k, mla.read(at(1, "W_up_v.weight"), DType::f64)) : up_k;
      check_near("up^T up", to_vec(la::product(up.transpose(0, 1), up)),
                 to_vec(la::add_to_diagonal(Tensor::zeros({12, 12}, DType::f64), 1)), 1e-10);
      CHECK(errors->at(1).error > 0);
      CHECK(errors->at(1).error < errors->at(1).total);
    }
}

// E |(k - k', v - v')|^2 over the calibration inputs of a layer.
static double output_error(const Calibrated& c, const Checkpoint& mla, int64_t l) {
  const Tensor S = SafetensorsFile::open(c.file()).read("S", DType::f64).slice(0, l, l + 1).reshape({64, 64});
  const Checkpoint whole = lifted(mla);
  double sum = 0;
  for (const char* name : {"k_proj.weight", "v_proj.weight"}) {
    Tensor e = c.base.read(at(l, name), DType::f64);
    const Tensor near = whole.read(at(l, name), DType::f64);
    for (int64_t i = 0; i < e.numel(); ++i) e.data<double>()[i] -= near.data<double>()[i];
    sum += la::mean_diagonal(la::product(e, la::product(S, e.transpose(0, 1)))) * 32;
  }
  return sum;
}

TEST_CASE("white loses less of the outputs than plain, and says how much") {
  const Calibrated c;
  const std::string by_score = "RoPE.qk_tensor_path=" + kScores;
  const auto errors = std::make_shared<std::vector<LayerError>>();
  const Checkpoint white = convert_attention(c.base, c.plan({by_score, "SVD.metric=white"}), errors);
  const Checkpoint plain = convert_attention(c.base, c.plan({by_score}));
  for (int64_t l = 0; l < 2; ++l) {
    CHECK(output_error(c, white, l) < output_error(c, plain, l));
    CHECK(near(output_error(c, white, l) / errors->at(static_cast<size_t>(l)).error, 1, 1e-9));
  }
}

TEST_CASE("fisher chooses pairs by what their rotation is worth, and the files choose them again") {
  const Calibrated c;
  for (const char* version : {"4", "6"}) {
    CAPTURE(version);
    const ConversionPlan plan =
        c.plan({"SVD.metric=fisher", std::string("RoPE.partial_rope_version=") + version});
    CHECK(plan.config.mla->scores.shape() == Shape{2, 2, 8});
    for (const double x : to_vec(plan.config.mla->scores)) CHECK(x > 0);
    const std::string folder = (c.folder / version).string();
    save_checkpoint(folder, convert_attention(c.base, plan), "hf", "f32");
    CHECK(open_checkpoint(folder).config.mla->kept == plan.config.mla->kept);
  }
}

TEST_CASE("refit_o: nothing to mend leaves o_proj, and what it mends is nearer") {
  const Calibrated c;
  const Tensor tokens = SafetensorsFile::open(c.file()).read("tokens", DType::i32);
  // The same model on both sides: t = W_o a, and W_o solves that exactly, ridge included. Streams are f32:
  // 1e-7 of numbers of size 1, divided by a ridge of 1e-2.
  const auto same = refit_o(c.base, c.base, tokens);
  for (int64_t l = 0; l < 2; ++l)
    check_near("W_o", to_vec(same[static_cast<size_t>(l)]),
               to_vec(c.base.read(at(l, "o_proj.weight"), DType::f32)), 1e-4);

  const std::vector<std::string> words{"SVD.metric=fisher"};
  std::vector<std::string> refitted = words;
  refitted.push_back("convert.refit_o=true");
  const Vec original = logits(c.base, tokens, DType::f32);
  const Checkpoint before = convert_attention(c.base, c.plan(words)),
                   after = convert_attention(c.base, c.plan(refitted));
  const auto mean_square = [&](const Checkpoint& m) {
    const Vec got = logits(m, tokens, DType::f32);
    double sum = 0;
    for (size_t i = 0; i < got.size(); ++i) sum += (got[i] - original[i]) * (got[i] - original[i]);
    return sum;
  };
  CHECK(mean_square(after) < 0.9 * mean_square(before));
  CHECK(to_vec(after.read(at(0, "W_up_v.weight"), DType::f32)) ==
        to_vec(before.read(at(0, "W_up_v.weight"), DType::f32)));
  check_rejects(
      [&] {
        refit_o(c.base, c.base, Tensor::zeros({1, 257}, DType::i32));
      },
      "257 tokens, the model 256 positions");
}

// The heads' outputs in layer 0.
struct FirstLayer final : AttentionProbe {
  Var attention(int64_t layer, const Var&, const Var&, const Var&, const Var&, const Var& o_BTHE) override {
    if (layer == 0) o = o_BTHE.value.to(DType::f64).reshape({-1, 64});
    return o_BTHE;
  }
  Tensor o;
};

Tensor first_heads(const Checkpoint& c, const Tensor& tokens) {
  const NoGrad off;
  const auto model = load_model(c, DType::f32);
  FirstLayer probe;
  model->set_probe(&probe);
  model->hidden(tokens);
  return probe.o;
}

TEST_CASE("refit_o solves the weighted least-squares problem of its definition") {
  // In layer 0 both streams are the embeddings x, so t = W_o a_original, and a token weighs 1 / mean(h^2), h
  // = x
  // + t.
  const Calibrated c;
  const Tensor tokens = SafetensorsFile::open(c.file()).read("tokens", DType::i32);
  const Checkpoint changed = lifted(convert_attention(c.base, c.plan({"SVD.metric=fisher"})));
  const Tensor wo = c.base.read(at(0, "o_proj.weight"), DType::f64);
  // Every token in its window, then those of the first 4 windows alone.
  const Tensor alone = tokens.slice(0, 0, std::min<int64_t>(4, tokens.size(0))).clone().reshape({-1, 1});
  const auto heads = [&](const Checkpoint& m) {
    return stacked(first_heads(m, tokens), first_heads(m, alone));
  };
  const Tensor a = heads(changed), t = la::product(heads(c.base), wo.transpose(0, 1));
  const Vec x = to_vec(c.base.read("model.embed_tokens.weight", DType::f64));
  auto ids = tokens.contiguous().to_vector<int32_t>();
  const auto first = alone.to_vector<int32_t>();
  ids.insert(ids.end(), first.begin(), first.end());
  Tensor weights = Tensor::empty({a.size(0)}, DType::f64);
  for (int64_t n = 0; n < a.size(0); ++n) {
    double sum = 0;
    for (int64_t d = 0; d < 64; ++d) {
      const double h =
          x[static_cast<size_t>(ids[static_cast<size_t>(n)] * 64 + d)] + t.data<double>()[n * 64 + d];
      sum += h * h / 64;
    }
    weights.data<double>()[n] = 1 / sum / static_cast<double>(a.size(0));
  }
  const Tensor wa = la::scaled_rows(a, weights);
  const Tensor aa = la::product(wa.transpose(0, 1), a), at_ = la::product(wa.transpose(0, 1), t);
  const double rho = 1e-2 * la::mean_diagonal(aa);
  const Tensor got = refit_o(c.base, changed, tokens)[0].to(DType::f64);
  // (aa + rho) W^T = at + rho W_o^T, to the f32 of streams and weights: sums of hundreds of tokens of size 1.
  const Vec left = to_vec(la::product(la::add_to_diagonal(aa, rho), got.transpose(0, 1)));
  const Vec right = to_vec(at_), prior = to_vec(la::transposed(wo));
  for (size_t i = 0; i < left.size(); ++i) CHECK(near(left[i], right[i] + rho * prior[i], 1e-5));
}

// What the loss is expected to pay, term by term: with RoPE on all pairs and a latent of v alone that drops
// some ranks, only v changes, by dv = W_v' - W_v, and the loss pays 1/2 tr(dv^T G_vv dv C).
TEST_CASE("the predicted loss is the quadratic form of what changes") {
  const Calibrated c;
  const ConversionPlan plan =
      c.plan({"RoPE.partial_rope_version=0", "SVD.method=only_value", "SVD.metric=white"});
  const Checkpoint mla = convert_attention(c.base, plan);
  const CalibrationFile statistics(c.file(), c.base.config);
  double want = 0;
  for (int64_t l = 0; l < 2; ++l) {
    const Tensor v = c.base.read(at(l, "v_proj.weight"), DType::f64);
    const Tensor near_v = la::product(mla.read(at(l, "W_up_v.weight"), DType::f64),
                                      mla.read(at(l, "W_down_v.weight"), DType::f64));
    Tensor dv = Tensor::empty_like(v);
    for (int64_t i = 0; i < v.numel(); ++i)
      dv.data<double>()[i] = near_v.data<double>()[i] - v.data<double>()[i];
    const Tensor all = statistics.gradients(l), g = all.slice(0, 64, 96).slice(1, 64, 96).contiguous();
    const Tensor left = la::product(g, dv), right = la::product(dv, statistics.weighted_covariance(l));
    for (int64_t i = 0; i < left.numel(); ++i) want += left.data<double>()[i] * right.data<double>()[i] / 2;
  }
  CHECK(want > 0);
  CHECK(near(predicted_loss(c.base, plan), want, 1e-10));  // sums of a few thousand products in f64
}

TEST_CASE("best: no other share of pairs and ranks promises less loss") {
  const Calibrated c;
  const ConversionSettings best = best_mla(c.base, 24, c.file().string());
  CHECK(latent_widths(make_plan(c.base, best).config).kept + best.svd.low_rank * 2 == 24);
  const double least = predicted_loss(c.base, make_plan(c.base, best));
  for (int64_t pairs = 1; pairs <= 5; ++pairs) {
    ConversionSettings other = best;
    other.rope.top_k_rope_dim = pairs, other.svd.low_rank = 12 - 2 * pairs;
    CHECK(least <= predicted_loss(c.base, make_plan(c.base, other)));
  }
  for (const int64_t values : {5, 64})
    check_rejects([&] { best_mla(c.base, values, c.file().string()); },
                  str(values, " cached values per token and layer; this model takes 6 to 63"));
}
