// See gguf.h. Reading: architecture, config and list of tensors must be exactly what a Llama here can be;
// what would change the numbers is honoured or refused by name. Writing: the metadata that llama.cpp asks
// for.
#include "models/gguf.h"
#include <algorithm>
#include <charconv>
#include "data/gguf.h"
#include "data/json.h"
#include "models/gguf_rope.h"
#include "models/gguf_tokenizer.h"

namespace llatte {
namespace {

namespace fs = std::filesystem;

constexpr const char* kRopeFactors = "rope_freqs.weight";

// ---- names and rows --------------------------------------------------------------------------------------

struct Renamed {
  const char *hf, *gguf;
};
constexpr Renamed kTop[] = {
    {"model.embed_tokens.", "token_embd."}, {"model.norm.", "output_norm."}, {"lm_head.", "output."}};
constexpr Renamed kBlock[] = {
    {"input_layernorm.", "attn_norm."},    {"post_attention_layernorm.", "ffn_norm."},
    {"self_attn.q_proj.", "attn_q."},      {"self_attn.k_proj.", "attn_k."},
    {"self_attn.v_proj.", "attn_v."},      {"self_attn.o_proj.", "attn_output."},
    {"self_attn.q_norm.", "attn_q_norm."}, {"self_attn.k_norm.", "attn_k_norm."},
    {"mlp.gate_proj.", "ffn_gate."},       {"mlp.up_proj.", "ffn_up."},
    {"mlp.down_proj.", "ffn_down."}};

// model.layers.3.mlp.up_proj.weight -> blk.3.ffn_up.weight
std::string gguf_name(const std::string& hf) {
  const std::string layers = "model.layers.";
  for (const Renamed& r : kTop)
    if (hf.starts_with(r.hf)) return r.gguf + hf.substr(std::string(r.hf).size());
  const size_t begin = layers.size(), dot = hf.find('.', begin);
  for (const Renamed& r : kBlock)
    if (hf.compare(dot + 1, std::string(r.hf).size(), r.hf) == 0)
      return "blk." + hf.substr(begin, dot + 1 - begin) + r.gguf +
             hf.substr(dot + 1 + std::string(r.hf).size());
  LLATTE_FAIL("GGUF has no name for the weight ", hf);
}

const char* architecture_of(const LlamaConfig& c) {
  return c.qkv_bias ? "qwen2" : c.qk_norm ? "qwen3" : "llama";
}

bool is_permuted(const std::string& hf, const LlamaConfig& c) {
  return !c.qkv_bias && !c.qk_norm &&
         (hf.ends_with("self_attn.q_proj.weight") || hf.ends_with("self_attn.k_proj.weight"));
}

// A head's rows are [half][pair] here and [pair][half] in the file; the row there of row r here.
int64_t row_in_file(int64_t r, int64_t E) {
  const int64_t half = r % E / (E / 2), pair = r % (E / 2);
  return r / E * E + 2 * pair + half;
}
// And the row here of row r there.
int64_t row_from_file(int64_t r, int64_t E) {
  const int64_t pair = r % E / 2, half = r % 2;
  return r / E * E + half * (E / 2) + pair;
}

// ---- in --------------------------------------------------------------------------------------------------

std::string read_architecture(const GgufFile& f) {
  const std::string name = f.text("general.architecture"), where = f.path().string();
  LLATTE_CHECK(name == "llama" || name == "qwen2" || name == "qwen3", where, ": general.architecture '",
               printable(name), "' is not supported; have llama, qwen2, qwen3");
  const int64_t parts = f.integer("split.count", 1);
  LLATTE_CHECK(parts <= 1, where, ": this is one of ", parts,
               " parts of a model; join them first (llama-gguf-split --merge)");
  return name;
}

// Keys whose only honoured value is the one given: anything else would change the numbers.
void refuse_unsupported(const GgufFile& f, const std::string& a) {
  const std::string where = f.path().string(), scaling = f.text(a + "rope.scaling.type", "none");
  LLATTE_CHECK(scaling == "none", where, ": ", a, "rope.scaling.type '", printable(scaling),
               "' is not supported; have none, and llama3's by rope_freqs.weight");
  const double linear = f.number(a + "rope.scale_linear", 1);
  LLATTE_CHECK(linear == 1, where, ": ", a, "rope.scale_linear ", linear, " is not supported, only 1");
  for (const char* key : {"expert_count", "attention.sliding_window"}) {
    const int64_t n = f.integer(a + key, 0);
    LLATTE_CHECK(n == 0, where, ": ", a, key, " ", n, " is not supported, only 0");
  }
}

// A size of the model: products of two must fit 63 bits.
int64_t size_at(const GgufFile& f, const std::string& key) {
  const int64_t n = f.integer(key);
  LLATTE_CHECK(n <= INT32_MAX, f.path().string(), ": ", key, " is ", n, ", beyond any model");
  return n;
}

int64_t read_head_dim(const GgufFile& f, const std::string& a, const LlamaConfig& c) {
  const std::string where = f.path().string();
  const bool given = f.has(a + "attention.key_length");
  LLATTE_CHECK(given || (c.num_attention_heads > 0 && c.hidden_size % c.num_attention_heads == 0), where,
               ": ", a, "embedding_length ", c.hidden_size, " is no multiple of ", a, "attention.head_count ",
               c.num_attention_heads);
  const int64_t E = given ? size_at(f, a + "attention.key_length") : c.hidden_size / c.num_attention_heads;
  for (const char* key : {"attention.value_length", "rope.dimension_count"}) {
    const int64_t n = f.integer(a + key, E);
    LLATTE_CHECK(n == E, where, ": ", a, key, " ", n, " is not supported, only the width of a head, ", E);
  }
  return E;
}

void read_sizes(const GgufFile& f, const std::string& a, LlamaConfig& c) {
  c.hidden_size = size_at(f, a + "embedding_length");
  c.num_hidden_layers = size_at(f, a + "block_count");
  c.num_attention_heads = size_at(f, a + "attention.head_count");
  const std::string kv = a + "attention.head_count_kv";
  c.num_key_value_heads = f.has(kv) ? size_at(f, kv) : c.num_attention_heads;
  c.head_dim = read_head_dim(f, a, c);
  c.intermediate_size = size_at(f, a + "feed_forward_length");
  c.max_position_embeddings = size_at(f, a + "context_length");
  const auto embedding = f.tensors().find("token_embd.weight");
  LLATTE_CHECK(embedding != f.tensors().end(), f.path().string(),
               ": the tensor token_embd.weight is missing");
  c.vocab_size = embedding->second.shape[0];
  // Names of all weights are about to be made: not for a count that the file does not hold.
  LLATTE_CHECK(c.num_hidden_layers <= static_cast<int64_t>(f.tensors().size()), f.path().string(), ": ", a,
               "block_count is ", c.num_hidden_layers, ", the file has ", f.tensors().size(), " tensors");
}

void read_token_ids(const GgufFile& f, LlamaConfig& c) {
  const auto id = [&](const std::string& which) -> std::optional<int64_t> {
    const std::string key = "tokenizer.ggml." + which + "_token_id";
    return f.has(key) ? std::optional(f.integer(key)) : std::nullopt;
  };
  c.bos_token_id = id("bos"), c.eos_token_id = id("eos"), c.pad_token_id = id("padding");
  const auto turn = id("eot");
  if (turn && c.eos_token_id && *turn != *c.eos_token_id) c.more_eos_token_ids = {*turn};
}

// The file's f32 as the number that was meant: the shortest decimal with the same f32, 1e-5 for 9.9999997e-6.
double meant_by(double f32) {
  char text[32];
  const auto end = std::to_chars(text, text + sizeof text, static_cast<float>(f32)).ptr;
  double number = f32;
  std::from_chars(text, end, number);
  return number;
}

LlamaConfig read_config(const GgufFile& f) {
  const std::string architecture = read_architecture(f), a = architecture + ".";
  refuse_unsupported(f, a);
  LlamaConfig c;
  c.qkv_bias = architecture == "qwen2", c.qk_norm = architecture == "qwen3";
  read_sizes(f, a, c);
  read_token_ids(f, c);
  c.rms_norm_eps = meant_by(f.number(a + "attention.layer_norm_rms_epsilon"));
  c.rope_theta = meant_by(f.number(a + "rope.freq_base", c.rope_theta));
  c.tie_word_embeddings = !f.has_tensor("output.weight");
  try {
    c.check();
  } catch (const Error& e) {
    LLATTE_FAIL(f.path().string(), ": ", e.what());
  }
  if (f.has_tensor(kRopeFactors))
    c.rope_scaling = scaling_of(f.read(kRopeFactors, DType::f64).to_vector<double>(), c,
                                f.path().string() + ": " + kRopeFactors);
  return c;
}

void check_tensors(const GgufFile& f, const LlamaConfig& c) {
  std::map<std::string, std::string> hf;
  for (const auto& [name, shape] : param_shapes(c)) hf[gguf_name(name)] = name;
  std::vector<std::pair<std::string, Shape>> found;
  for (const auto& [name, t] : f.tensors()) {
    if (name == kRopeFactors) continue;
    const auto known = hf.find(name);
    found.emplace_back(known == hf.end() ? printable(name) : known->second, t.shape);
  }
  check_weights(c, param_shapes(c), found, f.path().string());
}

// ---- out -------------------------------------------------------------------------------------------------

using Metadata = std::vector<std::pair<std::string, GgufValue>>;

int64_t file_type_of(GgufType t) {  // general.file_type: what most tensors are
  switch (t) {
    case GgufType::F32: return 0;
    case GgufType::F16: return 1;
    case GgufType::Q8_0: return 7;
    case GgufType::BF16: return 32;
    default: LLATTE_FAIL("GGUF files are written as F32, F16, BF16 or Q8_0, not as ", info_of(t).name);
  }
}

std::string model_name(const fs::path& path) {
  const fs::path clean = path.has_filename() ? path : path.parent_path();  // "a/b/" is b
  return clean.stem().empty() ? "model" : clean.stem().string();
}

Metadata model_metadata(const Checkpoint& checkpoint, GgufType type) {
  const LlamaConfig& c = checkpoint.config;
  const std::string architecture = architecture_of(c), a = architecture + ".";
  Metadata m{{"general.architecture", gguf_text(architecture)},
             {"general.name", gguf_text(model_name(checkpoint.path))},
             {a + "context_length", gguf_u32(c.max_position_embeddings)},
             {a + "embedding_length", gguf_u32(c.hidden_size)},
             {a + "block_count", gguf_u32(c.num_hidden_layers)},
             {a + "feed_forward_length", gguf_u32(c.intermediate_size)},
             {a + "attention.head_count", gguf_u32(c.num_attention_heads)},
             {a + "attention.head_count_kv", gguf_u32(c.num_key_value_heads)},
             {a + "rope.freq_base", gguf_f32(c.rope_theta)},
             {a + "attention.layer_norm_rms_epsilon", gguf_f32(c.rms_norm_eps)},
             {a + "rope.dimension_count", gguf_u32(c.head_dim)},
             {a + "attention.key_length", gguf_u32(c.head_dim)},
             {a + "attention.value_length", gguf_u32(c.head_dim)},
             {a + "vocab_size", gguf_u32(c.vocab_size)},
             {"general.file_type", gguf_u32(file_type_of(type))}};
  if (type == GgufType::Q8_0) m.emplace_back("general.quantization_version", gguf_u32(2));
  return m;
}

void add_token_ids(const LlamaConfig& c, Metadata& m) {
  const auto add = [&](const std::string& which, std::optional<int64_t> id) {
    if (id) m.emplace_back("tokenizer.ggml." + which + "_token_id", gguf_u32(*id));
  };
  add("bos", c.bos_token_id), add("eos", c.eos_token_id), add("padding", c.pad_token_id);
  if (!c.more_eos_token_ids.empty()) add("eot", c.more_eos_token_ids[0]);
}

Metadata metadata_of(const Checkpoint& c, GgufType type) {
  Metadata m = model_metadata(c, type);
  if (!c.tokenizer_json.empty()) {
    const auto tokenizer =
        gguf_tokenizer(c.tokenizer_json, c.config.vocab_size, c.path.string() + ": tokenizer.json");
    m.insert(m.end(), tokenizer.begin(), tokenizer.end());
    m.emplace_back("tokenizer.ggml.add_bos_token", gguf_flag(false));
  }
  add_token_ids(c.config, m);
  if (!c.chat_template.empty()) m.emplace_back("tokenizer.chat_template", gguf_text(c.chat_template));
  return m;
}

// The type that a weight gets when its file is of type t.
GgufType type_in(GgufType t, const Shape& shape) {
  if (shape.size() == 1) return GgufType::F32;
  return shape.back() % info_of(t).block == 0 ? t : GgufType::F16;
}

std::vector<GgufSource> sources_of(const Checkpoint& checkpoint, GgufType type) {
  const LlamaConfig& c = checkpoint.config;
  std::vector<GgufSource> sources;
  for (const auto& [name, info] : checkpoint.weights) {
    GgufSource s{gguf_name(name), type_in(type, info.shape), info.shape, nullptr, nullptr};
    s.get = [&checkpoint, name = name] { return checkpoint.read(name, DType::f32); };
    if (is_permuted(name, c)) s.row_of = [E = c.head_dim](int64_t r) { return row_from_file(r, E); };
    sources.push_back(std::move(s));
  }
  if (c.rope_scaling)
    sources.push_back({kRopeFactors,
                       GgufType::F32,
                       {c.head_dim / 2},
                       [&c] { return Tensor::from(rope_factors(c), {c.head_dim / 2}).to(DType::f32); },
                       nullptr});
  return sources;
}

}  // namespace

Checkpoint open_gguf(const fs::path& file) {
  const GgufFile f = GgufFile::open(file);
  Checkpoint c;
  c.format = "gguf", c.path = file;
  c.config = read_config(f);
  check_tensors(f, c.config);
  for (const auto& [name, shape] : param_shapes(c.config)) {
    const GgufTensor& t = f.tensors().at(gguf_name(name));
    c.weights.push_back({name, {info_of(t.type).name, shape, static_cast<int64_t>(t.bytes)}});
  }
  c.read = [f, config = c.config](const std::string& name, DType t) {
    if (!is_permuted(name, config)) return f.read(gguf_name(name), t);
    return f.read(gguf_name(name), t, [E = config.head_dim](int64_t r) { return row_in_file(r, E); });
  };
  c.tokenizer_json = read_gguf_tokenizer(f);
  c.chat_template = f.text("tokenizer.chat_template", "");
  return c;
}

void save_gguf(const fs::path& file, const Checkpoint& checkpoint, GgufType type) {
  const LlamaConfig& c = checkpoint.config;
  LLATTE_CHECK(!c.mla && !c.hla, "cannot write ", file.string(), ": GGUF has no form for latent attention (",
               c.mla ? "MLA" : "HLA", ")");
  LLATTE_CHECK(!(c.qkv_bias && c.qk_norm), "cannot write ", file.string(),
               ": no GGUF architecture has both q, k, v biases and q/k norms");
  write_gguf(file, metadata_of(checkpoint, type), sources_of(checkpoint, type));
}

}  // namespace llatte
