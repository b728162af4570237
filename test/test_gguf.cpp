// GGUF files: every fixture against the hashes and logits made by the gguf package and an independent f64
// forward, every malformed file refused in words, and what is written here against what others write.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>
#include <cmath>
#include <cstring>
#include <fstream>
#include <random>
#include "data/files.h"
#include "data/gguf.h"
#include "data/json.h"
#include "data/safetensors.h"
#include "data/tokenizer.h"
#include "models/gguf.h"
#include "models/gguf_rope.h"
#include "models/gguf_tokenizer.h"
#include "models/hf.h"
#include "test/sha256.h"
#include "test/temp_folder.h"

using namespace llatte;
using namespace llatte::test;
namespace fs = std::filesystem;
using nlohmann::json;

namespace {

const fs::path kFixtures = "test/fixtures/gguf";
const fs::path kTiny = "test/fixtures/tiny-llama";
const char* kFiles[] = {"f32", "f16", "bf16", "q8_0", "q4_0", "q4_0_v2", "q4_1", "q6_k", "rope_freqs_f16"};

std::string bytes_of(const Tensor& t) { return {static_cast<const char*>(t.raw()), t.bytes()}; }
std::string bytes_of(const GgufTensor& t) { return {reinterpret_cast<const char*>(t.data), t.bytes}; }

void write_plainly(const fs::path& file, const std::string& text) { std::ofstream(file) << text; }

void check_same_weights(const Checkpoint& a, const Checkpoint& b) {
  REQUIRE(a.weights.size() == b.weights.size());
  for (const auto& [name, info] : a.weights) {
    CAPTURE(name);
    const Tensor x = a.read(name, DType::f32), y = b.read(name, DType::f32);
    REQUIRE(x.shape() == y.shape());
    CHECK(bytes_of(x) == bytes_of(y));
  }
}

Checkpoint exported(const TempFolder& t, const Checkpoint& c, GgufType type) {
  save_gguf(t / "out.gguf", c, type);
  return open_gguf(t / "out.gguf");
}

}  // namespace

TEST_CASE("every tensor of every fixture has the expected bits after dequantisation and un-permutation") {
  const json files = read_json(kFixtures / "files.json").at("files");
  int checked = 0;
  for (const auto& [file, what] : files.items()) {
    CAPTURE(file);
    const Checkpoint c = open_gguf(kFixtures / file);
    if (!what.contains("sha256_f32")) continue;  // rope_freqs_f16: its weights are f16.gguf's, see below
    CHECK(c.weights.size() == what.at("sha256_f32").size());
    for (const auto& [name, info] : c.weights) {
      CAPTURE(name);
      CHECK(sha256(bytes_of(c.read(name, DType::f32))) == what.at("sha256_f32").at(name).get<std::string>());
      ++checked;
    }
    for (const auto& [name, type] : what.at("tensors").items())
      CHECK(info_of(GgufFile::open(kFixtures / file).tensors().at(name).type).name == type);
  }
  CHECK(checked >= 7 * 11);
  check_same_weights(open_gguf(kFixtures / "q4_0_v2.gguf"), open_gguf(kFixtures / "q4_0.gguf"));
  check_same_weights(open_gguf(kFixtures / "rope_freqs_f16.gguf"), open_gguf(kFixtures / "f16.gguf"));
  check_same_weights(open_gguf(kFixtures / "f32.gguf"), open_hf(kFixtures / "hf"));
}

TEST_CASE("logits of every fixture") {
  const auto golden = SafetensorsFile::open(kFixtures / "golden.safetensors");
  for (const char* file : kFiles) {
    CAPTURE(file);
    const auto model = load_model(open_gguf(kFixtures / (std::string(file) + ".gguf")), DType::f32);
    std::string key(file);
    if (key == "q4_0_v2") key = "q4_0";
    if (key != "rope_freqs_f16") std::transform(key.begin(), key.end(), key.begin(), ::toupper);
    const Var hidden = model->hidden(golden.read("tokens"));
    const auto got = model->logits(hidden).value.to(DType::f64).to_vector<double>();
    const auto want = golden.read("logits." + key).to_vector<double>();
    REQUIRE(got.size() == want.size());
    double worst = 0;
    for (size_t i = 0; i < got.size(); ++i) {
      const double d = std::abs(got[i] - want[i]);
      worst = std::isnan(d) ? INFINITY : std::max(worst, d);
    }
    // f32 against f64 from the same weights: another f32 program (files.json) is 1.6e-6 away, and 1e-5 leaves
    // room for another order of summation; a wrong pair or frequency shows above 1e-3.
    CHECK(worst <= 1e-5);
  }
}

TEST_CASE("the config that the metadata hold is the Hugging Face folder's") {
  const Checkpoint g = open_gguf(kFixtures / "q8_0.gguf"), h = open_hf(kFixtures / "hf");
  const TempFolder t;
  LlamaConfig c = h.config;
  write_hf_config(t / "hf.json", c, DType::f32);
  write_hf_config(t / "gguf.json", g.config, DType::f32);
  CHECK(read_json(t / "gguf.json") == read_json(t / "hf.json"));
  CHECK(g.format == "gguf");
  CHECK(g.dtype() == DType::f32);  // bf16 would round its values
  CHECK(open_gguf(kFixtures / "bf16.gguf").dtype() == DType::bf16);
  CHECK(open_gguf(kFixtures / "f32.gguf").dtype() == DType::f32);
  CHECK(g.weights.front().second.dtype == "Q8_0");
  CHECK(open_checkpoint(kFixtures / "f16.gguf").format == "gguf");
  fs::copy_file(kFixtures / "f16.gguf", t / "no-extension");
  CHECK(open_checkpoint(t / "no-extension").format == "gguf");
  write_plainly(t / "other", "GG");
  CHECK(has(error_of([&] { open_checkpoint(t / "other"); }), "neither a .gguf file nor a folder"));
}

TEST_CASE("the tokenizer in the metadata gives the ids of the tokenizer.json") {
  const Checkpoint c = open_gguf(kFixtures / "f32.gguf");
  const Tokenizer t = Tokenizer::parse(c.tokenizer_json, "f32.gguf");
  for (const json& one : read_json(kFixtures / "hf/tokenizer_cases.json")) {
    CAPTURE(one.dump());
    CHECK(t.encode(one["text"].get<std::string>()) == one["ids"].get<std::vector<int32_t>>());
  }
  CHECK(t.is_special(1));
  CHECK_FALSE(t.is_special(3));
}

// ---- what is refused -------------------------------------------------------------------------------------

TEST_CASE("every malformed file is refused by a sentence that names it and the reason") {
  const std::map<std::string, std::string> reasons = {
      {"control_ok", "llama.feed_forward_length is missing"},
      {"empty", "the magic 'GGUF' needs 4 bytes"},
      {"magic_only", "the version needs 4 bytes at byte 4"},
      {"bad_magic", "does not begin with 'GGUF'"},
      {"version_0", "version 0 is not supported, only 2 and 3"},
      {"version_1", "version 1 is not supported"},
      {"version_99", "version 99 is not supported"},
      {"big_endian", "big-endian"},
      {"truncated_header", "but the file ends at byte 200"},
      {"truncated_tensor_info", "but the file ends at byte 198"},
      {"truncated_data", "is it cut short?"},
      {"tensor_count_huge", "the number of tensors is 1152921504606846976"},
      {"kv_count_huge", "the number of metadata is 1152921504606846976"},
      {"string_len_huge", "needs 9223372036854775808 bytes"},
      {"key_len_huge", "a metadata key needs 18446744073709551615 bytes"},
      {"array_count_huge", "is 2305843009213693952, more than"},
      {"array_of_arrays_deep", "array of arrays"},
      {"array_bad_elem_type", "unknown metadata type 77"},
      {"bad_value_type", "unknown metadata type 13"},
      {"duplicate_key", "'llama.block_count' is there twice"},
      {"invalid_utf8_key", "is not valid UTF-8"},
      {"bool_seven", "a bool of value 7"},
      {"duplicate_tensor", "the tensor 'a' is there twice"},
      {"dims_zero", "has 0 dimensions"},
      {"dims_many", "has 9 dimensions, expected 1 to 4"},
      {"dims_overflow", "overflows 63 bits"},
      {"dim_zero", "a dimension of 0"},
      {"ndims_huge", "has 2147483648 dimensions"},
      {"unknown_type", "type 999, which is not supported"},
      {"removed_type_q4_2", "type 4, which is not supported"},
      {"row_not_block", "rows of 33 values, no whole number of Q8_0 blocks"},
      {"offset_unaligned", "no multiple of the alignment 32"},
      {"offset_past_end", "the file has only"},
      {"offset_overflow", "the file has only"},
      {"overlap", "overlaps another"},
      {"alignment_zero", "general.alignment is 0"},
      {"alignment_odd", "general.alignment is 24"},
      {"alignment_string", "general.alignment must be a u32, not text"},
      {"no_architecture", "general.architecture is missing"},
      {"arch_gemma", "general.architecture 'gemma' is not supported"},
      {"arch_not_string", "general.architecture is of type u32"},
      {"no_tensors", "holds no tensors"},
      {"heads_zero", "attention.head_count 0"}};
  const json listed = read_json(kFixtures / "malformed/malformed.json").at("cases");
  CHECK(listed.size() == reasons.size());
  for (const auto& [file, why] : listed.items()) {
    const std::string error = error_of([&, f = file] { open_checkpoint(kFixtures / "malformed" / f); });
    CAPTURE(error);
    CHECK(has(error, file));
    CHECK_MESSAGE(has(error, reasons.at(fs::path(file).stem())), file);
    CHECK(error.size() < 400);
  }
}

TEST_CASE("a file cut anywhere is refused") {
  const TempFolder t;
  const fs::path file = t / "cut.gguf";
  write_plainly(file, read_file(kFixtures / "q4_0.gguf"));
  const size_t size = fs::file_size(file), header = 6000;  // the tensors begin before
  for (size_t cut = size - 1; cut > 0; cut -= cut > header ? 509 : 1) {
    fs::resize_file(file, cut);
    const std::string error = error_of([&] { open_gguf(file); });
    CAPTURE(cut);
    CHECK_MESSAGE(has(error, "cut.gguf"), error);
  }
}

TEST_CASE("a file with any byte changed gives an error or a model, never a crash") {
  const std::string whole = read_file(kFixtures / "q4_0.gguf");
  const TempFolder t;
  write_plainly(t / "bad.gguf", whole);
  std::mt19937 rng(11);
  int opened = 0, refused = 0;
  for (int trial = 0; trial < 4000; ++trial) {
    std::string bad = whole;
    for (int flips = 1 + trial % 3; flips > 0; --flips)
      bad[rng() % 6300] ^= static_cast<char>(1 + rng() % 255);
    std::fstream(t / "bad.gguf", std::ios::in | std::ios::out) << bad;  // in place: fast
    try {
      const Checkpoint c = open_gguf(t / "bad.gguf");
      for (const auto& [name, info] : c.weights) c.read(name, DType::f32);
      ++opened;
    } catch (const Error& e) {
      CHECK(has(e.what(), "bad.gguf"));
      ++refused;
    }
  }
  CHECK(opened > 0);
  CHECK(refused > 0);
}

namespace {

using Metadata = std::vector<std::pair<std::string, GgufValue>>;

// The error for a file of one tensor with these metadata after the architecture's.
std::string refusal(const Metadata& more, const std::string& tensor = "token_embd.weight") {
  const TempFolder t;
  Metadata m{{"general.architecture", gguf_text("llama")},
             {"llama.context_length", gguf_u32(16)},
             {"llama.embedding_length", gguf_u32(8)},
             {"llama.block_count", gguf_u32(1)},
             {"llama.feed_forward_length", gguf_u32(16)},
             {"llama.attention.head_count", gguf_u32(2)},
             {"llama.attention.layer_norm_rms_epsilon", gguf_f32(1e-5)}};
  for (const auto& [key, value] : more) {
    std::erase_if(m, [&, k = key](const auto& p) { return p.first == k; });
    m.emplace_back(key, value);
  }
  write_gguf(t / "m.gguf", m,
             {{tensor,
               GgufType::F32,
               {4, 8},
               [] {
                 return Tensor::zeros({4, 8});
               },
               nullptr}});
  return error_of([&] { open_gguf(t / "m.gguf"); });
}

}  // namespace

TEST_CASE("metadata that would change the numbers are refused by name") {
  CHECK(has(refusal({}), "model.norm.weight is missing"));
  CHECK(has(refusal({}, "blk.0.other"), "token_embd.weight is missing"));
  CHECK(has(refusal({{"llama.rope.scaling.type", gguf_text("yarn")}}), "rope.scaling.type 'yarn'"));
  CHECK(has(refusal({{"llama.rope.scale_linear", gguf_f32(2)}}), "rope.scale_linear 2"));
  CHECK(has(refusal({{"llama.expert_count", gguf_u32(8)}}), "expert_count 8 is not supported"));
  CHECK(has(refusal({{"llama.attention.value_length", gguf_u32(6)}}), "attention.value_length 6"));
  CHECK(has(refusal({{"llama.rope.dimension_count", gguf_u32(2)}}), "rope.dimension_count 2"));
  CHECK(has(refusal({{"llama.block_count", gguf_u32(4000000000)}}),
            "block_count is 4000000000, beyond any model"));
  CHECK(has(refusal({{"llama.block_count", gguf_u32(100000)}}), "block_count is 100000, the file has 1"));
  CHECK(has(refusal({{"llama.block_count", gguf_text("1")}}), "is of type text, expected an integer"));
  CHECK(has(refusal({{"llama.attention.head_count", gguf_i32s({2, 2})}}), "is of type array of i32"));
  CHECK(has(refusal({{"llama.rope.freq_base", gguf_u32(5)}}), "expected a floating-point number"));
  CHECK(has(refusal({{"split.count", gguf_u32(3)}}), "one of 3 parts"));
  CHECK(has(refusal({{"general.architecture", gguf_text("gpt2")}}), "'gpt2' is not supported"));
}

TEST_CASE("tokenizers that are not supported are refused by name") {
  const auto error = [](Metadata more) {
    const TempFolder t;
    Metadata m{{"tokenizer.ggml.model", gguf_text("gpt2")},
               {"tokenizer.ggml.pre", gguf_text("smollm")},
               {"tokenizer.ggml.tokens", gguf_texts({"a", "b"})},
               {"tokenizer.ggml.token_type", gguf_i32s({1, 1})}};
    for (const auto& [key, value] : more) {
      std::erase_if(m, [&, k = key](const auto& p) { return p.first == k; });
      m.emplace_back(key, value);
    }
    write_gguf(t / "t.gguf", m, {{"x", GgufType::F32, {1}, [] { return Tensor::zeros({1}); }, nullptr}});
    return error_of([&] { read_gguf_tokenizer(GgufFile::open(t / "t.gguf")); });
  };
  CHECK(has(error({{"tokenizer.ggml.model", gguf_text("llama")}}), "tokenizer.ggml.model is 'llama'"));
  CHECK(has(error({{"tokenizer.ggml.pre", gguf_text("dbrx")}}), "tokenizer.ggml.pre is 'dbrx'"));
  CHECK(has(error({{"tokenizer.ggml.token_type", gguf_i32s({1})}}), "token_type has 1 entries"));
  CHECK(has(error({{"tokenizer.ggml.token_type", gguf_i32s({1, 6})}}), "token_type[1] is 6"));
  CHECK(has(error({{"tokenizer.ggml.tokens", gguf_texts({"a", "\xff"})}}), "tokens[1] is not valid UTF-8"));
  CHECK(has(error({}), "tokenizer.ggml.merges is missing"));
}

// ---- what is written -------------------------------------------------------------------------------------

TEST_CASE("exported bytes are the fixtures'") {
  const Checkpoint hf = open_hf(kFixtures / "hf");
  for (const auto& [type, file] : std::map<GgufType, const char*>{{GgufType::F32, "f32.gguf"},
                                                                  {GgufType::F16, "f16.gguf"},
                                                                  {GgufType::BF16, "bf16.gguf"},
                                                                  {GgufType::Q8_0, "q8_0.gguf"}}) {
    const TempFolder t;
    save_gguf(t / "out.gguf", hf, type);
    const GgufFile got = GgufFile::open(t / "out.gguf"), want = GgufFile::open(kFixtures / file);
    CAPTURE(file);
    CHECK(got.tensors().size() == want.tensors().size());
    for (const auto& [name, tensor] : want.tensors()) {
      CAPTURE(name);
      REQUIRE(got.has_tensor(name));
      CHECK(got.tensors().at(name).type == tensor.type);
      CHECK(got.tensors().at(name).shape == tensor.shape);
      CHECK(bytes_of(got.tensors().at(name)) == bytes_of(tensor));
    }
    CHECK(t.entries() == 1);
  }
}

TEST_CASE("exported metadata are the fixtures'") {
  const TempFolder t;
  save_gguf(t / "out.gguf", open_hf(kFixtures / "hf"), GgufType::F32);
  const GgufFile got = GgufFile::open(t / "out.gguf"), want = GgufFile::open(kFixtures / "f32.gguf");
  for (const char* key : {"context_length", "embedding_length", "block_count", "feed_forward_length",
                          "attention.head_count", "attention.head_count_kv", "rope.dimension_count",
                          "attention.key_length", "attention.value_length", "vocab_size"})
    CHECK(got.integer(std::string("llama.") + key) == want.integer(std::string("llama.") + key));
  for (const char* key : {"llama.rope.freq_base", "llama.attention.layer_norm_rms_epsilon"})
    CHECK(got.number(key) == want.number(key));
  for (const char* key : {"tokenizer.ggml.bos_token_id", "tokenizer.ggml.eos_token_id", "general.file_type"})
    CHECK(got.integer(key) == want.integer(key));
  for (const char* key : {"general.architecture", "tokenizer.ggml.model", "tokenizer.ggml.pre"})
    CHECK(got.text(key) == want.text(key));
  CHECK(got.text("general.name") == "hf");
  CHECK(got.flag("tokenizer.ggml.add_bos_token", true) == want.flag("tokenizer.ggml.add_bos_token", true));
  CHECK(got.texts("tokenizer.ggml.tokens") == want.texts("tokenizer.ggml.tokens"));
  CHECK(got.texts("tokenizer.ggml.merges") == want.texts("tokenizer.ggml.merges"));
  CHECK(got.integers("tokenizer.ggml.token_type") == want.integers("tokenizer.ggml.token_type"));
}

TEST_CASE("out as F32 and in again: every bit, every architecture") {
  for (const char* folder : {"tiny-llama", "tied", "mha", "mqa", "qwen2", "qwen3", "llama3-rope",
                             "e-not-d-over-h", "sharded", "bf16"}) {
    CAPTURE(folder);
    const TempFolder t;
    const Checkpoint a = open_hf(kTiny / folder), b = exported(t, a, GgufType::F32);
    check_same_weights(a, b);
    LlamaConfig c = a.config;
    c.initializer_range = b.config.initializer_range;  // of training only: GGUF has no key for it
    write_hf_config(t / "a.json", c, DType::f32);
    write_hf_config(t / "b.json", b.config, DType::f32);
    CHECK(read_json(t / "a.json") == read_json(t / "b.json"));
    CHECK(rope_frequencies(b.config) == rope_frequencies(c));
  }
}

TEST_CASE("rows that are no whole number of blocks become F16 in a Q8_0 file") {
  const TempFolder t;
  const Checkpoint a = open_hf(kTiny / "mha"), b = exported(t, a, GgufType::Q8_0);
  REQUIRE(a.config.hidden_size % 32 != 0);
  CHECK(b.weights.front().second.dtype == "F16");
  CHECK(GgufFile::open(t / "out.gguf").tensors().at("output_norm.weight").type == GgufType::F32);
}

TEST_CASE("chat template and further token ids survive") {
  const TempFolder t;
  Checkpoint a = open_hf(kFixtures / "hf");
  a.chat_template = "{% for m in messages %}{{ m }}\n{% endfor %}";
  a.config.pad_token_id = 0, a.config.more_eos_token_ids = {1};
  const Checkpoint b = exported(t, a, GgufType::BF16);
  CHECK(b.chat_template == a.chat_template);
  CHECK(b.config.pad_token_id == 0);
  CHECK(b.config.more_eos_token_ids == std::vector<int64_t>{1});
}

TEST_CASE("tokenizers out and in again give the same ids") {
  for (const char* folder : {"digits_strings_plain", "llama3_strings_ignore", "qwen2_nfc"}) {
    CAPTURE(folder);
    const fs::path from = fs::path("test/fixtures/tokenizers") / folder;
    const std::string text = read_file(from / "tokenizer.json");
    const Tokenizer a = Tokenizer::parse(text, folder);
    const TempFolder t;
    write_gguf(t / "t.gguf", gguf_tokenizer(text, a.vocab_size() + 3, folder),
               {{"x", GgufType::F32, {1}, [] { return Tensor::zeros({1}); }, nullptr}});
    const GgufFile file = GgufFile::open(t / "t.gguf");
    CHECK(file.integers("tokenizer.ggml.token_type").back() == 5);
    const Tokenizer b = Tokenizer::parse(read_gguf_tokenizer(file), "back");
    CHECK(b.vocab_size() == a.vocab_size());
    std::ifstream lines(from / "cases.jsonl");
    int n = 0;
    for (std::string line; std::getline(lines, line); ++n)
      CHECK(b.encode(json::parse(line)["text"].get<std::string>()) ==
            json::parse(line)["ids"].get<std::vector<int32_t>>());
    CHECK(n > 100);
  }
}

TEST_CASE("what GGUF cannot say is refused") {
  const TempFolder t;
  Checkpoint c = open_hf(kFixtures / "hf");
  CHECK(has(error_of([&] { save_gguf(t / "x.gguf", c, GgufType::Q6_K); }), "not as Q6_K"));
  const auto tokenizer = [&](const char* folder, int64_t vocab) {
    const std::string text = read_file(fs::path("test/fixtures/tokenizers") / folder / "tokenizer.json");
    return error_of([&] { gguf_tokenizer(text, vocab, folder); });
  };
  CHECK(has(tokenizer("llama3_pairs_plain", 100000), "ignore_merges is 0, but GGUF's name"));
  CHECK(has(tokenizer("digits_strings_plain", 10), "the model has 10 embeddings"));
  c.config.mla = MlaConfig{};
  CHECK(has(error_of([&] { save_gguf(t / "x.gguf", c, GgufType::F32); }), "latent attention"));
  CHECK(t.entries() == 0);
}

// ---- RoPE scaling ----------------------------------------------------------------------------------------

TEST_CASE("the llama3 rule is found from its factors") {
  LlamaConfig c = open_hf(kTiny / "tiny-llama").config;
  c.head_dim = 64, c.rope_theta = 500000;
  for (const RopeScaling& s : {RopeScaling{8, 1, 4, 8192}, RopeScaling{32, 1, 4, 8192}}) {
    c.rope_scaling = s;
    std::vector<double> factors = rope_factors(c);
    for (double& f : factors) f = static_cast<float>(f);  // as they stand in files
    const auto got = scaling_of(factors, c, "f");
    REQUIRE(got.has_value());
    CHECK(got->factor == s.factor);
    CHECK(got->low_freq_factor == 1);
    CHECK(got->high_freq_factor == 4);
    CHECK(got->original_max_position_embeddings == 8192);
  }
  CHECK_FALSE(scaling_of(std::vector<double>(32, 1.0), c, "f").has_value());
}

TEST_CASE("settings nobody published, with no, one or many pairs in the blend, give the same frequencies") {
  LlamaConfig c = open_hf(kTiny / "tiny-llama").config;
  c.rope_theta = 10000;
  for (const int64_t E : {8, 16, 64, 128})
    for (const RopeScaling& s : {RopeScaling{8, 1, 1.0001, 100}, RopeScaling{8, 2, 3, 700},
                                 RopeScaling{2.5, 0.5, 40, 333}, RopeScaling{4, 1, 2, 64}}) {
      c.head_dim = E, c.rope_scaling = s;
      std::vector<double> factors = rope_factors(c);
      for (double& f : factors) f = static_cast<float>(f);
      LlamaConfig back = c;
      back.rope_scaling = scaling_of(factors, c, "f");
      const auto got = rope_factors(back);
      // The factors were rounded to floats (6e-8), and the rule goes through two of them.
      for (size_t j = 0; j < got.size(); ++j) CHECK(std::abs(got[j] - factors[j]) <= 1e-6 * factors[j]);
    }
}

TEST_CASE("factors of other rules are refused") {
  LlamaConfig c = open_hf(kTiny / "tiny-llama").config;
  c.head_dim = 8;
  const auto error = [&](std::vector<double> factors) {
    return error_of([&] { scaling_of(factors, c, "f.gguf: rope_freqs.weight"); });
  };
  CHECK(has(error({1, 2, 1, 4}), "f.gguf: rope_freqs.weight: these factors (1 to 4) follow no llama3 rule"));
  CHECK(has(error({1, 3, 2, 1}), "follow no llama3 rule"));
  CHECK(has(error({1, 1, 8}), "3 factors for the 4 pairs"));
  CHECK(has(error({1, 1, -2, 8}), "a factor is -2"));
  CHECK(has(error({1, 1, NAN, 8}), "a factor is nan"));
}
