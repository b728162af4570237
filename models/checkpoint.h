// A trained model as it lies on disk, whatever the format: its config, its weights by their Hugging Face
// names, and what belongs to its text. Import is format -> Checkpoint, export Checkpoint -> format; weights
// pass one at a time, so a conversion never holds a whole model.
#pragma once
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <vector>
#include "models/llama.h"

namespace llatte {

// A weight as it lies on disk. `dtype` is the file's word: F32, BF16, Q4_1, ...
struct WeightInfo {
  std::string dtype;
  Shape shape;
  int64_t bytes = 0;
};

struct Checkpoint {
  std::string format;  // hf, nanotron, gguf
  std::filesystem::path path;
  LlamaConfig config;
  std::vector<std::pair<std::string, WeightInfo>>
      weights;  // exactly those of param_shapes(config), in its order
  // A new tensor of dtype t (f32, bf16, f64), shaped and laid out as in a Hugging Face folder.
  std::function<Tensor(const std::string& name, DType t)> read;
  std::string tokenizer_json;  // empty: there is none
  std::string chat_template;   // Jinja; empty: there is none

  int64_t bytes() const;  // of all weights on disk
  // That holds every weight without rounding: bf16 if every matrix is BF16 on disk, else f32.
  DType dtype() const;
};

// By what lies at `path`: a .gguf file, a folder with config.json (Hugging Face, and our own checkpoints), a
// nanotron folder (latest.txt, or model_config.json and model/), or a run folder of ours: its newest
// checkpoint.
Checkpoint open_checkpoint(const std::filesystem::path& path);

// The model itself, weights cast to `dtype`.
std::unique_ptr<Llama> load_model(const Checkpoint& checkpoint, DType dtype);

// Writes `checkpoint` as a new folder (hf, hf-current: MLA in MHA2MLA's current layout, deepseek: MLA in
// DeepSeek-V3's format, nanotron) or file
// (gguf), weights in f32 or bf16, for gguf also f16 or q8_0. Nothing may be at `path` yet; it appears whole,
// by one rename, or not at all.
void save_checkpoint(const std::filesystem::path& path, const Checkpoint& checkpoint,
                     const std::string& format, const std::string& dtype);

// For the readers of each format: one Error that lists every missing, surplus and wrongly shaped tensor.
// `wanted`: param_shapes(config), or what a layout makes of them.
using NamedShapes = std::vector<std::pair<std::string, Shape>>;
void check_weights(const LlamaConfig& config, const NamedShapes& wanted, const NamedShapes& found,
                   const std::string& where);

}  // namespace llatte
