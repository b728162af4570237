#include "models/checkpoint.h"
#include <algorithm>
#include <cstring>
#include <map>
#include <set>
#include "data/files.h"
#include "models/deepseek.h"
#include "models/gguf.h"
#include "models/hf.h"
#include "models/nanotron.h"
#include "models/partial_rope.h"

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

GgufType gguf_type(const std::string& dtype) {
  if (dtype == "f16") return GgufType::F16;
  if (dtype == "bf16") return GgufType::BF16;
  if (dtype == "q8_0") return GgufType::Q8_0;
  return GgufType::F32;
}

void check_target(const std::string& format, const std::string& dtype) {
  const std::set<std::string> known{"hf", "hf-current", "deepseek", "nanotron", "gguf"};
  LLATTE_CHECK(known.count(format), "cannot write format '", format,
               "'; have hf, hf-current, deepseek, nanotron, gguf");
  const bool wide = dtype == "f32" || dtype == "bf16", gguf_only = dtype == "f16" || dtype == "q8_0";
  LLATTE_CHECK(wide || (gguf_only && format == "gguf"), "cannot write ", format, " in dtype '", dtype,
               "'; have ", format == "gguf" ? "f32, bf16, f16, q8_0" : "f32, bf16");
}

}  // namespace

int64_t Checkpoint::bytes() const {
  int64_t sum = 0;
  for (const auto& [name, w] : weights) sum += w.bytes;
  return sum;
}

DType Checkpoint::dtype() const {
  const bool narrow = std::all_of(weights.begin(), weights.end(), [](const auto& w) {
    return !is_matrix(w.second) || w.second.dtype == "BF16";
  });
  return narrow ? DType::bf16 : DType::f32;
}

Checkpoint open_checkpoint(const fs::path& path) {
  LLATTE_CHECK(fs::exists(path), path.string(), " does not exist");
  if (is_gguf(path)) return open_gguf(path);
  if (fs::exists(path / "config.json")) return open_hf(path);
  if (fs::exists(path / "model_config.json")) return open_nanotron(path);
  LLATTE_CHECK(fs::exists(path / "latest.txt"), path.string(),
               " is no model: it is neither a .gguf file nor a ",
               "folder with config.json, model_config.json or latest.txt");
  const fs::path newest = read_file(path / "latest.txt");
  const bool ours = newest == newest.filename() && fs::exists(path / newest / "config.json");
  return ours ? open_hf(path / newest) : open_nanotron(path);  // a run's folder, or nanotron's
}

std::unique_ptr<Llama> load_model(const Checkpoint& checkpoint, DType dtype) {
  require_pairs(checkpoint.config, checkpoint.path.string());
  auto model = std::make_unique<Llama>(checkpoint.config, dtype);
  model->params("", [&](const std::string& name, Var& p) {
    const Shape shape = p.shape();
    p.value = Tensor();  // its memory goes to the weight that is read: no weight is there twice
    p.value = checkpoint.read(name, dtype);
    LLATTE_CHECK(p.shape() == shape, checkpoint.path.string(), ": ", name, " was read as ", p.shape(),
                 ", expected ", shape);
  });
  return model;
}

void save_checkpoint(const fs::path& path, const Checkpoint& checkpoint, const std::string& format,
                     const std::string& dtype) {
  check_target(format, dtype);
  LLATTE_CHECK(!fs::exists(path), path.string(), " exists already; remove it or name another");
  if (format == "gguf") return save_gguf(path, checkpoint, gguf_type(dtype));
  const DType t = dtype == "bf16" ? DType::bf16 : DType::f32;
  NewFolder folder(path);
  if (format == "hf") save_hf(folder.path(), checkpoint, t);
  else if (format == "hf-current") save_hf(folder.path(), checkpoint, t, MlaLayout::current);
  else if (format == "deepseek") save_deepseek(folder.path(), checkpoint, t);
  else save_nanotron(folder.path(), checkpoint, t);
  folder.publish();
}

void check_weights(const LlamaConfig& config, const NamedShapes& wanted, const NamedShapes& found,
                   const std::string& where) {
  std::string complaints;
  const auto complain = [&](const auto&... parts) {
    complaints += (complaints.empty() ? "" : "; ") + str(parts...);
  };
  std::map<std::string, Shape> left(found.begin(), found.end());
  for (const auto& [name, shape] : wanted) {
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
