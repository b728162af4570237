// The MLA models of fixtures/tiny-mla, converted elsewhere: logits from the stored weights of every RoPE
// version and SVD method, and for two whole folders what the cache holds, the heads' outputs, and a greedy
// continuation.
//
// Tolerances. The references are f64 runs from the same f32 weights. Logits are of size about 5: our f32 sums
// in another order, some hundred terms deep, so 2e-5; in f64 1e-9 would show any term computed in f32.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include "autograd/ops.h"
#include "data/safetensors.h"
#include "eval/generate.h"
#include "models/hf.h"
#include "nn/latent_attention.h"
#include "test/near.h"
#include "test/on_device.h"

using namespace llatte;
using namespace llatte::test;

namespace {

const std::filesystem::path kFolder = "test/fixtures/tiny-mla";
const std::vector<std::string> kWhole = {"hf_v4_m7", "hf_v2_m2"};

double max_diff(const Tensor& got, const Tensor& want) {
  REQUIRE(got.shape() == want.shape());
  const Vec a = to_vec(got), b = to_vec(want);
  double m = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    const double d = std::abs(a[i] - b[i]);
    m = std::isnan(d) ? INFINITY : std::max(m, d);
  }
  return m;
}

// ---- base/ with what a conversion replaced
struct Conversion {
  nlohmann::json about;
  SafetensorsFile file, base;

  explicit Conversion(const std::filesystem::path& json)
      : about(nlohmann::json::parse(std::ifstream(json))),
        file(SafetensorsFile::open(json.parent_path() / about["file"].get<std::string>())),
        base(SafetensorsFile::open(kFolder / "base/model.safetensors")) {}

  LlamaConfig config() const {
    LlamaConfig c = read_hf_config(kFolder / "base/config.json");
    MlaConfig m;
    m.svd.method = static_cast<SvdMethod>(about["SVD"]["method"].get<int>());
    m.svd.low_rank = about["SVD"]["low_rank"].get<int64_t>();
    const auto& rope = about["RoPE"];
    m.rope.partial_rope_version = rope["partial_rope_version"].get<int64_t>();
    m.rope.top_k_rope_dim = rope["top_k_rope_dim"].get<int64_t>();
    m.rope.last_k_rope_dim = rope["last_k_rope_dim"].get<int64_t>();
    m.rope.uniform_start_point = rope["uniform_start_point"].get<int64_t>();
    m.rope.uniform_step = rope["uniform_step"].get<int64_t>();
    m.kept = about["kept_pairs"].get<KeptPairs>();
    c.mla = m;
    return c;
  }
  std::unique_ptr<Llama> model(DType t) const {
    auto model = std::make_unique<Llama>(config(), t);
    model->params("", [&](const std::string& name, Var& p) {
      const Tensor w = (file.has(name) ? file : base).read(name, t);
      REQUIRE(w.shape() == p.shape());
      p.value.copy_from(w);
    });
    return here(std::move(model));
  }
  Tensor want() const {
    const char* from_weights = "logits_from_weights_f64";
    return file.read(file.has(from_weights) ? from_weights : "logits_f64", DType::f64);
  }
};

Tensor logits_of(Llama& model, const Tensor& tokens, KvCache* cache = nullptr) {
  const NoGrad off;
  return model.logits(model.hidden(tokens, cache)).value;
}

// One token at a time through a cache.
Tensor decoded(Llama& model, const Tensor& tokens) {
  const int64_t B = tokens.size(0), T = tokens.size(1);
  KvCache cache = model.make_cache(B, T);
  Tensor y = Tensor::empty({B, T, model.config().vocab_size}, model.dtype());
  for (int64_t t = 0; t < T; ++t)
    y.slice(1, t, t + 1).copy_from(logits_of(model, tokens.slice(1, t, t + 1).contiguous(), &cache));
  return y;
}

// ---- a whole folder
struct Whole {
  SafetensorsFile golden;
  std::unique_ptr<Llama> model;
  Tensor tokens;
  Whole(const std::string& name, DType t)
      : golden(SafetensorsFile::open(kFolder / "nanotron-era" / name / "golden.safetensors")),
        model(here(load_hf(kFolder / "nanotron-era" / name, t))),
        tokens(golden.read("tokens", DType::i32)) {}
  Tensor want(const std::string& name) const { return golden.read(name, DType::f64); }
  Tensor want(int64_t layer, const std::string& name) const { return want(str("layer", layer, '.', name)); }
};

// Columns [n Re, n Im] of each head in turn -> all heads' Re, then all heads' Im.
Tensor by_planes(const Tensor& k_r, const std::vector<std::vector<int32_t>>& kept) {
  std::vector<int32_t> re, im;
  for (const auto& pairs : kept) {
    const auto first = static_cast<int32_t>(2 * re.size()), n = static_cast<int32_t>(pairs.size());
    for (int32_t i = 0; i < n; ++i) re.push_back(first + i), im.push_back(first + n + i);
  }
  re.insert(re.end(), im.begin(), im.end());
  const Tensor places = Tensor::from(re, {static_cast<int64_t>(re.size())});
  return gather(constant(k_r), -1, places).value;
}

// What goes into the attention of a layer: its norm of what the blocks before it make.
Tensor attention_input(const Whole& w, int64_t layer) {
  std::map<std::string, Tensor> weights;
  w.model->params("", [&](const std::string& name, Var& p) { weights[name] = p.value; });
  const Tensor norm = weights.at(str("model.layers.", layer, ".input_layernorm.weight"));
  if (layer == 0) {
    const Var x = embedding(here(w.tokens), constant(weights.at("model.embed_tokens.weight")));
    return rms_norm(x, constant(norm), w.model->config().rms_norm_eps).value;
  }
  LlamaConfig c = w.model->config();
  c.num_hidden_layers = layer;
  Llama first(c, w.model->dtype());
  first.to(test_device());
  first.params("", [&](const std::string& name, Var& p) {
    p.value.copy_from(name == "model.norm.weight" ? norm : weights.at(name));
  });
  return first.hidden(w.tokens).value;
}

// The attention of a layer alone, with o_proj = 1: its output is the heads' outputs.
std::unique_ptr<Attention> heads_of(const Whole& w, int64_t layer) {
  const LlamaConfig& c = w.model->config();
  const LatentWidths widths = latent_widths(c);
  AttentionConfig a;
  a.kind = "mla", a.D = c.hidden_size, a.H = c.num_attention_heads, a.K = c.num_key_value_heads;
  a.E = c.head_dim, a.dtype = w.model->dtype(), a.kept_pairs = c.mla->kept[static_cast<size_t>(layer)];
  a.rank_k = widths.rank_k, a.rank_v = widths.rank_v, a.shared_latent = widths.shared;
  auto attention = here(make_attention(a));
  std::map<std::string, Tensor> weights;
  w.model->params("", [&](const std::string& name, Var& p) { weights[name] = p.value; });
  attention->params(str("model.layers.", layer, ".self_attn."), [&](const std::string& name, Var& p) {
    if (!name.ends_with("o_proj.weight")) return p.value.copy_from(weights.at(name));
    for (int64_t i = 0; i < a.D; ++i)
      p.value.slice(0, i, i + 1).slice(1, i, i + 1).copy_from(Tensor::full({1, 1}, 1));
  });
  return attention;
}

}  // namespace

TEST_CASE("logits from the stored weights, every version and method, whole and decoded") {
  int models = 0;
  for (const auto& entry : std::filesystem::directory_iterator(kFolder / "nanotron-era")) {
    if (entry.path().extension() != ".json" || entry.path().stem() == "gqa2mha_v1_m7")
      continue;  // no weights
    CAPTURE(entry.path().string());
    const Conversion conversion(entry.path());
    const Tensor tokens = conversion.file.read("tokens", DType::i32), want = conversion.want();
    const auto fast = conversion.model(DType::f32), proof = conversion.model(DType::f64);
    CHECK(max_diff(logits_of(*fast, tokens), want) <= 2e-5);
    CHECK(max_diff(decoded(*fast, tokens), want) <= 2e-5);
    CHECK(max_diff(logits_of(*proof, tokens), want) <= 1e-9);
    CHECK(max_diff(decoded(*proof, tokens), want) <= 1e-9);
    ++models;
  }
  CHECK(models == 23);  // v1 to v6 with methods 0, 2 and 7, v4 with five more
}

TEST_CASE("whole folders: logits, and what the cache holds") {
  for (const std::string& name : kWhole) {
    CAPTURE(name);
    const Whole w(name, DType::f64), fast(name, DType::f32);
    CHECK(max_diff(logits_of(*fast.model, fast.tokens), w.want("logits_f64")) <= 2e-5);
    KvCache cache = w.model->make_cache(2, 12);
    CHECK(max_diff(logits_of(*w.model, w.tokens, &cache), w.want("logits_f64")) <= 1e-9);
    for (int64_t l = 0; l < 2; ++l) {
      const auto& kept = w.model->config().mla->kept[static_cast<size_t>(l)];
      const Tensor z = by_planes(w.want(l, "k_r_rotated"), kept), c = w.want(l, "latent_k");
      const int64_t P = z.size(2), R = c.size(2);
      auto& store = dynamic_cast<LatentCache&>(*cache.layers[static_cast<size_t>(l)]).rows();
      const bool split = w.golden.has(str("layer", l, ".latent_v"));
      const Tensor rows = store.read(DType::f64, {P + R + (split ? R : 0)});
      CHECK(max_diff(rows.slice(2, 0, P), z) <= 1e-9);
      CHECK(max_diff(rows.slice(2, P, P + R), c) <= 1e-9);
      if (split) CHECK(max_diff(rows.slice(2, P + R, P + 2 * R), w.want(l, "latent_v")) <= 1e-9);
    }
  }
}

TEST_CASE("whole folders: the heads' outputs, lifted and absorbed") {
  for (const std::string& name : kWhole)
    for (int64_t l = 0; l < 2; ++l) {
      CAPTURE(name);
      const NoGrad off;
      const Whole w(name, DType::f64);
      const auto heads = heads_of(w, l);
      const Tensor x = attention_input(w, l), want = w.want(l, "attn_out");
      const RopeTable table =
          make_rope_table(rope_frequencies(w.model->config()), 12, DType::f64, test_device());
      std::vector<int32_t> pos(12);
      for (int32_t t = 0; t < 12; ++t) pos[static_cast<size_t>(t)] = t;
      const Tensor all = from(pos, {12});
      CHECK(max_diff(heads->forward(constant(x), {table, all}).value, want) <= 1e-9);
      const auto cache = heads->make_cache(2, 12, CacheType::f64);
      for (int64_t t = 0; t < 12; ++t) {
        const Var one = constant(x.slice(1, t, t + 1).contiguous());
        const Tensor got = heads->forward(one, {table, all.slice(0, t, t + 1), l, cache.get()}).value;
        CHECK(max_diff(got, want.slice(1, t, t + 1)) <= 1e-9);
      }
    }
}

TEST_CASE("whole folders: greedy text, bytes as the formula says, and a backward pass through everything") {
  for (const std::string& name : kWhole) {
    CAPTURE(name);
    const Whole w(name, DType::f32);
    const auto want = w.golden.read("greedy", DType::i32).to_vector<int32_t>();
    GenerateOptions o;
    o.max_tokens = 12, o.rule.temperature = 0;
    const Generation g = generate(*w.model, std::span(want).first(6), o);
    CHECK(g.tokens == std::vector<int32_t>(want.begin() + 6, want.end()));
    const LlamaConfig& c = w.model->config();
    const int64_t K = c.num_key_value_heads, R = c.mla->svd.low_rank * K;
    const int64_t values = 2 * kept_pairs(c) * K + (name == "hf_v4_m7" ? R : 2 * R);
    CHECK(g.cache_bytes_per_token == 2 * values * 4);  // layers, values, f32
    CHECK(values == cache_values(c, 0));

    backward(w.model->loss(w.tokens, w.tokens));
    w.model->params("", [&](const std::string& param, Var& p) { CHECK_MESSAGE(p.grad().defined(), param); });
  }
}
