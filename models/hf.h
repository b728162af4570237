// Hugging Face folders: config.json + model.safetensors (or shards with an index) + tokenizer.json, in and
// out. Beside the weights of MLA and HLA models lies modeling_llatte.py, with which transformers runs them,
// and qk_tensor.safetensors where pairs were chosen by score.
#pragma once
#include <filesystem>
#include <functional>
#include <string>
#include "models/checkpoint.h"

namespace llatte {

// How latent attention is named and ordered on disk: MHA2MLA's older layout, with RoPE and SVD in
// config.json, which is ours too, or its current one (models/mla_layouts.h). Other models have one layout.
enum class MlaLayout { canonical, current };

// Reads config.json, or nanotron's model_config.json, which has the same fields. Refuses by name what it
// can't honour: architecture, activation, rope_scaling type, biases elsewhere.
LlamaConfig read_hf_config(const std::filesystem::path& file);
// The text of config.json.
std::string hf_config(const LlamaConfig& c, DType dtype, MlaLayout layout = MlaLayout::canonical);
void write_hf_config(const std::filesystem::path& file, const LlamaConfig& c, DType dtype,
                     MlaLayout layout = MlaLayout::canonical);

Checkpoint open_hf(const std::filesystem::path& folder);
// load_model(open_hf(folder), dtype).
std::unique_ptr<Llama> load_hf(const std::filesystem::path& folder, DType dtype);
// Writes config.json and model.safetensors into an existing folder. `get` lets the optimizer hand in f32
// masters instead of bf16 weights; null: the parameters themselves.
void save_hf(const std::filesystem::path& folder, Llama& model,
             const std::function<Tensor(const std::string& name, const Var& param)>& get = nullptr);
// The same from any checkpoint, tensor by tensor, with tokenizer.json and tokenizer_config.json where it has
// them.
void save_hf(const std::filesystem::path& folder, const Checkpoint& checkpoint, DType dtype,
             MlaLayout layout = MlaLayout::canonical);

// tokenizer.json and the chat template beside it, into or out of `checkpoint`, where there are any. Written
// with the tokenizer_config.json that transformers needs.
void read_tokenizer_files(const std::filesystem::path& folder, Checkpoint& checkpoint);
void write_tokenizer_files(const std::filesystem::path& folder, const Checkpoint& checkpoint);

}  // namespace llatte
