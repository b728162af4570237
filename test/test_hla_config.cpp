// A whole model with RoPE inside its latents, in every mode, no two layers alike: config.json and weights in
// and out, decoding from its latent cache, how it starts and that it trains, what is refused and in which
// words.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <nlohmann/json.hpp>
#include "data/files.h"
#include "data/safetensors.h"
#include "models/deepseek.h"
#include "models/gguf.h"
#include "models/hf.h"
#include "models/nanotron.h"
#include "optim/adamw.h"
#include "test/near.h"
#include "test/temp_folder.h"

using namespace llatte;
using namespace llatte::test;
namespace fs = std::filesystem;
using nlohmann::json;

namespace {

using enum HlaRope;
using Ids = std::vector<int32_t>;

Planes planes(const Ids& pair, Ids block = {}) {
  if (block.empty()) block.assign(pair.size(), 0);
  return {pair, block};
}

LlamaConfig config(HlaRope rope, int64_t rope_pairs, const std::vector<HlaLayer>& layers, int64_t block = 0,
                   bool qkv_bias = false) {
  LlamaConfig c;
  c.hidden_size = 16, c.num_hidden_layers = 2, c.num_attention_heads = 4, c.num_key_value_heads = 2;
  c.head_dim = 8, c.intermediate_size = 24, c.vocab_size = 48, c.max_position_embeddings = 160;
  c.rope_theta = 100, c.qkv_bias = qkv_bias, c.hla = HlaConfig{rope, rope_pairs, block, layers};
  return c;
}

struct Variant {
  std::string name;
  LlamaConfig config;
};

const Planes kNone, kTwo = planes({0, 2}), kFive = planes({0, 0, 1, 3, 3}),
                    kBlocks = planes({0, 0, 1, 2, 3}, {0, 1, 1, 0, 1});

// Layers as {planes of k, planes of q, rank_q, rank_k, rank_v}.
std::vector<Variant> variants() {
  const Planes all = planes({0, 1, 2, 3}), high = planes({0, 0, 1});
  return {{"original", config(original, 4, {{kNone, kNone, 0, 7, 5}, {kNone, kNone, 6, 3, 9}})},
          {"latent", config(latent, 4, {{all, all, 0, 0, 5}, {kTwo, kTwo, 0, 0, 7}})},
          {"aligned", config(aligned, 4, {{kFive, kNone, 0, 0, 5}, {kTwo, all, 0, 0, 8}})},
          {"aligned, biases", config(aligned, 4, {{kFive, kNone, 0, 0, 5}, {kTwo, all, 0, 0, 8}}, 0, true)},
          {"aligned, blocks", config(aligned, 4, {{kBlocks, kBlocks, 0, 0, 5}, {kTwo, kNone, 0, 0, 8}}, 1)},
          {"hybrid", config(hybrid, 2, {{high, kNone, 0, 6, 5}, {kNone, all, 0, 5, 8}})},
          {"hybrid, biases", config(hybrid, 2, {{high, all, 0, 6, 5}, {high, kNone, 0, 0, 8}}, 0, true)},
          {"unified", config(unified, 0, {{kFive, kNone, 0, 9, 9}, {kNone, kNone, 0, 12, 12}})},
          {"latent_literal", config(latent_literal, 4, {{kFive, all, 8, 10, 5}, {kTwo, kTwo, 4, 4, 7}})}};
}

constexpr int64_t kTokens = 120;

Tensor tokens() {
  Ids ids;
  for (int64_t t = 0; t < 2 * kTokens; ++t) ids.push_back(static_cast<int32_t>(t * t * 31 % 47));
  return Tensor::from(ids, {2, kTokens});
}

// Weights of 0.3: scores of order 1, so that attention is far from uniform and errors in it show.
std::unique_ptr<Llama> made(const LlamaConfig& c, DType t = DType::f32) {
  auto m = std::make_unique<Llama>(c, t);
  m->init(3, 0.3);
  return m;
}

Vec logits(Llama& m) {
  const NoGrad off;
  return to_vec(m.logits(m.hidden(tokens())).value);
}

Vec cached_logits(Llama& m, CacheType t) {
  const NoGrad off;
  KvCache cache = m.make_cache(2, kTokens, t);
  Tensor y = Tensor::empty({2, kTokens, m.config().vocab_size}, m.dtype());
  for (int64_t at = 0; at < kTokens; ++at)
    y.slice(1, at, at + 1).copy_from(m.logits(m.hidden(tokens().slice(1, at, at + 1), &cache)).value);
  return to_vec(y);
}

double relative(const Vec& got, const Vec& want) {
  double d = 0, n = 0;
  for (size_t i = 0; i < want.size(); ++i)
    d += (got[i] - want[i]) * (got[i] - want[i]), n += want[i] * want[i];
  return std::sqrt(d / n);
}

// The error for aligned's config.json with HLA changed by `spoil`.
std::string refusal(const std::function<void(json& config)>& spoil) {
  const TempFolder t;
  json c = json::parse(hf_config(variants()[2].config, DType::f32));
  spoil(c);
  write_file_atomic(t / "config.json", c.dump());
  return error_of([&] { read_hf_config(t / "config.json"); });
}

}  // namespace

// f32: 120 tokens, two layers, logits of order 1 to 10 in other orders of summation.
TEST_CASE("logits through the latent cache are those of the full forward pass") {
  for (const Variant& v : variants()) {
    const auto m = made(v.config);
    check_near(v.name, cached_logits(*m, CacheType::f32), logits(*m), 2e-4);
  }
}

// Rows are off by at most 1/512, 1/254 or 1/14 of the largest number of a group; attention reads sums of
// them, twice, and the two layers compound: 8 times that bounds the logits' relative error.
TEST_CASE("logits from narrow caches are off by what the cache rounds away") {
  const std::pair<CacheType, double> kinds[] = {
      {CacheType::bf16, 1.0 / 512}, {CacheType::int8, 1.0 / 254}, {CacheType::int4, 1.0 / 14}};
  for (const Variant& v : variants())
    for (const auto& [type, bound] : kinds) {
      CAPTURE(v.name);
      CAPTURE(bound);
      const auto m = made(v.config);
      const double error = relative(cached_logits(*m, type), logits(*m));
      CHECK(error < 8 * bound);
      CHECK(error > bound / 100);
    }
}

TEST_CASE("a model in bf16 or f64 decodes from a cache of its own kind") {
  const auto wide = made(variants()[5].config, DType::f64), narrow = made(variants()[5].config, DType::bf16);
  check_near("f64", cached_logits(*wide, CacheType::f64), logits(*wide), 1e-10);  // 2^-53, as in f32 above
  // bf16: 2^-9 in each of some ten products a layer, differently rounded in the two forms.
  CHECK(relative(cached_logits(*narrow, CacheType::bf16), logits(*narrow)) < 0.05);
}

TEST_CASE("cached values by layer, in bytes of the real cache") {
  const LlamaConfig c = variants()[6].config;  // 3 planes, 6 and 5; 3 planes, 8
  CHECK(cache_values(c, 0) == 6 + 6 + 5);
  CHECK(cache_values(c, 1) == 6 + 8);
  CHECK(cache_values(c) == 31);
  CHECK(mean_cache_values(c) == 15.5);
  for (const Variant& v : variants()) {
    CAPTURE(v.name);
    CHECK(made(v.config)->make_cache(1, 5).bytes_per_token() == 4 * cache_values(v.config));
  }
}

TEST_CASE("folders: the same model and the same words again, and the weights that config.json promises") {
  for (const Variant& v : variants()) {
    CAPTURE(v.name);
    const TempFolder t, u;
    const auto m = made(v.config);
    save_hf(t.path, *m);
    const auto back = load_hf(t.path, DType::f32);
    CHECK(logits(*back) == logits(*m));
    save_hf(u.path, open_hf(t.path), DType::f32);
    CHECK(read_file(u / "config.json") == read_file(t / "config.json"));
    CHECK(read_file(u / "model.safetensors") == read_file(t / "model.safetensors"));
    CHECK(fs::exists(u / "modeling_llatte.py"));

    std::vector<std::pair<std::string, Shape>> listed;
    m->params("", [&](const std::string& name, Var& p) { listed.emplace_back(name, p.shape()); });
    CHECK(listed == param_shapes(v.config));
    int64_t sum = 0;
    for (const auto& [name, shape] : listed) sum += numel_of(shape);
    CHECK(sum == param_count(v.config));
  }
}

TEST_CASE("config.json says what each layer is made of, a line each") {
  const std::string text = hf_config(variants()[4].config, DType::f32);
  const json h = json::parse(text)["HLA"];
  CHECK(h["rope"] == "aligned");
  CHECK(h["rope_pairs"] == 4);
  CHECK(h["head_block"] == 1);
  CHECK(h["layers"][0] == json{{"k_pairs", {0, 0, 1, 2, 3}},
                               {"k_blocks", {0, 1, 1, 0, 1}},
                               {"q_pairs", {0, 0, 1, 2, 3}},
                               {"q_blocks", {0, 1, 1, 0, 1}},
                               {"rank_v", 5}});
  CHECK(h["layers"][1] == json{{"k_pairs", {0, 2}}, {"rank_v", 8}});
  CHECK(has(text, "      {\"k_pairs\":[0,2],\"rank_v\":8}\n"));
  CHECK(json::parse(text)["auto_map"]["AutoModelForCausalLM"] == "modeling_llatte.LlatteLlamaForCausalLM");
}

// rope_pairs and head_block have one sensible value in most modes, and may be left out.
TEST_CASE("what may be left out of config.json") {
  const TempFolder t;
  json c = json::parse(hf_config(variants()[2].config, DType::f32));
  c["HLA"].erase("rope"), c["HLA"].erase("rope_pairs"), c["HLA"].erase("head_block");
  write_file_atomic(t / "config.json", c.dump());
  const LlamaConfig read = read_hf_config(t / "config.json");
  CHECK(hf_config(read, DType::f32) == hf_config(variants()[2].config, DType::f32));
}

// The largest and smallest singular value of a random matrix this size differ by a factor of a few: only the
// mean square is compared, and that within a factor of 2.
TEST_CASE("a random start: lifted keys are as large as those of ordinary attention") {
  LlamaConfig c = config(aligned, 4, {{kFive, kNone, 0, 0, 16}, {kFive, kNone, 0, 0, 16}});
  c.hidden_size = 256;
  const auto m = made(c);
  std::map<std::string, Vec> p;
  m->params("", [&](const std::string& name, Var& w) { p[name] = to_vec(w.value); });
  for (const int64_t pair : {0, 1, 3}) {  // of two planes, one and two
    double sum = 0;
    int64_t n = 0;
    for (int64_t layer = 0; layer < 2; ++layer)
      for (int64_t head = 0; head < 2; ++head)
        for (int64_t d = 0; d < 256; ++d, ++n) {  // a row of k_proj: Re of sum of A_p b_p
          const std::string at = str("model.layers.", layer, ".self_attn.");
          double row = 0;
          for (size_t i = 0; i < 5; ++i)
            if (kFive.pair[i] == pair)
              row += p[at + "A_k_re"][head * 5 + i] * p[at + "W_k_r.weight"][i * 256 + d] -
                     p[at + "A_k_im"][head * 5 + i] * p[at + "W_k_r.weight"][(5 + i) * 256 + d];
          sum += row * row;
        }
    CAPTURE(pair);
    CHECK(sum / double(n) > 0.3 * 0.3 / 3);
    CHECK(sum / double(n) < 0.3 * 0.3 * 3);
  }
}

// Sixty steps on two rows of 120 tokens: the loss starts at log 48.
TEST_CASE("it trains: every parameter has a gradient, and the loss goes down") {
  for (const Variant& v : variants()) {
    CAPTURE(v.name);
    Llama m(v.config, DType::f32);
    m.init(1, 0.05);
    AdamW optimizer(m, {.weight_decay = 0});
    const Tensor in = tokens().slice(1, 0, kTokens - 1).contiguous(),
                 out = tokens().slice(1, 1, kTokens).contiguous();
    double first = 0, last = 0;
    for (int step = 0; step < 60; ++step) {
      const Var loss = m.loss(in, out);
      backward(loss);
      last = to_vec(loss.value)[0];
      if (step == 0) {
        first = last;
        m.params("", [&](const std::string& name, Var& p) { CHECK_MESSAGE(p.grad().defined(), name); });
      }
      optimizer.step(1e-2);
    }
    CHECK(last < first / 2);
  }
}

TEST_CASE("recomputed blocks give the same gradients") {
  for (const Variant& v : variants()) {
    CAPTURE(v.name);
    const auto a = made(v.config), b = made(v.config);
    b->set_recompute(true);
    std::map<std::string, Vec> grads;
    backward(a->loss(tokens(), tokens()));
    backward(b->loss(tokens(), tokens()));
    a->params("", [&](const std::string& name, Var& p) { grads[name] = to_vec(p.grad()); });
    b->params("", [&](const std::string& name, Var& p) { CHECK(to_vec(p.grad()) == grads[name]); });
  }
}

TEST_CASE("what config.json asks for and cannot be is refused by name") {
  const auto layer = [](const char* key, const json& value) {
    return refusal([&](json& c) { c["HLA"]["layers"][1][key] = value; });
  };
  CHECK(has(layer("k_pairs", {0, 4}), "HLA.layers[1]: hla: k_pairs has 4 at place 1; expected 0 to 3"));
  CHECK(has(layer("k_pairs", {2, 0}), "place 1 is pair 0 of block 0"));
  CHECK(has(layer("k_pairs", "all"), "HLA: layers[1]: k_pairs is \"all\", expected a list of numbers"));
  CHECK(has(layer("k_pairs", {0, -1}), "expected a list of numbers of at least 0"));
  CHECK(has(layer("k_pairs", {0, 1e300}), "expected a list of numbers"));
  CHECK(has(layer("k_pairs", {0, 18446744073709551615u}), "expected a list of numbers"));
  CHECK(has(layer("k_blocks", {0}), "k_blocks lists 1 of 2 planes"));
  CHECK(has(layer("rank_v", 0), "rank_v must be positive"));
  CHECK(has(layer("rank_v", nullptr), "HLA: layers[1]: rank_v is missing"));
  CHECK(has(layer("rank_k", 3), "all pairs keep RoPE"));
  const auto whole = [](const char* key, const json& value) {
    return refusal([&](json& c) { c["HLA"][key] = value; });
  };
  CHECK(has(whole("rope", "rotary"),
            "HLA: rope is 'rotary'; have original, latent, aligned, hybrid, unified, latent_literal"));
  CHECK(has(whole("rope_pairs", 5), "rope_pairs is 5, expected 0 to 4"));
  CHECK(has(whole("head_block", 3), "head_block 3 does not divide the 2 kv heads"));
  CHECK(has(whole("layers", json::array()), "HLA.layers lists 0 of 2 layers"));
  CHECK(has(whole("layers", 2), "HLA: layers must be a list"));
  CHECK(has(whole("layers", {1, 2}), "HLA: layers[0] must be a JSON object"));
  CHECK(has(refusal([](json& c) { c["HLA"] = "aligned"; }), "HLA must be a JSON object"));
  CHECK(has(refusal([](json& c) { c["architectures"] = {"Qwen3ForCausalLM"}; }),
            "RMSNorm on q and k (Qwen3) cannot be kept"));
  CHECK(
      has(refusal([](json& c) { c["RoPE"] = json::object(); }), "a model has one kind of latent attention"));
}

TEST_CASE("formats that have no place for it say so") {
  const TempFolder t, out;
  const auto m = made(variants()[2].config);
  save_hf(t.path, *m);
  const Checkpoint c = open_hf(t.path);
  CHECK(has(error_of([&] { save_gguf(out / "x.gguf", c, GgufType::F32); }), "latent attention (HLA)"));
  CHECK(has(error_of([&] { save_deepseek(out.path, c, DType::f32); }), "RoPE inside the latents (HLA)"));
  CHECK(has(error_of([&] { save_nanotron(out.path, c, DType::f32, 1); }), "RoPE inside the latents (HLA)"));
  CHECK(has(error_of([&] { save_hf(out.path, c, DType::f32, MlaLayout::current); }),
            "RoPE inside the latents (HLA)"));
  CHECK(out.entries() == 0);
}

TEST_CASE("weights that are not those of config.json are named") {
  const TempFolder t;
  const auto m = made(variants()[5].config);
  save_hf(t.path, *m);
  json c = json::parse(read_file(t / "config.json"));
  c["HLA"]["layers"][0]["rank_k"] = 5;
  write_file_atomic(t / "config.json", c.dump());
  CHECK(has(error_of([&] { open_hf(t.path); }), "model.layers.0.self_attn.W_down_k.weight"));
}
