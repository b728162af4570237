// The current layout of MHA2MLA: words of its config, names of its tensors, order of their rows.
#include "models/mla_layouts.h"
#include <algorithm>
#include <map>
#include "models/partial_rope.h"

namespace llatte {
namespace {

using ordered = nlohmann::ordered_json;
using Rows = std::vector<int64_t>;

const std::map<std::string, int64_t> kVersions = {{"high", 1}, {"uniform", 2}, {"2-norm", 4}, {"low", 5}};
const std::map<std::string, SvdMethod> kMethods = {{"none", SvdMethod::none},
                                                   {"split", SvdMethod::split},
                                                   {"joint", SvdMethod::joint},
                                                   {"only_key", SvdMethod::only_key},
                                                   {"only_value", SvdMethod::only_value}};

template <class T>
T by_word(const std::map<std::string, T>& words, const Fields& f, const char* key) {
  const std::string word = f.text(key, "");
  const auto found = words.find(word);
  if (found != words.end()) return found->second;
  std::string have;
  for (const auto& [w, value] : words) have += (have.empty() ? "" : ", ") + w;
  LLATTE_FAIL(f.where(), ": ", key, " '", printable(word), "' is not known; have ", have);
}

template <class T>
std::string word_of(const std::map<std::string, T>& words, T value) {
  for (const auto& [word, v] : words)
    if (v == value) return word;
  return "";
}

// The paper's other initialisations have the tensors of split or of joint.
SvdMethod shape_of(SvdMethod m) {
  switch (m) {
    case SvdMethod::sqrt_split: return SvdMethod::split;
    case SvdMethod::average:
    case SvdMethod::sqrt_average:
    case SvdMethod::key_down:
    case SvdMethod::value_down: return SvdMethod::joint;
    default: return m;
  }
}

// "model.layers.3.self_attn.q_proj.weight" is layer 3, stem q_proj between `before` and `after`; elsewhere
// the stem is empty.
struct Name {
  std::string before, stem, after;
  size_t layer = 0;

  explicit Name(const std::string& name) {
    const std::string layers = "model.layers.", attention = ".self_attn.";
    const size_t at = name.find(attention), dot = name.rfind('.');
    if (!name.starts_with(layers) || at == name.npos) return;
    layer = std::stoul(name.substr(layers.size()));
    before = name.substr(0, at + attention.size());
    stem = name.substr(before.size(), dot - before.size());
    after = name.substr(dot);
  }
  std::string with(const std::string& other) const { return before + other + after; }
};

// ---- rows ------------------------------------------------------------------------------------------------

// Dims of each kv head that keep RoPE: the first dims of its pairs, then the second ones.
std::vector<Rows> kept_dims(const LlamaConfig& c, size_t layer) {
  LLATTE_CHECK(c.mla && layer < c.mla->kept.size(), "mla: the pairs that keep RoPE are not known");
  std::vector<Rows> r;
  for (const auto& pairs : c.mla->kept[layer]) {
    Rows dims(pairs.begin(), pairs.end());
    for (const int32_t j : pairs) dims.push_back(j + c.head_dim / 2);
    r.push_back(dims);
  }
  return r;
}

Rows others(const Rows& dims, int64_t E) {
  Rows r;
  for (int64_t d = 0; d < E; ++d)
    if (std::find(dims.begin(), dims.end(), d) == dims.end()) r.push_back(d);
  return r;
}

// Rows of a projection on `heads` heads: their kept dims, or their other ones.
Rows rows_of(const LlamaConfig& c, size_t layer, int64_t heads, bool kept) {
  const int64_t E = c.head_dim, G = heads / c.num_key_value_heads;
  const auto dims_K = kept_dims(c, layer);
  Rows r;
  for (int64_t h = 0; h < heads; ++h) {
    const Rows& dims = dims_K[static_cast<size_t>(h / G)];
    for (const int64_t d : kept ? dims : others(dims, E)) r.push_back(h * E + d);
  }
  return r;
}

// [kept rows of all heads | other rows of all heads]
Rows sorted_rows(const LlamaConfig& c, size_t layer, int64_t heads) {
  Rows r = rows_of(c, layer, heads, true);
  const Rows rest = rows_of(c, layer, heads, false);
  r.insert(r.end(), rest.begin(), rest.end());
  return r;
}

Rows inverse(const Rows& rows) {
  Rows r(rows.size());
  for (size_t i = 0; i < rows.size(); ++i) r[static_cast<size_t>(rows[i])] = static_cast<int64_t>(i);
  return r;
}

// ---- names -----------------------------------------------------------------------------------------------

// canonical -> current, of tensors that are the same in both.
std::map<std::string, std::string> same_tensors(const LlamaConfig& c) {
  const SvdMethod m = c.mla->svd.method;
  if (m == SvdMethod::none) return {{"v_proj", "kv_proj.up_v"}};
  const bool shared = shape_of(m) == SvdMethod::joint;
  return {{"W_k_r", "k_r_proj"},
          {"W_down_k", shared ? "kv_proj.down_kv" : "kv_proj.down_k"},
          {"W_down_v", "kv_proj.down_v"},
          {"W_up_k", "kv_proj.up_k"},
          {"W_up_v", "kv_proj.up_v"}};
}

bool splits_k(const LlamaConfig& c, const Name& n) {
  return c.mla->svd.method == SvdMethod::none && n.stem == "k_proj";
}

}  // namespace

bool has_mha2mla(const Fields& config) {
  if (!config.has("mha2mla")) return false;
  return !Fields(config.at("mha2mla"), config.where() + ": mha2mla").flag("is_baseline", false);
}

MlaConfig read_mha2mla(const Fields& f, const LlamaConfig& c) {
  MlaConfig m;
  PartialRope& r = m.rope;
  r.partial_rope_version = by_word(kVersions, f, "partial_rope_version");
  const int64_t dims = f.integer("rope_dim_for_mla"), pairs = dims / 2;
  LLATTE_CHECK(dims > 0 && dims % 2 == 0 && dims <= c.head_dim, f.where(), ": rope_dim_for_mla ", dims,
               " must be even, positive and at most head_dim ", c.head_dim);
  if (r.partial_rope_version == 5) r.last_k_rope_dim = pairs;
  else if (r.partial_rope_version != 2) r.top_k_rope_dim = pairs;
  else {
    LLATTE_CHECK(c.head_dim / 2 % pairs == 0, f.where(), ": rope_dim_for_mla ", dims,
                 " does not divide head_dim ", c.head_dim, " evenly, as version uniform must");
    r.uniform_start_point = f.integer("uniform_start_point", 0);
    r.uniform_step = c.head_dim / 2 / pairs;
  }
  if (r.partial_rope_version == 4) r.qk_tensor_path = f.text("qk_tensor_path", kQkTensorFile);
  m.svd.method = by_word(kMethods, f, "svd_init_method");
  m.svd.low_rank = f.integer("low_rank", 0);
  return m;
}

ordered mha2mla_object(const LlamaConfig& c) {
  const MlaConfig& m = *c.mla;
  const std::string version = word_of(kVersions, m.rope.partial_rope_version);
  LLATTE_CHECK(!version.empty(), "the current MHA2MLA layout has no word for RoPE.partial_rope_version ",
               m.rope.partial_rope_version, "; write --to hf");
  ordered j;
  j["model_name_or_path"] = nullptr;
  j["partial_rope_version"] = version;
  j["rope_dim_for_mla"] = 2 * kept_pairs(c);
  j["uniform_start_point"] = m.rope.uniform_start_point;
  j["qk_tensor_path"] = version == "2-norm" ? ordered(kQkTensorFile) : ordered();
  j["svd_init_method"] = word_of(kMethods, shape_of(m.svd.method));
  j["low_rank"] = m.svd.low_rank;
  for (const char* key : {"is_baseline", "is_gqa2mha2mla", "is_mla_from_scratch"}) j[key] = false;
  return j;
}

Tensor read_rows(const RowsOf& from, const std::function<Tensor(const std::string& name)>& read) {
  const Tensor first = read(from.sources[0]);
  if (!from.rows) return first;
  std::vector<Tensor> row_at;  // of the stack, each a view [1,..]
  for (const std::string& name : from.sources) {
    const Tensor t = name == from.sources[0] ? first : read(name);
    for (int64_t i = 0; i < t.size(0); ++i) row_at.push_back(t.slice(0, i, i + 1));
  }
  Shape shape = first.shape();
  shape[0] = static_cast<int64_t>(from.rows->size());
  Tensor y = Tensor::empty(shape, first.dtype());
  for (int64_t i = 0; i < shape[0]; ++i)
    y.slice(0, i, i + 1).copy_from(row_at.at(static_cast<size_t>((*from.rows)[static_cast<size_t>(i)])));
  return y;
}

RowsOf canonical_from_current(const LlamaConfig& c, const std::string& name) {
  const Name n(name);
  if (n.stem == "q_proj") return {{name}, inverse(sorted_rows(c, n.layer, c.num_attention_heads))};
  if (splits_k(c, n))
    return {{n.with("k_r_proj"), n.with("kv_proj.up_k")},
            inverse(sorted_rows(c, n.layer, c.num_key_value_heads))};
  const auto same = same_tensors(c);
  const auto other = same.find(n.stem);
  return {{other == same.end() ? name : n.with(other->second)}, std::nullopt};
}

RowsOf current_from_canonical(const LlamaConfig& c, const std::string& name) {
  const Name n(name);
  if (n.stem == "q_proj") return {{name}, sorted_rows(c, n.layer, c.num_attention_heads)};
  const bool none = c.mla->svd.method == SvdMethod::none;
  if (none && (n.stem == "k_r_proj" || n.stem == "kv_proj.up_k"))
    return {{n.with("k_proj")}, rows_of(c, n.layer, c.num_key_value_heads, n.stem == "k_r_proj")};
  for (const auto& [canonical, current] : same_tensors(c))
    if (current == n.stem) return {{n.with(canonical)}, std::nullopt};
  return {{name}, std::nullopt};
}

std::vector<std::pair<std::string, Shape>> current_shapes(const LlamaConfig& c) {
  std::vector<std::pair<std::string, Shape>> r;
  for (const auto& [name, shape] : param_shapes(c)) {
    const Name n(name);
    if (!splits_k(c, n)) {
      r.push_back({canonical_from_current(c, name).sources[0], shape});
      continue;
    }
    for (const bool kept : {true, false}) {
      Shape part = shape;
      part[0] = static_cast<int64_t>(rows_of(c, n.layer, c.num_key_value_heads, kept).size());
      r.push_back({n.with(kept ? "k_r_proj" : "kv_proj.up_k"), part});
    }
  }
  return r;
}

}  // namespace llatte
