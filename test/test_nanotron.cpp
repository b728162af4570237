// nanotron checkpoints: every layout gives the weights of its Hugging Face twin bit for bit, an export is
// what nanotron writes, file by file, and what is broken is refused in a sentence that names it.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>
#include "data/files.h"
#include "data/safetensors.h"
#include "data/sharded_tensor.h"
#include "models/hf.h"
#include "models/nanotron.h"
#include "test/temp_folder.h"

using namespace llatte;
using namespace llatte::test;
namespace fs = std::filesystem;
using nlohmann::json;

namespace {

const fs::path kFixtures = "test/fixtures/nanotron";
const fs::path kQkv = "model/model/decoder/0/pp_block/attn/qkv_proj";

std::vector<double> numbers(const Tensor& t) { return t.to(DType::f64).to_vector<double>(); }

void check_same_weights(const Checkpoint& got, const Checkpoint& want, DType t) {
  REQUIRE(got.weights.size() == want.weights.size());
  for (size_t i = 0; i < want.weights.size(); ++i) {
    const auto& [name, info] = want.weights[i];
    CAPTURE(name);
    CHECK(got.weights[i].first == name);
    CHECK(got.weights[i].second.shape == info.shape);
    const Tensor x = got.read(name, t), y = want.read(name, t);
    CHECK(x.dtype() == t);
    CHECK(x.shape() == info.shape);
    CHECK(numbers(x) == numbers(y));
  }
}

// Files below `folder`, by their paths from there.
std::set<std::string> tree(const fs::path& folder) {
  std::set<std::string> r;
  for (const auto& e : fs::recursive_directory_iterator(folder))
    if (e.is_regular_file()) r.insert(fs::relative(e.path(), folder).string());
  return r;
}

std::string data_bytes(const SafetensorsFile& f) {
  const auto& e = f.entries().at("data");
  return {reinterpret_cast<const char*>(e.data), e.bytes};
}

void check_same_file(const fs::path& ours, const fs::path& theirs) {
  const auto a = SafetensorsFile::open(ours), b = SafetensorsFile::open(theirs);
  REQUIRE(a.entries().size() == 1);
  CHECK(a.entries().at("data").dtype == b.entries().at("data").dtype);
  CHECK(a.entries().at("data").shape == b.entries().at("data").shape);
  CHECK(data_bytes(a) == data_bytes(b));
  CHECK(a.metadata() == b.metadata());
  CHECK(fs::file_size(ours) == fs::file_size(theirs));  // so the headers differ in the order of keys at most
}

// The error for a copy of llama_tp2 after `spoil`, which gets the step's folder.
template <class F>
std::string refusal(F&& spoil) {
  const TempFolder t;
  fs::copy(kFixtures / "llama_tp2", t / "c", fs::copy_options::recursive);
  spoil(t / "c/10");
  return error_of([&] { open_nanotron(t / "c"); });
}

fs::path qkv_shard(const fs::path& step, int tp) {
  return step / kQkv / str("model_weight_pp-rank-0-of-1_tp-rank-", tp, "-of-2.safetensors");
}

// One shard written again with other metadata, or another shape.
void rewrite(const fs::path& file, const std::map<std::string, std::string>& changes,
             DType dtype = DType::f32) {
  const auto f = SafetensorsFile::open(file);
  auto metadata = f.metadata();
  for (const auto& [key, value] : changes) metadata[key] = value;
  const Tensor x = f.read("data", dtype);
  write_safetensors(file, {{"data", x.dtype(), x.shape(), [&] { return x; }}}, metadata, nullptr);
}

std::string refused_pairs(const std::string& pairs) {
  return refusal([&](const fs::path& step) {
    rewrite(qkv_shard(step, 0), {{"local_global_slices_pairs", pairs}});
  });
}

std::string refused_shape(const std::string& shape) {
  return refusal([&](const fs::path& step) {
    for (const int tp : {0, 1}) rewrite(qkv_shard(step, tp), {{"unsharded_shape", shape}});
  });
}

std::string refused_malformed(const std::string& name) {
  return error_of([&] { open_nanotron(kFixtures / "malformed" / name); });
}

Checkpoint hf(const std::string& name) { return open_hf(kFixtures / name); }

}  // namespace

TEST_CASE("every layout gives the weights of its Hugging Face twin, bit for bit") {
  for (const std::string name :
       {"llama_tp1", "llama_tp2", "llama_bare", "tied_tp1", "mla_m7_tp1", "mla_m7_tp2", "mla_m2_tp1"}) {
    CAPTURE(name);
    const Checkpoint got = open_checkpoint(kFixtures / name);
    const Checkpoint want = hf(name.substr(0, name.rfind('_')) + "_hf");
    CHECK(got.format == "nanotron");
    CHECK(got.tokenizer_json.empty());
    CHECK(got.bytes() == want.bytes());
    CHECK(hf_config(got.config, DType::f32) == hf_config(want.config, DType::f32));
    check_same_weights(got, want, DType::f32);
    check_same_weights(got, want, DType::bf16);
  }
}

TEST_CASE("the step's own folder can be given, and rows can be read alone") {
  const Checkpoint c = open_checkpoint(kFixtures / "llama_tp2/10");
  CHECK(c.path == kFixtures / "llama_tp2/10");
  check_same_weights(c, hf("llama_hf"), DType::f64);
  const fs::path step = kFixtures / "llama_tp2/10";
  const auto qkv = ShardedTensor::open({qkv_shard(step, 0), qkv_shard(step, 1)});
  const Tensor whole = qkv.read_rows(0, 32, DType::f32);
  for (int64_t begin = 0; begin < 32; ++begin)  // 0 rows, 1 row, rows of both shards
    for (int64_t end = begin; end <= 32; ++end)
      REQUIRE(numbers(qkv.read_rows(begin, end, DType::f32)) == numbers(whole.slice(0, begin, end)));
  CHECK(error_of([&] { qkv.read_rows(3, 33, DType::f32); }) == "rows 3 to 33 of a tensor of shape (32,16)");
  CHECK(has(error_of([&] { c.read("nope", DType::f32); }), "llama_tp2/10: there is no weight 'nope'"));
}

TEST_CASE("layers may come from several pipeline ranks") {
  const TempFolder t;
  fs::copy(kFixtures / "llama_tp1/10", t / "10", fs::copy_options::recursive);
  std::vector<fs::path> sharded;
  for (const std::string& file : tree(t / "10/model"))
    if (has(file, "_pp-rank-0-of-1")) sharded.push_back(t / ("10/model/" + file));
  for (const fs::path& file : sharded) {
    const char* rank = has(file.string(), "decoder/1") || has(file.string(), "lm_head") ? "1" : "0";
    fs::rename(file,
               file.parent_path() / str("model_weight_pp-rank-", rank, "-of-2_tp-rank-0-of-1.safetensors"));
  }
  check_same_weights(open_nanotron(t / "10"), hf("llama_hf"), DType::f32);
}

// The model computes in f32, whose rounding is 6e-8: a sum of 16 products of numbers below 1, through two
// layers, moves logits of size 1 by less than 1e-5. A wrong row or pair moves them by far more.
TEST_CASE("the models compute the golden logits") {
  for (const std::string name : {"llama_tp1", "llama_tp2", "llama_bare", "tied_tp1"}) {
    CAPTURE(name);
    const auto golden =
        SafetensorsFile::open(kFixtures / (name.substr(0, name.rfind('_')) + "_hf") / "golden.safetensors");
    const auto model = load_model(open_checkpoint(kFixtures / name), DType::f32);
    const NoGrad off;
    const auto got = numbers(model->logits(model->hidden(golden.read("tokens", DType::i32))).value);
    const auto want = numbers(golden.read("logits_f64"));
    REQUIRE(got.size() == want.size());
    for (size_t i = 0; i < got.size(); ++i) REQUIRE(std::abs(got[i] - want[i]) <= 1e-5);
  }
}

TEST_CASE("an export is what nanotron writes, file by file") {
  for (const std::string name : {"llama", "tied", "mla_m7", "mla_m2"}) {
    CAPTURE(name);
    const TempFolder t;
    const fs::path theirs =
        kFixtures / (name + "_tp1") / read_file(kFixtures / (name + "_tp1") / "latest.txt");
    const int64_t step = std::stoll(theirs.filename().string());
    save_nanotron(t / "out", hf(name + "_hf"), DType::f32, step);
    const fs::path ours = t / "out" / theirs.filename().string();
    CHECK(read_file(t / "out/latest.txt") == theirs.filename().string());
    CHECK(tree(t / "out") == tree(kFixtures / (name + "_tp1")));
    for (const std::string& file : tree(theirs / "model")) {
      CAPTURE(file);
      check_same_file(ours / "model" / file, theirs / "model" / file);
    }
    const auto parsed = [](const fs::path& file) { return json::parse(read_file(file)); };
    CHECK(parsed(ours / "model_config.json") == parsed(theirs / "model_config.json"));
    json metadata = parsed(theirs / "checkpoint_metadata.json");
    metadata["metas"]["consumed_train_samples"] = 0;  // a converted model has seen none
    CHECK(parsed(ours / "checkpoint_metadata.json") == metadata);
    check_same_weights(open_nanotron(t / "out"), hf(name + "_hf"), DType::f32);
  }
}

TEST_CASE("config.yaml has nanotron's lines") {
  const TempFolder t;
  save_nanotron(t.path, hf("mla_m7_hf"), DType::f32);
  const auto section = [](const std::string& text, const std::string& begin, const std::string& end) {
    const size_t at = text.find(begin);
    return text.substr(at, text.find(end, at) - at);
  };
  std::string ours = read_file(t / "0/config.yaml");
  std::erase(ours, '"');  // quoted or not is the same word
  const std::string theirs = read_file(kFixtures / "mla_m7_tp1/25/config.yaml");
  CHECK(section(ours, "model:", "parallelism:") == section(theirs, "model:", "optimizer:"));
  CHECK(section(ours, "parallelism:", "tokenizer:") == section(theirs, "parallelism:", "tokenizer:"));
  CHECK(has(ours, "rms_norm_eps: 1.0e-05\n"));
  CHECK(has(ours, "tokenizer_name_or_path: null\n"));
  CHECK(has(ours, "  step: 0\n"));
}

TEST_CASE("Hugging Face -> nanotron -> Hugging Face is exact, in f32 and bf16") {
  for (const DType dtype : {DType::f32, DType::bf16}) {
    for (const std::string name : {"llama_hf", "tied_hf", "mla_m7_hf", "mla_m2_hf"}) {
      CAPTURE(name);
      const TempFolder t;
      save_hf(t.path, hf(name), dtype);
      const std::string weights = read_file(t / "model.safetensors"), config = read_file(t / "config.json");
      save_nanotron(t / "n", open_hf(t.path), dtype);
      const Checkpoint back = open_nanotron(t / "n");
      CHECK(back.dtype() == dtype);
      CHECK(back.weights[0].second.dtype == (dtype == DType::bf16 ? "BF16" : "F32"));
      save_hf(t.path, back, dtype);
      CHECK(read_file(t / "model.safetensors") == weights);
      CHECK(read_file(t / "config.json") == config);
    }
  }
}

TEST_CASE("rope_scaling and token ids survive; further end tokens have no place") {
  const TempFolder t;
  Checkpoint c = hf("llama_hf");
  c.config.rope_scaling = RopeScaling{8, 1, 4, 32};
  c.config.bos_token_id.reset();
  c.config.eos_token_id = 5, c.config.more_eos_token_ids = {6}, c.config.pad_token_id = 7;
  save_nanotron(t.path, c, DType::f32);
  LlamaConfig got = open_nanotron(t.path).config;
  CHECK(got.more_eos_token_ids.empty());
  got.more_eos_token_ids = {6};
  CHECK(hf_config(got, DType::f32) == hf_config(c.config, DType::f32));
}

TEST_CASE("the tokenizer goes along, and is found where config.yaml says") {
  const TempFolder t;
  Checkpoint c = hf("llama_hf");
  c.tokenizer_json = read_file("test/fixtures/tokenizers/digits_strings_plain/tokenizer.json");
  c.chat_template = "{{ messages }}";
  save_nanotron(t / "a", c, DType::f32, 3);
  CHECK(has(read_file(t / "a/3/config.yaml"), "tokenizer_name_or_path: \".\"\n"));
  const Checkpoint back = open_nanotron(t / "a");
  CHECK(back.tokenizer_json == c.tokenizer_json);
  CHECK(back.chat_template == c.chat_template);

  const fs::path config = t / "a/3/config.yaml";
  fs::create_directory(t / "tok");
  fs::rename(t / "a/3/tokenizer.json", t / "tok/tokenizer.json");
  const auto tokenizer_of = [&](const std::string& yaml) {
    write_file_atomic(config, yaml);
    return open_nanotron(t / "a").tokenizer_json;
  };
  const std::string key = "tokenizer: {tokenizer_name_or_path: ";
  CHECK(tokenizer_of(key + (t / "tok").string() + "}") == c.tokenizer_json);
  CHECK(tokenizer_of(key + "../../tok}") == c.tokenizer_json);
  for (const std::string none : {"owner/model}", "null}", "[1]}", "\"\"}"})
    CHECK(tokenizer_of(key + none).empty());
  for (const std::string none : {"", "[]", "tokenizer: 3", "x: y"}) CHECK(tokenizer_of(none).empty());
  CHECK(has(error_of([&] { tokenizer_of("a: [1"); }), "config.yaml: this is not YAML"));
  const std::string deep(100'000, '[');  // no stack may run out
  CHECK(has(error_of([&] { tokenizer_of(deep); }), "config.yaml: this is not YAML"));
}

TEST_CASE("what nanotron has no place for is refused by name, and nothing is written") {
  const TempFolder t;
  const auto refused = [&](const Checkpoint& c, DType d) {
    const std::string e = error_of([&] { save_nanotron(t / "out", c, d); });
    CHECK(t.entries() == 0);
    return e;
  };
  const fs::path tiny = "test/fixtures/tiny-llama";
  CHECK(has(refused(open_hf(tiny / "qwen2"), DType::f32), "no place for the q, k, v biases of Qwen2"));
  CHECK(has(refused(open_hf(tiny / "qwen3"), DType::f32), "no place for the q_norm and k_norm of Qwen3"));
  CHECK(has(refused(open_hf(tiny / "e-not-d-over-h"), DType::f32),
            "nanotron's head_dim is hidden_size / num_attention_heads = "));
  CHECK(has(refused(hf("llama_hf"), DType::f64), "nanotron weights are f32 or bf16, not f64"));
  save_nanotron(t / "out", hf("llama_hf"), DType::f32, 7);
  CHECK(has(error_of([&] { save_nanotron(t / "out", hf("llama_hf"), DType::f32, 7); }),
            "out/7: it exists; choose another folder"));
}

TEST_CASE("a save that fails leaves nothing behind") {
  const TempFolder t;
  Checkpoint c = hf("llama_hf");
  c.read = [read = c.read](const std::string& name, DType d) {
    LLATTE_CHECK(name != "model.norm.weight", "the disk is gone");
    return read(name, d);
  };
  CHECK(error_of([&] { save_nanotron(t.path, c, DType::f32); }) == "the disk is gone");
  CHECK(t.entries() == 0);
}

TEST_CASE("the malformed checkpoints are refused") {
  CHECK(has(refused_malformed("missing_shard"), "attn/qkv_proj: the shard tp-rank-1-of-2 is missing"));
  CHECK(
      has(refused_malformed("bad_slices"), "local_global_slices_pairs has '0,8|None'; expected start,stop,"));
  CHECK(has(
      refused_malformed("slice_out_of_range"),
      "tp-rank-1-of-2.safetensors: slice 90000,90008 of dimension 0 is not within the whole tensor, which "
      "is (32,16)"));
  CHECK(has(refused_malformed("shape_disagrees"), "unsharded_shape (9999,16) differs from (32,16) in "));
  CHECK(has(refused_malformed("huge_shape"),
            "unsharded_shape (1125899906842624,1024) is not what its 2 files hold, 512 numbers"));
  CHECK(has(refused_malformed("latest_missing_dir"), "latest.txt names step 99, but "));
  CHECK(has(refused_malformed("latest_escape"), "'../missing_shard/10' is no step; expected a number"));
}

TEST_CASE("blocks that do not fill the tensor exactly are refused") {
  const std::string all = "|None,None,None", q = "0,8,None" + all + "#0,8,None" + all + ";",
                    k = "8,12,None" + all + "#16,20,None" + all + ";";
  const auto v = [&](const std::string& local, const std::string& global) {
    return q + k + local + all + "#" + global + all;
  };
  CHECK(refused_pairs(v("12,16,None", "24,28,None")) == "no error was thrown");  // as it was
  CHECK(refused_pairs(v("12,16,1", "24,28,1")) == "no error was thrown");        // the same
  CHECK(has(refused_pairs(q + k.substr(0, k.size() - 1)), "the blocks cover 192 of 256 numbers"));
  CHECK(has(refused_pairs(v("8,12,None", "24,28,None")),
            "the blocks [8,12), [0,16) and [8,12), [0,16) overlap"));
  CHECK(has(refused_pairs(v("12,16,None", "18,22,None")), "[16,20), [0,16) and [18,22), [0,16) overlap"));
  CHECK(
      has(refused_pairs(v("12,16,None", "28,32,None")), "[28,32), [0,16) overlap"));  // with the other shard
  CHECK(has(refused_pairs(v("12,16,None", "24,29,None")),
            "a block of (4,16) in the file is said to be (5,16)"));
  CHECK(has(refused_pairs(v("12,17,None", "24,29,None")),
            "slice 12,17 of dimension 0 is not within the file's tensor, which is (16,16)"));
  CHECK(has(refused_pairs(v("16,12,None", "24,28,None")), "slice 16,12 of dimension 0 is not within"));
  for (const std::string bad : {"12,16,2", "12,16", "-4,16,None", "a,16,None", "12,99999999999999999999,None",
                                "12,16,None,None", "", "12,16,None|None,None,None"})
    CHECK_MESSAGE(has(refused_pairs(v(bad, "24,28,None")), "expected start,stop,None for every dimension"),
                  bad);
  for (const std::string bad : {"", "#", ";", "0,8,None", "\x01\n"})
    CHECK_MESSAGE(has(refused_pairs(bad), "local_global_slices_pairs has '"), bad);
  std::string many;
  for (int i = 0; i < 5000; ++i) many += q;
  CHECK(has(refused_pairs(many), "more than 4096 blocks"));
}

TEST_CASE("shapes, dtypes and metadata of shards that do not belong together are refused") {
  for (const std::string bad : {"", "()", "(", "32, 16", "(32; 16)", "(32, -16)", "(0, 16)", "(32,  16)",
                                "[32, 16]", "(32, 16", "(32, 99999999999999999999)", "(,)"})
    CHECK_MESSAGE(has(refused_shape(bad), str("unsharded_shape '", bad, "' is no shape")), bad);
  CHECK(has(refused_shape("(4294967296, 4294967296)"), "is not what its 2 files hold, 512 numbers"));
  CHECK(has(refused_shape("(512,)"), "expected start,stop,None for every dimension"));
  CHECK(has(refused_shape("(64, 8)"), "a block of (8,16) in the file is said to be (8,8)"));
  CHECK(has(refusal([](const fs::path& s) { rewrite(qkv_shard(s, 1), {}, DType::bf16); }),
            "dtype BF16 differs from F32 in "));
  CHECK(has(refusal([](const fs::path& s) {
              const Tensor x = Tensor::zeros({16, 16});
              write_safetensors(qkv_shard(s, 1), {{"data", x}});
            }),
            "tp-rank-1-of-2.safetensors: its metadata have no unsharded_shape"));
  CHECK(has(refusal([](const fs::path& s) {
              const Tensor x = Tensor::zeros({16, 16});
              write_safetensors(qkv_shard(s, 1), {{"data", x}, {"more", x}});
            }),
            "holds 2 tensors, expected one named data"));
}

TEST_CASE("files that do not make the model are refused") {
  const fs::path block = "model/model/decoder/0/pp_block";
  const auto bare = [](const fs::path& s) { return s / kQkv / "model_weight.safetensors"; };
  CHECK(has(refusal([&](const fs::path& s) { fs::remove_all(s / block / "mlp"); }),
            "do not fit model_config.json: decoder/0/pp_block/mlp/gate_up_proj is missing; "
            "decoder/0/pp_block/mlp/down_proj is missing"));
  CHECK(has(refusal([&](const fs::path& s) { fs::rename(s / kQkv, s / block / "attn/odd"); }),
            "decoder/0/pp_block/attn/odd is not part of this model"));
  CHECK(has(refusal([&](const fs::path& s) { fs::copy_file(qkv_shard(s, 0), bare(s)); }),
            "are not shards of one parameter"));
  CHECK(has(refusal([&](const fs::path& s) { fs::rename(qkv_shard(s, 0), s / kQkv / "w.safetensors"); }),
            "w.safetensors: is neither model_weight.safetensors nor of the form"));
  CHECK(has(refusal([&](const fs::path& s) {
              fs::rename(qkv_shard(s, 1),
                         s / kQkv / "model_weight_pp-rank-0-of-1_tp-rank-2-of-2.safetensors");
            }),
            "tp-rank-2-of-2.safetensors: is neither"));
  CHECK(has(refusal([&](const fs::path& s) { fs::remove_all(s / "model"); }),
            "model/model is missing; a nanotron step has its weights there"));
  CHECK(has(refusal([&](const fs::path& s) { fs::resize_file(qkv_shard(s, 1), 500); }),
            "tp-rank-1-of-2.safetensors: "));
}

TEST_CASE("model_config.json that does not fit is refused") {
  const auto with = [](const json& changes) {
    return refusal([&](const fs::path& s) {
      json j = json::parse(read_file(s / "model_config.json"));
      j.update(changes);
      write_file_atomic(s / "model_config.json", j.dump());
    });
  };
  CHECK(has(
      with({{"intermediate_size", 14}}),
      "gate_up_proj is (24,16), the config asks for (28,16); decoder/0/pp_block/mlp/down_proj is (16,12)"));
  CHECK(has(with({{"num_hidden_layers", 3}}), "decoder/2/pp_block/input_layernorm is missing"));
  CHECK(has(with({{"tie_word_embeddings", true}}), "lm_head/pp_block is not part of this model"));
  CHECK(has(with({{"num_hidden_layers", 100000}, {"intermediate_size", 1 << 20}}),
            "model_config.json describes "));
  CHECK(has(with({{"rope_interleaved", true}}), "rope_interleaved true is not supported"));
  CHECK(has(with({{"model_type", "qwen2"}}), "no place for the q, k, v biases of Qwen2"));
  CHECK(has(with({{"SVD", {{"method", 7}, {"low_rank", 2}}},
                  {"RoPE", {{"partial_rope_version", 1}, {"top_k_rope_dim", 1}}}}),
            "decoder/0/pp_block/attn/qkv_proj is not part"));
  CHECK(has(error_of([] { open_nanotron("test/fixtures/tiny-llama/tied"); }),
            "tied is no nanotron checkpoint: it has neither latest.txt nor model_config.json"));
}

TEST_CASE("latest.txt holds a number and nothing else") {
  const TempFolder t;
  for (const std::string bad : {"", "\n", "..", ".", "10/", "/10", "ten", "1 0", "-1"}) {
    write_file_atomic(t / "latest.txt", bad);
    CHECK_MESSAGE(has(error_of([&] { open_nanotron(t.path); }), "is no step; expected a number"), bad);
  }
  fs::copy(kFixtures / "llama_bare/10", t / "10", fs::copy_options::recursive);
  write_file_atomic(t / "latest.txt", "10\n");
  CHECK(open_nanotron(t.path).path == t / "10");
}
