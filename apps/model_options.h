// How every program that runs a model is told which: MODEL, --tokenizer, --dtype.
#pragma once
#include "apps/common.h"
#include "data/tokenizer.h"
#include "models/hf.h"

namespace llatte {

struct ModelOptions {
  std::string model, tokenizer_path, dtype_word = "f32";

  void add_to(CLI::App& cli) {
    cli.add_option("MODEL", model, "folder with config.json, *.safetensors and tokenizer.json")->required();
    cli.add_option("--tokenizer", tokenizer_path, "tokenizer.json or its folder, instead of the model's own");
    cli.add_option("--dtype", dtype_word, "weights and activations in f32, bf16 or f64")
        ->check(CLI::IsMember({"f32", "bf16", "f64"}))
        ->capture_default_str();
  }

  DType dtype() const {
    return dtype_word == "bf16" ? DType::bf16 : dtype_word == "f64" ? DType::f64 : DType::f32;
  }

  std::unique_ptr<Llama> load_model() const {
    LLATTE_CHECK(std::filesystem::is_directory(model), model,
                 " is not a folder; give one with config.json and model.safetensors");
    return load_hf(model, dtype());
  }

  Tokenizer load_tokenizer() const {
    if (!tokenizer_path.empty()) return Tokenizer::load(tokenizer_path);
    const auto own = std::filesystem::path(model) / "tokenizer.json";
    LLATTE_CHECK(std::filesystem::exists(own), own.string(), " does not exist; name one with --tokenizer");
    return Tokenizer::load(own);
  }
};

}  // namespace llatte
