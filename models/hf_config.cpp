// config.json, in and out: every field that would change what the model computes is either honoured or
// refused by name.
#include "data/files.h"
#include "models/hf.h"
#include "models/hla_config.h"
#include "models/json_fields.h"
#include "models/mla_layouts.h"
#include "models/partial_rope.h"

namespace llatte {
namespace {

using json = nlohmann::json;
using ordered = nlohmann::ordered_json;

enum class Family { llama, qwen2, qwen3 };

Family family_of(const Fields& f) {
  std::string word = f.text("model_type", "");
  if (f.has("architectures")) {
    const json& list = f.at("architectures");
    LLATTE_CHECK(list.is_array() && list.size() == 1 && list[0].is_string(), f.where(), ": architectures is ",
                 shown(list), ", expected a list of one name");
    word = list[0].get<std::string>();
  }
  if (word.empty() && f.flag("is_llama_config", false)) return Family::llama;  // nanotron
  if (word == "LlamaForCausalLM" || word == "llama") return Family::llama;
  if (word == "Qwen2ForCausalLM" || word == "qwen2") return Family::qwen2;
  if (word == "Qwen3ForCausalLM" || word == "qwen3") return Family::qwen3;
  LLATTE_FAIL(f.where(), ": architecture '", word,
              "' is not supported; have LlamaForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM");
}

// Fields whose only honoured value is the one given: anything else would change the numbers.
void refuse_unsupported(const Fields& f) {
  const std::string act = f.text("hidden_act", "silu");
  LLATTE_CHECK(act == "silu", f.where(), ": hidden_act '", act, "' is not supported, only silu");
  for (const char* key : {"attention_bias", "mlp_bias", "use_sliding_window", "rope_interleaved"})
    LLATTE_CHECK(!f.flag(key, false), f.where(), ": ", key, " true is not supported, only false");
  const double rotary = f.number("partial_rotary_factor", 1);
  LLATTE_CHECK(rotary == 1, f.where(), ": partial_rotary_factor ", rotary, " is not supported, only 1");
  LLATTE_CHECK(!f.has("quantization_config"), f.where(),
               ": quantization_config is not supported; save the model in f32, f16 or bf16");
}

SvdMethod svd_method(const Fields& s) {
  const char* key = s.has("method") ? "method" : "version";
  const std::string word = s.has(key) && s.at(key).is_string() ? s.text(key, "") : "";
  if (word == "only_key") return SvdMethod::only_key;
  if (word == "only_value") return SvdMethod::only_value;
  const int64_t number = s.integer(key, 0);
  LLATTE_CHECK(0 <= number && number <= 7, s.where(), ": ", key, " is ", number,
               ", expected 0 to 7, only_key or only_value");
  return static_cast<SvdMethod>(number);
}

// RoPE.kept_pairs [L][K], which we write for programs that would rather not choose the pairs themselves.
KeptPairs kept_pairs_of(const Fields& r) {
  if (!r.has("kept_pairs")) return {};
  try {
    return r.at("kept_pairs").get<KeptPairs>();
  } catch (const json::exception&) {
    LLATTE_FAIL(r.where(), ": kept_pairs must be a list, by layer and kv head, of lists of pairs");
  }
}

PartialRope read_partial_rope(const Fields& r) {
  PartialRope p;
  p.partial_rope_version = r.integer("partial_rope_version", 0);
  p.top_k_rope_dim = r.integer("top_k_rope_dim", 0);
  p.last_k_rope_dim = r.integer("last_k_rope_dim", 0);
  p.uniform_start_point = r.integer("uniform_start_point", 0);
  p.uniform_step = r.integer("uniform_step", 1);
  if (r.has("qk_tensor_path")) p.qk_tensor_path = r.text("qk_tensor_path", "");
  if (r.has("n_gqa_group")) p.n_gqa_group = r.integer("n_gqa_group");
  return p;
}

// MHA2MLA's two steps, each absent when the model did not take it, in either of its layouts.
void read_mla(const Fields& f, LlamaConfig& c) {
  if (has_mha2mla(f)) {
    LLATTE_CHECK(!f.has("RoPE") && !f.has("SVD"), f.where(),
                 ": mha2mla and RoPE or SVD say the same; keep one");
    c.mla = read_mha2mla(Fields(f.at("mha2mla"), f.where() + ": mha2mla"), c);
    return;
  }
  if (!f.has("RoPE") && !f.has("SVD")) return;
  MlaConfig m;
  if (f.has("RoPE")) {
    const Fields r(f.at("RoPE"), f.where() + ": RoPE");
    m.rope = read_partial_rope(r);
    m.kept = kept_pairs_of(r);
  }
  if (f.has("SVD")) {
    const Fields s(f.at("SVD"), f.where() + ": SVD");
    m.svd.method = svd_method(s);
    m.svd.low_rank = s.integer("low_rank", 0);
  }
  c.mla = m;
}

// rope_scaling, or the rope_parameters of transformers 5, which also hold rope_theta.
void read_rope(const Fields& f, LlamaConfig& c) {
  c.rope_theta = f.number("rope_theta", c.rope_theta);
  for (const char* key : {"rope_scaling", "rope_parameters"}) {
    if (!f.has(key)) continue;
    const Fields r(f.at(key), f.where() + ": " + key);
    c.rope_theta = r.number("rope_theta", c.rope_theta);
    const std::string type = r.text("rope_type", r.text("type", "default"));
    if (type == "default") continue;
    LLATTE_CHECK(type == "llama3", f.where(), ": ", key, " type '", type,
                 "' is not supported; have default, llama3");
    for (const char* needed : {"factor", "low_freq_factor", "high_freq_factor"})
      LLATTE_CHECK(r.has(needed), r.where(), ": ", needed, " is missing");
    c.rope_scaling =
        RopeScaling{r.number("factor", 0), r.number("low_freq_factor", 0), r.number("high_freq_factor", 0),
                    r.integer("original_max_position_embeddings")};
  }
}

void read_sizes(const Fields& f, LlamaConfig& c) {
  c.hidden_size = f.integer("hidden_size");
  c.num_hidden_layers = f.integer("num_hidden_layers");
  c.num_attention_heads = f.integer("num_attention_heads");
  c.num_key_value_heads = f.integer("num_key_value_heads", c.num_attention_heads);
  c.intermediate_size = f.integer("intermediate_size");
  c.vocab_size = f.integer("vocab_size");
  c.max_position_embeddings = f.integer("max_position_embeddings", c.max_position_embeddings);
  if (f.has("head_dim")) {
    c.head_dim = f.integer("head_dim");
    return;
  }
  LLATTE_CHECK(c.num_attention_heads > 0 && c.hidden_size % c.num_attention_heads == 0, f.where(),
               ": head_dim is missing and hidden_size ", c.hidden_size,
               " is not a multiple of num_attention_heads ", c.num_attention_heads);
  c.head_dim = c.hidden_size / c.num_attention_heads;
}

void read_token_ids(const Fields& f, LlamaConfig& c) {
  const auto first = [&](const char* key) -> std::optional<int64_t> {
    const auto ids = f.ids(key);
    return ids.empty() ? std::nullopt : std::optional(ids[0]);
  };
  c.bos_token_id = first("bos_token_id"), c.eos_token_id = first("eos_token_id");
  c.pad_token_id = first("pad_token_id");
  const auto eos = f.ids("eos_token_id");
  if (eos.size() > 1) c.more_eos_token_ids.assign(eos.begin() + 1, eos.end());
}

ordered method_on_disk(SvdMethod m) {
  if (m == SvdMethod::only_key) return "only_key";
  if (m == SvdMethod::only_value) return "only_value";
  return static_cast<int>(m);
}

// transformers takes the classes of modeling_llatte.py, which lies beside the weights and needs the pairs.
void add_auto_map(const std::string& family, ordered& j) {
  j["auto_map"] = {{"AutoConfig", "modeling_llatte.Llatte" + family + "Config"},
                   {"AutoModelForCausalLM", "modeling_llatte.Llatte" + family + "ForCausalLM"}};
}

void add_mla(const MlaConfig& m, ordered& j) {
  ordered& r = j["RoPE"];
  r["partial_rope_version"] = m.rope.partial_rope_version;
  r["top_k_rope_dim"] = m.rope.top_k_rope_dim;
  r["last_k_rope_dim"] = m.rope.last_k_rope_dim;
  r["uniform_start_point"] = m.rope.uniform_start_point;
  r["uniform_step"] = m.rope.uniform_step;
  r["qk_tensor_path"] = nullptr;
  if (chooses_by_score(m.rope)) r["qk_tensor_path"] = kQkTensorFile;
  if (m.rope.n_gqa_group) r["n_gqa_group"] = *m.rope.n_gqa_group;
  if (!m.kept.empty()) r["kept_pairs"] = m.kept;
  j["SVD"] = {{"method", method_on_disk(m.svd.method)}, {"low_rank", m.svd.low_rank}};
}

// As dump(2), but the pairs of all heads on one line, and a layer of HLA on one: they can be thousands.
std::string text_of(ordered j) {
  std::vector<std::string> lines;
  const auto on_one_line = [&](ordered& value) {
    lines.push_back(value.dump());
    value = str('@', lines.size() - 1, '@');
  };
  if (j.contains("RoPE") && j["RoPE"].contains("kept_pairs")) on_one_line(j["RoPE"]["kept_pairs"]);
  if (j.contains("HLA"))
    for (ordered& layer : j["HLA"]["layers"]) on_one_line(layer);
  std::string text = j.dump(2) + "\n";
  for (size_t i = 0; i < lines.size(); ++i) {
    const std::string place = str("\"@", i, "@\"");
    text.replace(text.find(place), place.size(), lines[i]);
  }
  return text;
}

const char* torch_name(DType t) {
  return t == DType::bf16 ? "bfloat16" : t == DType::f64 ? "float64" : "float32";
}

}  // namespace

LlamaConfig read_hf_config(const std::filesystem::path& file) {
  const json object = read_json(file);
  const Fields f(object, file.string());
  const Family family = family_of(f);
  refuse_unsupported(f);
  LlamaConfig c;
  c.qkv_bias = family == Family::qwen2, c.qk_norm = family == Family::qwen3;
  read_sizes(f, c);
  read_rope(f, c);
  read_token_ids(f, c);
  read_mla(f, c);
  if (f.has("HLA")) c.hla = read_hla(Fields(f.at("HLA"), f.where() + ": HLA"), c.head_dim);
  c.rms_norm_eps = f.number("rms_norm_eps", 1e-6);  // transformers' default
  c.initializer_range = f.number("initializer_range", c.initializer_range);
  c.tie_word_embeddings = f.flag("tie_word_embeddings", false);
  try {
    c.check();
  } catch (const Error& e) {
    LLATTE_FAIL(file.string(), ": ", e.what());
  }
  return c;
}

std::string hf_config(const LlamaConfig& c, DType dtype, MlaLayout layout) {
  const std::string family = c.qkv_bias ? "Qwen2" : c.qk_norm ? "Qwen3" : "Llama";
  ordered j;
  j["architectures"] = {family + "ForCausalLM"};
  j["model_type"] = c.qkv_bias ? "qwen2" : c.qk_norm ? "qwen3" : "llama";
  j["hidden_size"] = c.hidden_size;
  j["intermediate_size"] = c.intermediate_size;
  j["num_hidden_layers"] = c.num_hidden_layers;
  j["num_attention_heads"] = c.num_attention_heads;
  j["num_key_value_heads"] = c.num_key_value_heads;
  j["head_dim"] = c.head_dim;
  j["vocab_size"] = c.vocab_size;
  j["max_position_embeddings"] = c.max_position_embeddings;
  j["rms_norm_eps"] = c.rms_norm_eps;
  j["rope_theta"] = c.rope_theta;
  j["rope_scaling"] = nullptr;
  if (const auto& s = c.rope_scaling)
    j["rope_scaling"] = {{"rope_type", "llama3"},
                         {"factor", s->factor},
                         {"low_freq_factor", s->low_freq_factor},
                         {"high_freq_factor", s->high_freq_factor},
                         {"original_max_position_embeddings", s->original_max_position_embeddings}};
  if (c.mla && layout == MlaLayout::current) j["mha2mla"] = mha2mla_object(c);
  else if (c.mla) add_mla(*c.mla, j);
  if (c.hla) j["HLA"] = hla_json(*c.hla);
  if (needs_modeling_llatte(c) && layout == MlaLayout::canonical) add_auto_map(family, j);
  j["hidden_act"] = "silu";
  if (!c.qkv_bias) j["attention_bias"] = false;  // Qwen2's biases are part of its architecture
  if (!c.qkv_bias && !c.qk_norm) j["mlp_bias"] = false;
  j["attention_dropout"] = 0.0;
  j["tie_word_embeddings"] = c.tie_word_embeddings;
  j["initializer_range"] = c.initializer_range;
  if (c.bos_token_id) j["bos_token_id"] = *c.bos_token_id;
  if (c.eos_token_id) j["eos_token_id"] = *c.eos_token_id;
  if (c.eos_token_id && !c.more_eos_token_ids.empty()) {
    j["eos_token_id"] = {*c.eos_token_id};
    for (const int64_t id : c.more_eos_token_ids) j["eos_token_id"].push_back(id);
  }
  if (c.pad_token_id) j["pad_token_id"] = *c.pad_token_id;
  j["torch_dtype"] = torch_name(dtype);
  j["use_cache"] = true;
  return text_of(j);
}

void write_hf_config(const std::filesystem::path& file, const LlamaConfig& c, DType dtype, MlaLayout layout) {
  LLATTE_CHECK(!(c.qkv_bias && c.qk_norm), file.string(),
               ": no Hugging Face architecture has both q, k, v biases and q/k norms");
  write_file_atomic(file, hf_config(c, dtype, layout));
}

}  // namespace llatte
