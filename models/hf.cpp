// Hugging Face folders. Reading trusts nothing: the list of tensors must be exactly that of the model which
// config.json describes (models/hf_config.cpp).
#include "models/hf.h"
#include <algorithm>
#include <cstring>
#include "data/files.h"
#include "data/json.h"
#include "data/safetensors.h"
#include "data/tokenizer.h"
#include "models/json_fields.h"
#include "models/mla_layouts.h"
#include "models/modeling_llatte.h"
#include "models/partial_rope.h"

namespace llatte {
namespace {

using json = nlohmann::json;

// The one tensor a tied model may bring along: the head, if it is the embedding again.
bool is_tied_copy(const std::string& name, const LlamaConfig& c, const SafetensorsFile& file) {
  if (!c.tie_word_embeddings || name != "lm_head.weight" || !file.has("model.embed_tokens.weight"))
    return false;
  const SafetensorsEntry &head = file.entries().at(name),
                         &embedding = file.entries().at("model.embed_tokens.weight");
  return head.dtype == embedding.dtype && head.shape == embedding.shape &&
         std::memcmp(head.data, embedding.data, head.bytes) == 0;
}

// What older checkpoints store besides parameters.
bool is_buffer(const std::string& name) { return name.ends_with("rotary_emb.inv_freq"); }

// What the folder holds besides buffers and a tied head's copy.
std::vector<std::pair<std::string, Shape>> model_tensors(const SafetensorsFile& file, const LlamaConfig& c) {
  std::vector<std::pair<std::string, Shape>> found;
  for (const auto& [name, entry] : file.entries())
    if (!is_buffer(name) && !is_tied_copy(name, c, file)) found.emplace_back(name, entry.shape);
  return found;
}

// A config.json that asks for far more than the files hold is refused before memory is asked for.
void check_plausible(const LlamaConfig& c, const SafetensorsFile& file, const std::filesystem::path& folder) {
  int64_t held = 0;
  for (const auto& [name, entry] : file.entries()) held += numel_of(entry.shape);
  const int64_t asked = param_count(c);
  LLATTE_CHECK(asked / 4 <= held + 1000000, folder.string(), ": the config describes ", asked,
               " parameters, the weights hold ", held);
}

// chat_template.jinja, or the field of tokenizer_config.json: one template, or several of which one is the
// default.
std::string read_chat_template(const std::filesystem::path& folder) {
  if (exists(folder / "chat_template.jinja")) return read_file(folder / "chat_template.jinja");
  const auto file = folder / "tokenizer_config.json";
  if (!exists(file)) return "";
  const json object = read_json(file);
  if (!object.is_object() || !object.contains("chat_template")) return "";
  const json& t = object.at("chat_template");
  if (t.is_string()) return t.get<std::string>();
  if (t.is_array())
    for (const json& one : t)
      if (one.is_object() && one.value("name", "") == "default") return one.value("template", "");
  return "";
}

bool is_current_layout(const std::filesystem::path& folder) {
  const std::string file = (folder / "config.json").string();
  const json object = read_json(file);
  return has_mha2mla(Fields(object, file));
}

void write_mla_files(const std::filesystem::path& folder, const LlamaConfig& c, MlaLayout layout) {
  if (!needs_modeling_llatte(c)) return;
  if (c.mla && chooses_by_score(c.mla->rope)) write_qk_scores(folder / kQkTensorFile, c);
  if (layout == MlaLayout::canonical) write_file_atomic(folder / "modeling_llatte.py", modeling_llatte());
}

// What transformers needs beside tokenizer.json.
void write_tokenizer_config(const std::filesystem::path& file, const Checkpoint& c) {
  const Tokenizer tokenizer = Tokenizer::parse(c.tokenizer_json, c.path.string() + ": tokenizer");
  nlohmann::ordered_json j;
  const auto text_of = [&](const char* key, std::optional<int64_t> id) {
    if (!id || *id >= tokenizer.vocab_size()) return;
    const int32_t one[] = {static_cast<int32_t>(*id)};
    j[key] = tokenizer.decode(one);
  };
  j["tokenizer_class"] = "PreTrainedTokenizerFast";
  text_of("bos_token", c.config.bos_token_id);
  text_of("eos_token", c.config.eos_token_id);
  text_of("pad_token", c.config.pad_token_id);
  j["model_max_length"] = c.config.max_position_embeddings;
  j["clean_up_tokenization_spaces"] = false;
  if (!c.chat_template.empty()) j["chat_template"] = c.chat_template;
  write_file_atomic(file, j.dump(2) + "\n");
}

}  // namespace

Checkpoint open_hf(const std::filesystem::path& folder) {
  Checkpoint c;
  c.format = "hf", c.path = folder;
  c.config = read_hf_config(folder / "config.json");
  const SafetensorsFile file = SafetensorsFile::open_folder(folder);
  check_plausible(c.config, file, folder);
  resolve_pairs(c.config, folder);
  const bool current = c.config.mla && is_current_layout(folder);
  if (current) require_pairs(c.config, folder.string());
  check_weights(c.config, current ? current_shapes(c.config) : param_shapes(c.config),
                model_tensors(file, c.config), folder.string());
  for (const auto& [name, shape] : param_shapes(c.config)) {
    const SafetensorsEntry& e =
        file.entries().at(current ? canonical_from_current(c.config, name).sources[0] : name);
    const auto element = static_cast<int64_t>(e.bytes) / numel_of(e.shape);
    c.weights.push_back({name, {e.dtype, shape, numel_of(shape) * element}});
  }
  c.read = [file, current, config = c.config](const std::string& name, DType t) {
    if (!current) return file.read(name, t);
    return read_rows(canonical_from_current(config, name),
                     [&](const auto& one) { return file.read(one, t); });
  };
  read_tokenizer_files(folder, c);
  return c;
}

void read_tokenizer_files(const std::filesystem::path& folder, Checkpoint& checkpoint) {
  if (exists(folder / "tokenizer.json")) checkpoint.tokenizer_json = read_file(folder / "tokenizer.json");
  checkpoint.chat_template = read_chat_template(folder);
}

void write_tokenizer_files(const std::filesystem::path& folder, const Checkpoint& checkpoint) {
  if (checkpoint.tokenizer_json.empty()) return;
  write_file_atomic(folder / "tokenizer.json", checkpoint.tokenizer_json);
  write_tokenizer_config(folder / "tokenizer_config.json", checkpoint);
}

std::unique_ptr<Llama> load_hf(const std::filesystem::path& folder, DType dtype) {
  return load_model(open_hf(folder), dtype);
}

void save_hf(const std::filesystem::path& folder, Llama& model,
             const std::function<Tensor(const std::string& name, const Var& param)>& get) {
  std::vector<std::pair<std::string, Tensor>> tensors;
  model.params(
      "", [&](const std::string& name, Var& p) { tensors.emplace_back(name, get ? get(name, p) : p.value); });
  write_safetensors(folder / "model.safetensors", tensors);
  write_hf_config(folder / "config.json", model.config(), tensors.front().second.dtype());
  write_mla_files(folder, model.config(), MlaLayout::canonical);
}

void save_hf(const std::filesystem::path& folder, const Checkpoint& checkpoint, DType dtype,
             MlaLayout layout) {
  const bool current = layout == MlaLayout::current;
  const LlamaConfig& c = checkpoint.config;
  LLATTE_CHECK(!current || !c.hla, checkpoint.path.string(),
               ": MHA2MLA's current layout has no form for RoPE inside the latents (HLA); write --to hf");
  LLATTE_CHECK(!current || c.mla, checkpoint.path.string(),
               ": this model has no latent attention, MHA2MLA's current layout is for those; write --to hf");
  if (current) require_pairs(c, checkpoint.path.string());
  write_hf_config(folder / "config.json", c, dtype, layout);
  const auto read = [&](const std::string& name) { return checkpoint.read(name, dtype); };
  std::vector<TensorSource> tensors;
  for (const auto& [name, shape] : current ? current_shapes(c) : param_shapes(c))
    tensors.push_back({name, dtype, shape, [&, name = name] {
                         return current ? read_rows(current_from_canonical(c, name), read) : read(name);
                       }});
  write_safetensors(folder / "model.safetensors", tensors);
  write_mla_files(folder, c, layout);
  write_tokenizer_files(folder, checkpoint);
}

}  // namespace llatte
