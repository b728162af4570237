// nanotron's checkpoints. One list, parameters_of(config), says which module holds which weights; reading
// compares it with the files that are there, writing walks it.
#include "models/nanotron.h"
#include <yaml-cpp/yaml.h>
#include <algorithm>
#include <cstdio>
#include <map>
#include "data/files.h"
#include "data/json.h"
#include "data/sharded_tensor.h"
#include "models/hf.h"
#include "models/partial_rope.h"

namespace llatte {
namespace {

namespace fs = std::filesystem;
using ordered = nlohmann::ordered_json;
using NamedShape = std::pair<std::string, Shape>;

// One of nanotron's parameters: the weights whose rows it stacks.
struct Parameter {
  std::string module;  // its folder, below model/model
  std::vector<NamedShape> weights;

  Shape shape() const {
    Shape s = weights[0].second;
    for (size_t i = 1; i < weights.size(); ++i) s[0] += weights[i].second[0];
    return s;
  }
};

void refuse_foreign(const LlamaConfig& c, const std::string& where) {
  LLATTE_CHECK(!c.qkv_bias, where, ": nanotron's Llama has no place for the q, k, v biases of Qwen2");
  LLATTE_CHECK(!c.qk_norm, where, ": nanotron's Llama has no place for the q_norm and k_norm of Qwen3");
  LLATTE_CHECK(!c.hla, where, ": nanotron has no names for RoPE inside the latents (HLA); write --to hf");
}

// "self_attn.q_proj" -> "attn/qkv_proj": a weight within a layer.
std::string module_in_layer(const std::string& name, bool latent) {
  if (name == "mlp.gate_proj" || name == "mlp.up_proj") return "mlp/gate_up_proj";
  if (name == "mlp.down_proj") return "mlp/down_proj";
  const std::string attention = "self_attn.";
  if (!name.starts_with(attention)) return name;  // the norms
  const std::string rest = name.substr(attention.size());
  const bool fused = !latent && (rest == "q_proj" || rest == "k_proj" || rest == "v_proj");
  return "attn/" + (fused ? "qkv_proj" : rest);
}

// "model.layers.3.mlp.up_proj.weight" -> "decoder/3/pp_block/mlp/gate_up_proj"
std::string module_of(const std::string& weight, bool latent) {
  if (weight == "model.embed_tokens.weight") return "token_position_embeddings/pp_block/token_embedding";
  if (weight == "model.norm.weight") return "final_layer_norm/pp_block";
  if (weight == "lm_head.weight") return "lm_head/pp_block";
  const std::string layers = "model.layers.", ending = ".weight";
  const size_t dot = weight.find('.', layers.size());
  const std::string layer = weight.substr(layers.size(), dot - layers.size());
  const std::string name = weight.substr(dot + 1, weight.size() - ending.size() - dot - 1);
  return "decoder/" + layer + "/pp_block/" + module_in_layer(name, latent);
}

// Weights that share a module follow each other in param_shapes, in the order of its rows.
std::vector<Parameter> parameters_of(const LlamaConfig& c) {
  std::vector<Parameter> r;
  for (const NamedShape& w : param_shapes(c)) {
    const std::string module = module_of(w.first, is_latent(c));
    if (r.empty() || r.back().module != module) r.push_back({module, {}});
    r.back().weights.push_back(w);
  }
  return r;
}

// ---- files of a step -------------------------------------------------------------------------------------

struct Rank {
  int pp = 0, pp_size = 1, tp = 0, tp_size = 1;
};

std::string file_name(const Rank& r) {
  return str("model_weight_pp-rank-", r.pp, "-of-", r.pp_size, "_tp-rank-", r.tp, "-of-", r.tp_size,
             ".safetensors");
}

const char* const kBareName = "model_weight.safetensors";

Rank rank_of(const fs::path& file) {
  const std::string name = file.filename().string();
  Rank r;
  if (name == kBareName) return r;
  const int read = std::sscanf(name.c_str(), "model_weight_pp-rank-%9d-of-%9d_tp-rank-%9d-of-%9d", &r.pp,
                               &r.pp_size, &r.tp, &r.tp_size);
  const bool within = 0 <= r.pp && r.pp < r.pp_size && 0 <= r.tp && r.tp < r.tp_size;
  LLATTE_CHECK(read == 4 && name == file_name(r) && within, file.string(), ": is neither ", kBareName,
               " nor of the form model_weight_pp-rank-0-of-1_tp-rank-0-of-1.safetensors");
  return r;
}

// The shards of one parameter in the order of their tp ranks, all of them.
std::vector<fs::path> ordered_shards(const fs::path& module, const std::vector<fs::path>& files) {
  std::map<int, fs::path> by_tp;
  const Rank first = rank_of(files[0]);
  for (const fs::path& file : files) {
    const Rank r = rank_of(file);
    const bool alike = r.tp_size == first.tp_size && r.pp == first.pp && r.pp_size == first.pp_size;
    LLATTE_CHECK(alike && by_tp.emplace(r.tp, file).second, module.string(), ": ",
                 files[0].filename().string(), " and ", file.filename().string(),
                 " are not shards of one parameter");
  }
  std::vector<fs::path> r;
  for (const auto& [tp, file] : by_tp) {
    if (tp != static_cast<int>(r.size())) break;
    r.push_back(file);
  }
  LLATTE_CHECK(static_cast<int>(r.size()) == first.tp_size, module.string(), ": the shard tp-rank-", r.size(),
               "-of-", first.tp_size, " is missing");
  return r;
}

using Tensors = std::map<std::string, std::shared_ptr<const ShardedTensor>>;  // by module

Tensors open_tensors(const fs::path& model) {
  LLATTE_CHECK(fs::is_directory(model), model.string(), " is missing; a nanotron step has its weights there");
  std::map<std::string, std::vector<fs::path>> files;
  for (const auto& entry : fs::recursive_directory_iterator(model))
    if (entry.is_regular_file() && entry.path().extension() == ".safetensors")
      files[fs::relative(entry.path().parent_path(), model).generic_string()].push_back(entry.path());
  Tensors r;
  for (auto& [module, shards] : files) {
    std::sort(shards.begin(), shards.end());
    r[module] = std::make_shared<ShardedTensor>(ShardedTensor::open(ordered_shards(model / module, shards)));
  }
  return r;
}

// ---- reading ---------------------------------------------------------------------------------------------

// A config that asks for far more than the files hold is refused before anything is made of it.
void check_plausible(const LlamaConfig& c, const Tensors& tensors, const std::string& where) {
  int64_t held = 0;
  for (const auto& [module, t] : tensors) held += numel_of(t->shape());
  const int64_t asked = param_count(c);
  LLATTE_CHECK(asked / 4 <= held + 1000000, where, ": model_config.json describes ", asked,
               " parameters, the weights hold ", held);
}

// One Error that lists every missing, surplus and wrongly shaped parameter.
void check_parameters(const std::vector<Parameter>& wanted, const Tensors& tensors,
                      const std::string& where) {
  std::string complaints;
  const auto complain = [&](const auto&... parts) {
    complaints += (complaints.empty() ? "" : "; ") + str(parts...);
  };
  Tensors left = tensors;
  for (const Parameter& p : wanted) {
    const auto f = left.find(p.module);
    if (f == left.end()) {
      complain(p.module, " is missing");
      continue;
    }
    if (f->second->shape() != p.shape())
      complain(p.module, " is ", f->second->shape(), ", the config asks for ", p.shape());
    left.erase(f);
  }
  for (const auto& [module, t] : left) complain(printable(module), " is not part of this model");
  LLATTE_CHECK(complaints.empty(), where, ": the weights do not fit model_config.json: ", complaints);
}

struct Place {
  std::shared_ptr<const ShardedTensor> tensor;
  int64_t begin = 0, end = 0;  // rows
};

// Fills `weights` and `read`.
void place_weights(const std::vector<Parameter>& parameters, const Tensors& tensors, Checkpoint& c) {
  std::map<std::string, Place> places;
  for (const Parameter& p : parameters) {
    const auto tensor = tensors.at(p.module);
    const int64_t element = tensor->bytes() / numel_of(tensor->shape());
    int64_t row = 0;
    for (const auto& [name, shape] : p.weights) {
      places[name] = {tensor, row, row + shape[0]};
      c.weights.push_back({name, {tensor->dtype(), shape, numel_of(shape) * element}});
      row += shape[0];
    }
  }
  c.read = [places, where = c.path.string()](const std::string& name, DType t) {
    const auto it = places.find(name);
    LLATTE_CHECK(it != places.end(), where, ": there is no weight '", name, "'");
    return it->second.tensor->read_rows(it->second.begin, it->second.end, t);
  };
}

std::string latest_step(const fs::path& folder) {
  std::string step = read_file(folder / "latest.txt");
  while (!step.empty() && std::isspace(static_cast<unsigned char>(step.back()))) step.pop_back();
  return step;
}

bool is_step(const std::string& word) {
  return !word.empty() && word.find_first_not_of("0123456789") == word.npos;
}

fs::path step_folder(const fs::path& folder) {
  if (fs::exists(folder / "model_config.json")) return folder;
  const fs::path latest = folder / "latest.txt";
  LLATTE_CHECK(fs::exists(latest), folder.string(),
               " is no nanotron checkpoint: it has neither latest.txt nor model_config.json");
  const std::string step = latest_step(folder);
  LLATTE_CHECK(is_step(step), latest.string(), ": '", printable(step),
               "' is no step; expected a number like 1000");
  LLATTE_CHECK(fs::exists(folder / step / "model_config.json"), latest.string(), " names step ",
               printable(step), ", but ", printable((folder / step).string()),
               " holds no model_config.json; give the folder of another step");
  return folder / step;
}

YAML::Node load_yaml(const fs::path& file) {
  try {
    return YAML::Load(read_file(file));
  } catch (const YAML::Exception& e) {
    LLATTE_FAIL(file.string(), ": this is not YAML (", e.msg, ")");
  }
}

// config.yaml's tokenizer_name_or_path; empty: none.
std::string tokenizer_name(const fs::path& config) {
  if (!fs::exists(config)) return "";
  YAML::Node node = load_yaml(config);
  for (const char* key : {"tokenizer", "tokenizer_name_or_path"}) {
    if (!node.IsMap() || !node[key]) return "";
    node.reset(node[key]);
  }
  return node.IsScalar() ? node.Scalar() : "";
}

// The step's folder, or the one that config.yaml names, seen from there or from here; a name on a hub is
// none.
void read_tokenizer(Checkpoint& c) {
  read_tokenizer_files(c.path, c);
  const std::string name = tokenizer_name(c.path / "config.yaml");
  if (name.empty()) return;
  for (const fs::path& folder : {c.path / name, fs::path(name)}) {
    std::error_code ignored;
    if (c.tokenizer_json.empty() && fs::exists(folder / "tokenizer.json", ignored))
      read_tokenizer_files(folder, c);
  }
}

// ---- writing ---------------------------------------------------------------------------------------------

const char* dtype_name(DType t) { return t == DType::bf16 ? "bfloat16" : "float32"; }

// The fields of nanotron's LlamaConfig, in its order. A token id that is not set stays out: it would have to
// be a number.
ordered model_config(const LlamaConfig& c, DType dtype) {
  const ordered hf = ordered::parse(hf_config(c, dtype));
  ordered j;
  const auto copy = [&](auto... keys) {
    for (const char* key : {keys...})
      if (hf.contains(key)) j[key] = hf.at(key);
  };
  copy("bos_token_id");
  if (c.eos_token_id) j["eos_token_id"] = *c.eos_token_id;
  copy("hidden_act", "hidden_size", "initializer_range", "intermediate_size", "max_position_embeddings",
       "num_attention_heads", "num_hidden_layers", "num_key_value_heads");
  j["pad_token_id"] = hf.value("pad_token_id", ordered());
  j["pretraining_tp"] = 1;
  copy("rms_norm_eps", "rope_scaling", "rope_theta", "tie_word_embeddings", "use_cache", "vocab_size");
  j["is_llama_config"] = true;
  j["rope_interleaved"] = false;
  copy("RoPE", "SVD");
  if (c.mla) j["RoPE"].erase("kept_pairs");  // ours alone
  return j;
}

// The parts of a training config that a checkpoint needs; data, optimizer and schedule are the next run's
// own.
ordered training_config(const Checkpoint& c, DType dtype, int64_t step) {
  ordered j;
  j["general"] = {{"project", "llatte"}, {"run", "converted"}, {"seed", 42}};
  j["general"]["step"] = step;
  j["general"]["consumed_train_samples"] = 0;
  j["model"] = {{"ddp_bucket_cap_mb", 25}, {"dtype", dtype_name(dtype)}};
  j["model"]["init_method"]["std"] = c.config.initializer_range;
  j["model"]["make_vocab_size_divisible_by"] = 1;
  j["model"]["model_config"] = model_config(c.config, dtype);
  j["parallelism"] = {{"dp", 1}, {"pp", 1}, {"tp", 1}, {"pp_engine", "1f1b"}, {"tp_mode", "REDUCE_SCATTER"}};
  // tokenizer.json lies beside config.yaml
  j["tokenizer"]["tokenizer_name_or_path"] = c.tokenizer_json.empty() ? ordered() : ordered(".");
  return j;
}

// A JSON value is YAML but for one thing: YAML 1.1, which Python reads, takes 1e-05 for a word.
std::string yaml_scalar(const ordered& v) {
  std::string text = v.dump();
  if (!v.is_number_float() || text.find('.') != text.npos) return text;
  return text.insert(std::min(text.find('e'), text.size()), ".0");
}

std::string yaml_of(const ordered& object, int depth = 0) {
  std::string text;
  for (const auto& [key, v] : object.items()) {
    text += std::string(2 * depth, ' ') + key + ":";
    text += v.is_object() ? "\n" + yaml_of(v, depth + 1) : " " + yaml_scalar(v) + "\n";
  }
  return text;
}

ordered checkpoint_metadata(int64_t step) {
  ordered j;
  j["dp"] = 1;
  j["metas"] = {{"consumed_train_samples", 0}, {"last_train_step", step}};
  j["tp"] = 1;
  j["version"] = "1.2";
  return j;
}

// Where the one shard lies in the whole, in the words of data/sharded_tensor.h. nanotron splits stacked
// parameters stack by stack, o_proj and down_proj by columns, all others by rows.
std::string slices_of(const Parameter& p) {
  const auto slice = [](int64_t begin, int64_t end) { return str(begin, ",", end, ",None"); };
  const std::string all = "None,None,None";
  const Shape whole = p.shape();
  if (p.module.ends_with("/o_proj") || p.module.ends_with("/down_proj"))
    return all + "|" + all + "#" + all + "|" + slice(0, whole[1]);
  if (p.weights.size() == 1) return all + "|" + all + "#" + slice(0, whole[0]) + "|" + all;
  std::string text;
  int64_t row = 0;
  for (const auto& [name, shape] : p.weights) {
    const std::string block = slice(row, row + shape[0]) + "|" + all;
    text += (text.empty() ? "" : ";") + block + "#" + block;
    row += shape[0];
  }
  return text;
}

std::map<std::string, std::string> metadata_of(const Parameter& p) {
  const Shape s = p.shape();
  if (s.size() == 1) return {};
  return {{"version", "1.2"},
          {"local_global_slices_pairs", slices_of(p)},
          {"unsharded_shape", str("(", s[0], ", ", s[1], ")")}};
}

Tensor stacked(const Parameter& p, const Checkpoint& c, DType dtype) {
  if (p.weights.size() == 1) return c.read(p.weights[0].first, dtype);
  Tensor y = Tensor::empty(p.shape(), dtype);
  int64_t row = 0;
  for (const auto& [name, shape] : p.weights) {
    y.slice(0, row, row + shape[0]).copy_from(c.read(name, dtype));
    row += shape[0];
  }
  return y;
}

// nanotron's reader accepts no metadata but its own, so there is no format entry.
void write_parameter(const fs::path& model, const Parameter& p, const Checkpoint& c, DType dtype) {
  const bool norm = p.shape().size() == 1;  // kept whole by every rank
  const fs::path folder = model / p.module;
  fs::create_directories(folder);
  const TensorSource source{"data", dtype, p.shape(), [&] { return stacked(p, c, dtype); }};
  write_safetensors(folder / (norm ? kBareName : file_name({})), {source}, metadata_of(p), nullptr);
}

void write_step(const fs::path& folder, const Checkpoint& c, DType dtype, int64_t step) {
  for (const Parameter& p : parameters_of(c.config)) write_parameter(folder / "model/model", p, c, dtype);
  if (c.config.mla && !c.config.mla->kept.empty() && chooses_by_score(c.config.mla->rope))
    write_qk_scores(folder / kQkTensorFile, c.config);
  write_file_atomic(folder / "model_config.json", model_config(c.config, dtype).dump());
  write_file_atomic(folder / "config.yaml", yaml_of(training_config(c, dtype, step)));
  write_file_atomic(folder / "checkpoint_metadata.json", checkpoint_metadata(step).dump(2) + "\n");
  write_tokenizer_files(folder, c);
}

void check_writable(const fs::path& final_name, const Checkpoint& c, DType dtype) {
  const std::string where = "cannot write " + final_name.string();
  refuse_foreign(c.config, where);
  LLATTE_CHECK(c.config.head_dim * c.config.num_attention_heads == c.config.hidden_size, where,
               ": nanotron's head_dim is hidden_size / num_attention_heads = ", c.config.hidden_size, " / ",
               c.config.num_attention_heads, ", this model's is ", c.config.head_dim);
  LLATTE_CHECK(dtype == DType::f32 || dtype == DType::bf16, where, ": nanotron weights are f32 or bf16, not ",
               name(dtype));
  LLATTE_CHECK(!fs::exists(final_name), where, ": it exists; choose another folder");
}

}  // namespace

bool is_nanotron(const fs::path& folder) {
  if (fs::exists(folder / "model_config.json")) return true;
  if (!fs::exists(folder / "latest.txt")) return false;
  const std::string step = latest_step(folder);
  return is_step(step) && fs::exists(folder / step / "model_config.json");
}

Checkpoint open_nanotron(const fs::path& folder) {
  Checkpoint c;
  c.format = "nanotron", c.path = step_folder(folder);
  c.config = read_hf_config(c.path / "model_config.json");
  refuse_foreign(c.config, c.path.string());
  resolve_pairs(c.config, c.path);
  const Tensors tensors = open_tensors(c.path / "model/model");
  check_plausible(c.config, tensors, c.path.string());
  const std::vector<Parameter> parameters = parameters_of(c.config);
  check_parameters(parameters, tensors, c.path.string());
  place_weights(parameters, tensors, c);
  read_tokenizer(c);
  return c;
}

void save_nanotron(const fs::path& folder, const Checkpoint& checkpoint, DType dtype, int64_t step) {
  const fs::path final_name = folder / std::to_string(step);
  check_writable(final_name, checkpoint, dtype);
  NewFolder written(final_name);
  write_step(written.path(), checkpoint, dtype, step);
  written.publish();
  write_file_atomic(folder / "latest.txt", std::to_string(step));
}

}  // namespace llatte
