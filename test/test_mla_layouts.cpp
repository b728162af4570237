// MHA2MLA's current layout: every fixture is read as the canonical model it means and written back byte for
// byte; what has no word there is refused.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>
#include <nlohmann/json.hpp>
#include "data/files.h"
#include "data/safetensors.h"
#include "models/hf.h"
#include "models/mla_layouts.h"
#include "test/near.h"
#include "test/temp_folder.h"

using namespace llatte;
using namespace llatte::test;
namespace fs = std::filesystem;
using nlohmann::json;

namespace {

const fs::path kFixtures = "test/fixtures/tiny-mla";
const fs::path kCurrent = kFixtures / "current";
using Tensors = std::map<std::string, Tensor>;

json json_of(const fs::path& file) { return json::parse(read_file(file)); }

Tensors tensors_of(const fs::path& file) {
  const auto f = SafetensorsFile::open(file);
  Tensors r;
  for (const auto& [name, e] : f.entries())
    if (name.starts_with("model.") || name == "lm_head.weight") r[name] = f.read(name);
  return r;
}

std::vector<double> numbers(const Tensor& t) { return t.to(DType::f64).to_vector<double>(); }

Tensor rows(const Tensor& t, const std::vector<int64_t>& order) {
  return read_rows({{"t"}, order}, [&](const std::string&) { return t; });
}

// One list for all layers where all keep the same pairs.
std::vector<int64_t> row_order(const json& about, size_t layer) {
  const json& order = about["q_proj_row_order"];
  return order.at(order.size() == 1 ? 0 : layer);
}

// A fixture of current/ that stores only what conversion changed, as the whole folder it stands for.
void write_case(const fs::path& folder, const std::string& name) {
  const json about = json_of(kCurrent / (name + ".json"));
  Tensors all = tensors_of(kFixtures / "base/model.safetensors");
  for (size_t l = 0; l < 2; ++l) {
    const std::string at = str("model.layers.", l, ".self_attn.");
    all.erase(at + "k_proj.weight"), all.erase(at + "v_proj.weight");
    Tensor& q = all.at(at + "q_proj.weight");
    q = rows(q, row_order(about, l));
  }
  for (const auto& [key, t] : tensors_of(kCurrent / (name + ".safetensors"))) all[key] = t;
  write_safetensors(folder / "model.safetensors",
                    std::vector<std::pair<std::string, Tensor>>(all.begin(), all.end()));
  json config = json_of(kFixtures / "base/config.json");
  config["mha2mla"] = about["mha2mla"];
  if (config["mha2mla"]["partial_rope_version"] == "2-norm") {
    config["mha2mla"]["qk_tensor_path"] = "qk_tensor.safetensors";
    fs::copy_file(kFixtures / "scores/qk_tensor.safetensors", folder / "qk_tensor.safetensors");
  }
  write_file_atomic(folder / "config.json", config.dump());
}

// Read, written as `format`, read again, written in the current layout: the very bytes of `folder`.
void check_round_trip(const fs::path& folder, const std::string& format) {
  const TempFolder t;
  CAPTURE(format);
  save_checkpoint(t / "there", open_checkpoint(folder), format, "f32");
  save_checkpoint(t / "back", open_checkpoint(t / "there"), "hf-current", "f32");
  const bool same = read_file(t / "back/model.safetensors") == read_file(folder / "model.safetensors");
  CHECK(same);
  json want = json_of(folder / "config.json")["mha2mla"];
  want["model_name_or_path"] = nullptr;  // where it was converted from: not kept
  CHECK(json_of(t / "back/config.json")["mha2mla"] == want);
  const bool scored = want["partial_rope_version"] == "2-norm";
  REQUIRE(fs::exists(t / "back/qk_tensor.safetensors") == scored);
  if (!scored) return;
  const bool same_scores =
      read_file(t / "back/qk_tensor.safetensors") == read_file(folder / "qk_tensor.safetensors");
  CHECK(same_scores);
}

const char* const kFolders[] = {"hf_2-norm_joint", "hf_uniform_split", "hf_qwen2_high_split",
                                "hf_qwen2_high_joint"};
const char* const kCases[] = {"2-norm_joint", "2-norm_none",   "2-norm_only_key", "2-norm_only_value",
                              "2-norm_split", "high_joint",    "high_none",       "high_split",
                              "low_joint",    "uniform_joint", "uniform_split"};

}  // namespace

TEST_CASE("whole folders come back byte for byte, also by way of the canonical layout") {
  for (const char* name : kFolders) {
    CAPTURE(name);
    for (const char* format : {"hf-current", "hf"}) check_round_trip(kCurrent / name, format);
  }
}

TEST_CASE("every case of version and method comes back byte for byte") {
  for (const char* name : kCases) {
    CAPTURE(name);
    const TempFolder t;
    fs::create_directories(t / "model");
    write_case(t / "model", name);
    for (const char* format : {"hf-current", "hf", "nanotron"}) check_round_trip(t / "model", format);
  }
}

TEST_CASE("q's rows are sorted as the fixtures say, and unsorted on reading") {
  const Tensors base = tensors_of(kFixtures / "base/model.safetensors");
  for (const char* name : kCases) {
    CAPTURE(name);
    const TempFolder t;
    fs::create_directories(t / "model");
    write_case(t / "model", name);
    const Checkpoint c = open_checkpoint(t / "model");
    const json about = json_of(kCurrent / (std::string(name) + ".json"));
    for (size_t l = 0; l < 2; ++l) {
      const std::string q = str("model.layers.", l, ".self_attn.q_proj.weight");
      CHECK(*current_from_canonical(c.config, q).rows == row_order(about, l));
      CHECK(numbers(c.read(q, DType::f32)) == numbers(base.at(q)));
    }
  }
}

TEST_CASE("method none is the plain model's k and v again") {
  const Tensors base = tensors_of(kFixtures / "base/model.safetensors");
  for (const char* name : {"2-norm_none", "high_none"}) {
    const TempFolder t;
    fs::create_directories(t / "model");
    write_case(t / "model", name);
    const Checkpoint c = open_checkpoint(t / "model");
    for (const auto& [weight, info] : c.weights) {
      CAPTURE(weight);
      CHECK(numbers(c.read(weight, DType::f32)) == numbers(base.at(weight)));
    }
  }
}

TEST_CASE("Qwen2's biases: of q unsorted, of k with the rows that keep RoPE") {
  const auto plain = tensors_of("test/fixtures/tiny-llama/qwen2/model.safetensors");
  const Checkpoint c = open_checkpoint(kCurrent / "hf_qwen2_high_joint");
  const std::string at = "model.layers.1.self_attn.";
  CHECK(numbers(c.read(at + "q_proj.bias", DType::f32)) == numbers(plain.at(at + "q_proj.bias")));
  CHECK(numbers(c.read(at + "W_k_r.bias", DType::f32)) ==
        numbers(rows(plain.at(at + "k_proj.bias"), {0, 3, 6, 9})));  // E = 6: pair 0 is dims 0 and 3
  CHECK(numbers(c.read(at + "W_up_v.bias", DType::f32)) == numbers(plain.at(at + "v_proj.bias")));
}

// The references are f64 runs from the same f32 weights. Logits are of size about 5; our f32 sums run in
// another order, some hundred terms deep: 2e-5. In f64 nothing but rounding of size 1e-15 is left: 1e-9.
TEST_CASE("the model read from the current layout is the one that was written in it") {
  const auto check = [](const fs::path& folder, const SafetensorsFile& golden, const std::string& want) {
    for (const auto& [dtype, tolerance] : {std::pair{DType::f32, 2e-5}, {DType::f64, 1e-9}}) {
      const NoGrad off;
      const auto model = load_hf(folder, dtype);
      const auto got = model->logits(model->hidden(golden.read("tokens", DType::i32))).value;
      check_near("logits", to_vec(got), to_vec(golden.read(want, DType::f64)), tolerance);
    }
  };
  for (const char* name : kFolders) {
    CAPTURE(name);
    check(kCurrent / name, SafetensorsFile::open(kCurrent / name / "golden.safetensors"), "logits_f64");
  }
  for (const char* name : kCases) {
    CAPTURE(name);
    const TempFolder t;
    fs::create_directories(t / "model");
    write_case(t / "model", name);
    check(t / "model", SafetensorsFile::open(kCurrent / (std::string(name) + ".safetensors")),
          "logits_from_weights_f64");
  }
}

TEST_CASE("what the words of the layout cannot say is refused") {
  const auto refusal = [](const json& changes) {
    const TempFolder t;
    json c = json_of(kCurrent / "hf_2-norm_joint/config.json");
    c["mha2mla"].update(changes);
    write_file_atomic(t / "config.json", c.dump());
    return error_of([&] { read_hf_config(t / "config.json"); });
  };
  CHECK(
      has(refusal({{"partial_rope_version", "4"}}), "mha2mla: partial_rope_version '4' is not known; have"));
  CHECK(has(refusal({{"svd_init_method", "both"}}), "svd_init_method 'both' is not known; have joint, none"));
  CHECK(has(refusal({{"rope_dim_for_mla", 5}}), "rope_dim_for_mla 5 must be even"));
  CHECK(has(refusal({{"rope_dim_for_mla", 18}}), "rope_dim_for_mla 18 must be even, positive and at most"));
  CHECK(has(refusal({{"rope_dim_for_mla", nullptr}}), "rope_dim_for_mla is missing"));
  CHECK(
      has(refusal({{"partial_rope_version", "uniform"}}), "rope_dim_for_mla 6 does not divide head_dim 16"));

  const Checkpoint source = open_checkpoint(kCurrent / "hf_uniform_split");
  Checkpoint c = source;
  c.config.mla->rope.partial_rope_version = 3;
  const TempFolder t;
  CHECK(has(error_of([&] { save_checkpoint(t / "x", c, "hf-current", "f32"); }),
            "no word for RoPE.partial_rope_version 3"));
  CHECK(!fs::exists(t / "x"));
  c.config.mla.reset();
  CHECK(has(error_of([&] { save_checkpoint(t / "x", c, "hf-current", "f32"); }), "has no latent attention"));
}

TEST_CASE("without its scores file a current folder cannot be read, and the Error says what is missing") {
  const TempFolder t;
  for (const char* file : {"config.json", "model.safetensors"})
    fs::copy_file(kCurrent / "hf_2-norm_joint" / file, t / file);
  const std::string said = error_of([&] { open_checkpoint(t.path); });
  CHECK(has(said, "qk_tensor.safetensors"));
  CHECK(has(said, "calibrate"));
}
