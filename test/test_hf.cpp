// Hugging Face folders: what is refused and in which words, exact round trips, and tensors that do not fit.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>
#include <nlohmann/json.hpp>
#include "data/files.h"
#include "data/safetensors.h"
#include "models/hf.h"
#include "test/temp_folder.h"

using namespace llatte;
using namespace llatte::test;
namespace fs = std::filesystem;
using nlohmann::json;

namespace {

const fs::path kTiny = "test/fixtures/tiny-llama";

json read_config(const fs::path& file) { return json::parse(read_file(file)); }

// The error for tiny-llama's config.json with some fields replaced.
std::string refusal(const json& changes) {
  const TempFolder t;
  json c = read_config(kTiny / "tiny-llama/config.json");
  c.update(changes);
  write_file_atomic(t / "config.json", c.dump());
  return error_of([&] { read_hf_config(t / "config.json"); });
}

using Tensors = std::vector<std::pair<std::string, Tensor>>;

Tensors tensors_of(const fs::path& folder) {
  const auto file = SafetensorsFile::open_folder(folder);
  Tensors r;
  for (const auto& [name, entry] : file.entries()) r.emplace_back(name, file.read(name));
  return r;
}

void write_model(const TempFolder& t, const fs::path& config_of, const Tensors& tensors) {
  fs::copy_file(config_of / "config.json", t / "config.json", fs::copy_options::overwrite_existing);
  write_safetensors(t / "model.safetensors", tensors);
}

std::map<std::string, Tensor> params_of(Llama& m) {
  std::map<std::string, Tensor> r;
  m.params("", [&](const std::string& name, Var& p) { r[name] = p.value; });
  return r;
}

void check_same(Llama& a, Llama& b) {
  const auto x = params_of(a), y = params_of(b);
  REQUIRE(x.size() == y.size());
  for (const auto& [name, t] : x) {
    CAPTURE(name);
    REQUIRE(y.at(name).shape() == t.shape());
    CHECK(t.to(DType::f64).to_vector<double>() == y.at(name).to(DType::f64).to_vector<double>());
  }
}

}  // namespace

TEST_CASE("every config of refuse/ is refused, naming file, field and value") {
  const std::map<std::string, std::vector<std::string>> words = {
      {"heads_not_divisible", {"num_attention_heads 4", "num_key_value_heads 3"}},
      {"hidden_act_gelu", {"hidden_act 'gelu'", "only silu"}},
      {"missing_vocab", {"vocab_size is missing"}},
      {"negative_hidden", {"hidden_size is -32"}},
      {"odd_head_dim", {"head_dim is 7", "even"}},
      {"rope_dynamic", {"rope_scaling", "'dynamic'", "llama3"}},
      {"rope_linear_old_key", {"rope_scaling", "'linear'"}},
      {"rope_longrope", {"rope_scaling", "'longrope'"}},
      {"rope_v5_yarn", {"rope_parameters", "'yarn'"}},
      {"rope_yarn", {"rope_scaling", "'yarn'"}},
      {"unknown_arch", {"GPT2LMHeadModel", "LlamaForCausalLM"}},
      {"zero_layers_heads", {"num_attention_heads is 0"}}};
  const json listed = read_config(kTiny / "refuse/refuse.json").at("cases");
  CHECK(listed.size() == words.size());
  for (const auto& item : listed.items()) {
    const std::string stem = fs::path(item.key()).stem();
    const std::string error = error_of([&] { read_hf_config(kTiny / "refuse" / item.key()); });
    CAPTURE(error);
    CHECK(has(error, item.key()));
    for (const auto& w : words.at(stem)) CHECK_MESSAGE(has(error, w), w);
  }
}

TEST_CASE("other fields that would change the numbers, and fields of the wrong type") {
  CHECK(has(refusal({{"attention_bias", true}}), "attention_bias true is not supported"));
  CHECK(has(refusal({{"mlp_bias", true}}), "mlp_bias true is not supported"));
  CHECK(has(refusal({{"use_sliding_window", true}}), "use_sliding_window true"));
  CHECK(has(refusal({{"partial_rotary_factor", 0.5}}), "partial_rotary_factor 0.5"));
  CHECK(has(refusal({{"quantization_config", {{"bits", 4}}}}), "quantization_config"));
  CHECK(has(refusal({{"hidden_size", "64"}}), "hidden_size is \"64\", expected an integer"));
  CHECK(has(refusal({{"hidden_size", 64.5}}), "hidden_size is 64.5, expected an integer"));
  CHECK(has(refusal({{"hidden_size", 18446744073709551615ull}}), "expected an integer"));
  CHECK(has(refusal({{"rms_norm_eps", "small"}}), "rms_norm_eps is \"small\", expected a number"));
  CHECK(has(refusal({{"tie_word_embeddings", 1}}), "tie_word_embeddings is 1, expected true or false"));
  CHECK(has(refusal({{"architectures", json::array()}}), "architectures is []"));
  CHECK(has(refusal({{"rope_scaling", "llama3"}}), "rope_scaling must be a JSON object"));
  CHECK(has(refusal({{"rope_scaling", {{"rope_type", "llama3"}, {"factor", 8.0}}}}),
            "low_freq_factor is missing"));
  CHECK(has(refusal({{"head_dim", nullptr}, {"hidden_size", 65}}), "head_dim is missing"));
  CHECK(has(error_of([] { read_hf_config("test/fixtures/none/config.json"); }),
            "test/fixtures/none/config.json"));
  const TempFolder t;
  write_file_atomic(t / "config.json", "[1]");
  CHECK(has(error_of([&] { read_hf_config(t / "config.json"); }), "must be a JSON object, it is [1]"));
  write_file_atomic(t / "config.json", "{\"a\":");
  CHECK(has(error_of([&] { read_hf_config(t / "config.json"); }), "config.json"));
}

TEST_CASE("transformers 5 spells RoPE differently and means the same") {
  for (const char* v : {"tiny-llama", "llama3-rope"}) {
    const LlamaConfig a = read_hf_config(kTiny / v / "config.json"),
                      b = read_hf_config(kTiny / v / "config_v5.json");
    CHECK(rope_frequencies(a) == rope_frequencies(b));
    CHECK(a.rope_scaling.has_value() == b.rope_scaling.has_value());
  }
  CHECK(read_hf_config(kTiny / "llama3-rope/config_v5.json").rope_scaling->original_max_position_embeddings ==
        64);
}

TEST_CASE("end-of-text may be a list") {
  const TempFolder t;
  json c = read_config(kTiny / "tiny-llama/config.json");
  c["eos_token_id"] = {2, 7};
  write_file_atomic(t / "config.json", c.dump());
  const LlamaConfig read = read_hf_config(t / "config.json");
  CHECK(read.eos_token_id == 2);
  CHECK(read.more_eos_token_ids == std::vector<int64_t>{7});
  write_hf_config(t / "again.json", read, DType::f32);
  CHECK(read_config(t / "again.json")["eos_token_id"] == json{2, 7});
}

TEST_CASE("save and load: every bit, every architecture, every dtype") {
  for (const auto& entry : fs::directory_iterator(kTiny)) {
    if (!fs::exists(entry.path() / "config.json")) continue;
    CAPTURE(entry.path());
    for (const DType t : {DType::f32, DType::bf16, DType::f64}) {
      const TempFolder to;
      const auto a = load_hf(entry.path(), t);
      save_hf(to.path, *a);
      check_same(*a, *load_hf(to.path, t));
      const json was = read_config(entry.path() / "config.json"), is = read_config(to / "config.json");
      for (const char* key : {"architectures", "model_type", "rope_theta", "rope_scaling", "rms_norm_eps",
                              "tie_word_embeddings", "bos_token_id", "eos_token_id", "hidden_act",
                              "max_position_embeddings", "initializer_range"})
        CHECK_MESSAGE(is.at(key) == was.at(key), key);
      CHECK(is.at("torch_dtype") == (t == DType::bf16  ? "bfloat16"
                                     : t == DType::f64 ? "float64"
                                                       : "float32"));
    }
  }
}

TEST_CASE("save_hf writes what `get` hands in: f32 masters of a bf16 model") {
  const TempFolder to;
  const auto model = load_hf(kTiny / "tiny-llama", DType::bf16);
  save_hf(to.path, *model, [](const std::string&, const Var& p) { return Tensor::full(p.shape(), 0.1); });
  CHECK(open_hf(to.path).dtype() == DType::f32);
  CHECK(read_config(to / "config.json").at("torch_dtype") == "float32");
  const auto file = SafetensorsFile::open_folder(to.path);
  CHECK(file.metadata().at("format") == "pt");
  CHECK(file.read("model.norm.weight").to_vector<float>()[3] == 0.1f);
}

TEST_CASE("the dtype of a checkpoint") {
  CHECK(open_hf(kTiny / "bf16").dtype() == DType::bf16);
  CHECK(open_hf(kTiny / "mha").dtype() == DType::f32);
  CHECK(open_hf(kTiny / "sharded").dtype() == DType::f32);
}

TEST_CASE("missing, surplus and wrongly shaped tensors are listed in one error") {
  const TempFolder t;
  Tensors ts = tensors_of(kTiny / "mha");
  std::erase_if(ts, [](const auto& p) {
    return p.first == "model.norm.weight" || p.first == "model.layers.1.mlp.up_proj.weight";
  });
  for (auto& [name, x] : ts)
    if (name == "model.embed_tokens.weight") x = Tensor::zeros({47, 24});
  ts.emplace_back("model.layers.2.extra.weight", Tensor::zeros({2}));
  ts.emplace_back("model.layers.0.self_attn.rotary_emb.inv_freq", Tensor::zeros({3}));
  write_model(t, kTiny / "mha", ts);
  const std::string e = error_of([&] { load_hf(t.path, DType::f32); });
  CAPTURE(e);
  CHECK(has(e, "model.norm.weight is missing"));
  CHECK(has(e, "model.layers.1.mlp.up_proj.weight is missing"));
  CHECK(has(e, "model.embed_tokens.weight is (47,24), the config asks for (48,24)"));
  CHECK(has(e, "model.layers.2.extra.weight is not part of this model"));
  CHECK_FALSE(has(e, "inv_freq"));
}

TEST_CASE("rotary buffers are ignored") {
  const TempFolder t;
  Tensors ts = tensors_of(kTiny / "mha");
  ts.emplace_back("model.layers.0.self_attn.rotary_emb.inv_freq", Tensor::zeros({3}));
  write_model(t, kTiny / "mha", ts);
  check_same(*load_hf(t.path, DType::f32), *load_hf(kTiny / "mha", DType::f32));
}

TEST_CASE("a tied model may bring its head along, if it is the embedding") {
  const TempFolder t;
  Tensors ts = tensors_of(kTiny / "tied");
  Tensor head;
  for (const auto& [name, x] : ts)
    if (name == "model.embed_tokens.weight") head = x.clone();
  ts.emplace_back("lm_head.weight", head);
  write_model(t, kTiny / "tied", ts);
  check_same(*load_hf(t.path, DType::f32), *load_hf(kTiny / "tied", DType::f32));
  head.data<float>()[5] += 1;
  write_model(t, kTiny / "tied", ts);
  CHECK(has(error_of([&] { load_hf(t.path, DType::f32); }),
            "lm_head.weight differs from model.embed_tokens.weight"));
}

TEST_CASE("a config far larger than its weights is refused before memory is asked for") {
  const TempFolder t;
  json c = read_config(kTiny / "mha/config.json");
  c["hidden_size"] = c["intermediate_size"] = 1 << 20;
  c["num_hidden_layers"] = 1000;
  write_safetensors(t / "model.safetensors", tensors_of(kTiny / "mha"));
  write_file_atomic(t / "config.json", c.dump());
  CHECK(has(error_of([&] { load_hf(t.path, DType::f32); }), "the weights hold"));
}

TEST_CASE("f16 on disk widens exactly") {
  const TempFolder t;
  const auto file = SafetensorsFile::open_folder(kTiny / "mha");
  // 0x3555 is the f16 nearest to 1/3: 1365/4096. Written by hand, since no tensor of ours is f16.
  std::string header = "{", bytes;
  for (const auto& [name, e] : file.entries()) {
    const size_t begin = bytes.size(), n = static_cast<size_t>(numel_of(e.shape));
    for (size_t i = 0; i < n; ++i) bytes += "\x55\x35";
    json shape = e.shape;
    if (header.size() > 1) header += ",";
    header += str('"', name, "\":{\"dtype\":\"F16\",\"shape\":", shape.dump(), ",\"data_offsets\":[", begin,
                  ",", bytes.size(), "]}");
  }
  header += "}";
  std::string length(8, '\0');
  for (int i = 0; i < 8; ++i) length[static_cast<size_t>(i)] = static_cast<char>(header.size() >> (8 * i));
  write_file_atomic(t / "model.safetensors", length + header + bytes);
  fs::copy_file(kTiny / "mha/config.json", t / "config.json");
  const auto model = load_hf(t.path, DType::f32);
  for (const auto& [name, x] : params_of(*model)) CHECK(x.to_vector<float>()[0] == 1365.0f / 4096);
}

// ---- MLA: RoPE and SVD, and the pairs that keep RoPE ------------------------------------------------------

namespace {

const fs::path kScored = "test/fixtures/tiny-mla/nanotron-era/hf_v4_m7";

// hf_v4_m7 with other fields in RoPE or SVD, without its scores unless they are asked for.
void copy_scored(const TempFolder& t, const json& rope, const json& svd = json::object(),
                 bool scores = false) {
  json c = read_config(kScored / "config.json");
  c["RoPE"].update(rope), c["SVD"].update(svd);
  write_file_atomic(t / "config.json", c.dump());
  fs::copy_file(kScored / "model.safetensors", t / "model.safetensors", fs::copy_options::overwrite_existing);
  if (scores) fs::copy_file(kScored / "qk_tensor.safetensors", t / "elsewhere.safetensors");
}

SvdMethod method_of(const json& svd) {
  const TempFolder t;
  json c = read_config(kScored / "config.json");
  c["SVD"] = svd;
  write_file_atomic(t / "config.json", c.dump());
  return read_hf_config(t / "config.json").mla->svd.method;
}

}  // namespace

TEST_CASE("SVD.method: a number, a word for the two without one, or by its older name") {
  CHECK(method_of({{"method", 2}, {"low_rank", 6}}) == SvdMethod::split);
  CHECK(method_of({{"version", 7}, {"low_rank", 6}}) == SvdMethod::joint);
  CHECK(method_of({{"method", "only_key"}, {"low_rank", 6}}) == SvdMethod::only_key);
  CHECK(method_of({{"method", "only_value"}, {"low_rank", 6}}) == SvdMethod::only_value);
  CHECK(method_of({{"method", 0}}) == SvdMethod::none);
  for (const json& wrong : {json(8), json(-1), json("both"), json(1.5)})
    CHECK(has(error_of([&] { method_of({{"method", wrong}, {"low_rank", 6}}); }), "SVD: method is "));
}

TEST_CASE("RoPE and SVD are written as they were read") {
  for (const json& method : {json(0), json(3), json("only_key"), json("only_value")}) {
    const TempFolder t;
    json c = read_config(kScored / "config.json");
    c["SVD"]["method"] = method;
    write_file_atomic(t / "config.json", c.dump());
    write_hf_config(t / "again.json", read_hf_config(t / "config.json"), DType::f32);
    const json again = read_config(t / "again.json");
    CHECK(again["SVD"] == c["SVD"]);
    CHECK(again["RoPE"] == c["RoPE"]);
    CHECK(!again.contains("auto_map"));  // the pairs are not known yet: transformers could not run it
  }
}

TEST_CASE(
    "pairs chosen by score: from qk_tensor_path, seen from the folder, or from the file beside config.json") {
  const KeptPairs pairs = open_hf(kScored).config.mla->kept;
  REQUIRE(pairs.size() == 2);
  const TempFolder t;
  copy_scored(t, {{"qk_tensor_path", "elsewhere.safetensors"}}, json::object(), true);
  CHECK(open_hf(t.path).config.mla->kept == pairs);
  fs::rename(t / "elsewhere.safetensors", t / "qk_tensor.safetensors");
  CHECK(open_hf(t.path).config.mla->kept == pairs);
  fs::remove(t / "qk_tensor.safetensors");

  const Checkpoint lost = open_hf(t.path);  // still good for another format
  CHECK(lost.config.mla->kept.empty());
  save_checkpoint(t / "moved", lost, "hf", "f32");
  CHECK(!fs::exists(t / "moved/modeling_llatte.py"));
  const std::string said = error_of([&] { load_model(lost, DType::f32); });
  CHECK(has(said, "qk_tensor.safetensors is missing"));
  CHECK(has(said, "calibrate"));
}

TEST_CASE("RoPE.kept_pairs of config.json stand in for the scores, and may not contradict them") {
  const KeptPairs pairs = open_hf(kScored).config.mla->kept;
  const TempFolder t;
  copy_scored(t, {{"kept_pairs", pairs}});
  CHECK(open_hf(t.path).config.mla->kept == pairs);
  save_checkpoint(t / "again", open_hf(t.path), "hf", "f32");  // with scores that lead to the same pairs
  json without = read_config(t / "again/config.json");
  without["RoPE"].erase("kept_pairs");
  write_file_atomic(t / "again/config.json", without.dump());
  CHECK(open_hf(t / "again").config.mla->kept == pairs);

  const auto refused = [&](const json& kept) {
    copy_scored(t, {{"kept_pairs", kept}});
    return error_of([&] { open_hf(t.path); });
  };
  KeptPairs wrong = pairs;
  wrong[0][0].pop_back();
  CHECK(has(refused(wrong), "kept_pairs in config.json are not the pairs"));
  wrong[0][0] = {0, 1, 99};
  CHECK(has(refused(wrong), "pair 99 in layer 0, expected 0 to 7"));
  wrong.pop_back();
  CHECK(has(refused(wrong), "kept_pairs: 1 layers, expected 2"));
  CHECK(has(refused("all"), "kept_pairs must be a list, by layer and kv head"));
  CHECK(has(refused({{1, 2}}), "kept_pairs must be a list, by layer and kv head"));
}
