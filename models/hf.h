// Hugging Face folders: config.json + model.safetensors (or shards with an index) + tokenizer.json, in and
// out.
#pragma once
#include <filesystem>
#include <functional>
#include "models/llama.h"

namespace llatte {

// Reads config.json. Refuses by name what it can't honour: architecture, activation, rope_scaling type,
// biases elsewhere.
LlamaConfig read_hf_config(const std::filesystem::path& file);
void write_hf_config(const std::filesystem::path& file, const LlamaConfig& c, DType dtype);

// Config and weights, cast to `dtype`. Missing, surplus and wrongly shaped tensors are all listed in one
// Error.
std::unique_ptr<Llama> load_hf(const std::filesystem::path& folder, DType dtype);
// The dtype of the weights on disk (bf16 if any matrix is, else f32).
DType hf_dtype(const std::filesystem::path& folder);
// Writes config.json and model.safetensors into an existing folder. `get` lets the optimizer hand in f32
// masters instead of bf16 weights; null: the parameters themselves.
void save_hf(const std::filesystem::path& folder, Llama& model,
             const std::function<Tensor(const std::string& name, const Var& param)>& get = nullptr);

}  // namespace llatte
