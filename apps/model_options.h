// How every program that runs a model is told which: MODEL, --tokenizer, --dtype; and --cache. MODEL is
// opened once, in whatever format it is, when it is first asked for.
#pragma once
#include <optional>
#include "apps/common.h"
#include "data/tokenizer.h"
#include "models/checkpoint.h"

namespace llatte {

// --cache: how a cache keeps its numbers.
struct CacheOption {
  std::string word;

  void add_to(CLI::App& cli, const std::string& what) {
    cli.add_option("--cache", word, what)->check(CLI::IsMember({"f32", "bf16", "int8", "int4"}));
  }
  std::optional<CacheType> type() const {
    if (word.empty()) return std::nullopt;
    return word == "f32"    ? CacheType::f32
           : word == "bf16" ? CacheType::bf16
           : word == "int8" ? CacheType::int8
                            : CacheType::int4;
  }
};

// --is_mla, which MHA2MLA's scripts pass: here a model says itself what it is, so this only insists on it.
struct IsMla {
  bool on = false;

  void add_to(CLI::App& cli, const std::string& what) {
    cli.add_flag("--is_mla,--is-mla", on,
                 "refuse a " + what + " without latent attention; which it is, it says itself");
  }
  void check(const std::string& path, const LlamaConfig& c) const {
    LLATTE_CHECK(!on || c.mla || c.hla, path,
                 " is no MLA model: its config has neither RoPE, SVD nor mha2mla; leave out --is_mla");
  }
};

struct ModelOptions {
  std::string model, tokenizer_path, dtype_word = "f32";
  IsMla is_mla;

  void add_to(CLI::App& cli) {
    cli.add_option("MODEL", model,
                   "folder with config.json, *.safetensors and tokenizer.json, or a .gguf file")
        ->required();
    cli.add_option("--tokenizer", tokenizer_path, "tokenizer.json or its folder, instead of the model's own");
    cli.add_option("--dtype", dtype_word, "weights and activations in f32, bf16 or f64")
        ->check(CLI::IsMember({"f32", "bf16", "f64"}))
        ->capture_default_str();
    is_mla.add_to(cli, "MODEL");
  }

  DType dtype() const {
    return dtype_word == "bf16" ? DType::bf16 : dtype_word == "f64" ? DType::f64 : DType::f32;
  }

  const Checkpoint& checkpoint() const {
    if (!opened_) opened_ = open_checkpoint(model);
    is_mla.check(model, opened_->config);
    return *opened_;
  }

  std::unique_ptr<Llama> load_model(Device device) const {
    auto loaded = llatte::load_model(checkpoint(), dtype());
    loaded->to(device);
    return loaded;
  }

  Tokenizer load_tokenizer() const {
    if (!tokenizer_path.empty()) return Tokenizer::load(tokenizer_path);
    LLATTE_CHECK(!checkpoint().tokenizer_json.empty(), model, " has no tokenizer; name one with --tokenizer");
    return Tokenizer::parse(checkpoint().tokenizer_json, model + ": tokenizer");
  }

  // tokenizer_config.json beside the tokenizer in use; it need not exist.
  std::filesystem::path tokenizer_config() const {
    const std::filesystem::path at(tokenizer_path.empty() ? model : tokenizer_path);
    const bool beside_it = !tokenizer_path.empty() && !std::filesystem::is_directory(at);
    return (beside_it ? at.parent_path() : at) / "tokenizer_config.json";
  }

 private:
  mutable std::optional<Checkpoint> opened_;
};

}  // namespace llatte
