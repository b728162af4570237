#include "models/checkpoint.h"
#include <algorithm>
#include <cstring>
#include <map>
#include "data/files.h"
#include "models/gguf.h"
#include "models/hf.h"
#include "models/nanotron.h"

namespace llatte {
namespace {
namespace fs = std::filesystem;

bool is_matrix(const WeightInfo& w) { return w.shape.size() == 2; }

bool is_gguf(const fs::path& file) {
  if (fs::is_directory(file)) return false;
  const std::string magic = "GGUF";
  const MappedFile map = map_file(file);
  return file.extension() == ".gguf" ||
         (map.bytes.size() >= magic.size() && !std::memcmp(map.bytes.data(), magic.data(), magic.size()));
}

bool at_most_16_bits(const WeightInfo& w) { return w.bytes <= 2 * numel_of(w.shape); }

}  // namespace

int64_t Checkpoint::bytes() const {
  int64_t sum = 0;
  for (const auto& [name, w] : weights) sum += w.bytes;
  return sum;
}

DType Checkpoint::dtype() const {
  const bool narrow = std::all_of(weights.begin(), weights.end(), [](const auto& w) {
    return !is_matrix(w.second) || at_most_16_bits(w.second);
  });
  return narrow ? DType::bf16 : DType::f32;
}

Checkpoint open_checkpoint(const fs::path& path) {
  LLATTE_CHECK(fs::exists(path), path.string(), " does not exist");
  if (is_gguf(path)) return open_gguf(path);
  LLATTE_CHECK(fs::is_directory(path), path.string(),
               " is no model; give a folder with config.json, or a .gguf file");
  const bool nanotron = fs::exists(path / "latest.txt") || fs::exists(path / "model_config.json");
  if (nanotron && !fs::exists(path / "config.json")) return open_nanotron(path);
  return open_hf(path);
}

std::unique_ptr<Llama> load_model(const Checkpoint& checkpoint, DType dtype) {
  auto model = std::make_unique<Llama>(checkpoint.config, dtype);
  model->params("",
                [&](const std::string& name, Var& p) { p.value.copy_from(checkpoint.read(name, dtype)); });
  return model;
}

void check_weights(const LlamaConfig& config, const std::vector<std::pair<std::string, Shape>>& found,
                   const std::string& where) {
  std::string complaints;
  const auto complain = [&](const auto&... parts) {
    complaints += (complaints.empty() ? "" : "; ") + str(parts...);
  };
  std::map<std::string, Shape> left(found.begin(), found.end());
  for (const auto& [name, shape] : param_shapes(config)) {
    const auto f = left.find(name);
    if (f == left.end()) {
      complain(name, " is missing");
      continue;
    }
    if (f->second != shape) complain(name, " is ", f->second, ", the config asks for ", shape);
    left.erase(f);
  }
  for (const auto& [name, shape] : left) {
    if (config.tie_word_embeddings && name == "lm_head.weight")
      complain(name, " differs from model.embed_tokens.weight although tie_word_embeddings is true");
    else complain(name, " is not part of this model");
  }
  LLATTE_CHECK(complaints.empty(), where, ": the weights do not fit the config: ", complaints);
}

}  // namespace llatte
