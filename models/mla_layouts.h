// MHA2MLA's current layout on disk, and the way between it and the canonical one (the older, nanotron-era
// names, see models/llama.h). Nothing is computed: every tensor of one layout is rows of tensors of the
// other.
//
//   current                       canonical
//   q_proj                        q_proj, its rows sorted: the kept dims of all heads first, then the others
//   k_r_proj                      W_k_r
//   kv_proj.down_kv               W_down_k, where k and v share a latent (joint)
//   kv_proj.down_k, .down_v       W_down_k, W_down_v
//   kv_proj.up_k, kv_proj.up_v    W_up_k, W_up_v
//   k_r_proj, kv_proj.up_k, .up_v of method none: the rows of k_proj that keep RoPE, its other rows, v_proj
//
// config.json says {"mha2mla": {partial_rope_version, rope_dim_for_mla (DIMS kept, two a pair),
// svd_init_method, low_rank, ...}}. Its words know fewer kinds than the numbers of RoPE and SVD: versions
// high, uniform, 2-norm, low; methods none, split, joint, only_key, only_value.
#pragma once
#include "models/checkpoint.h"
#include "models/json_fields.h"

namespace llatte {

// Whether config.json says so; a baseline of MHA2MLA's was not converted.
bool has_mha2mla(const Fields& config);
// The object `mha2mla` of config.json.
MlaConfig read_mha2mla(const Fields& f, const LlamaConfig& c);
// Errors for what the layout has no word for.
nlohmann::ordered_json mha2mla_object(const LlamaConfig& c);

// A tensor as rows of others, stacked; no list of rows: the one source as it is.
struct RowsOf {
  std::vector<std::string> sources;
  std::optional<std::vector<int64_t>> rows;
};
// Gathers them; `read` gives the sources.
Tensor read_rows(const RowsOf& from, const std::function<Tensor(const std::string& name)>& read);

// Names as in model.safetensors, "model.layers.0.self_attn.q_proj.weight". Outside attention, and for o_proj,
// both layouts have the same tensor. Needs the kept pairs.
RowsOf canonical_from_current(const LlamaConfig& c, const std::string& name);
RowsOf current_from_canonical(const LlamaConfig& c, const std::string& name);
// Every tensor of the current layout, as param_shapes lists those of the canonical one.
std::vector<std::pair<std::string, Shape>> current_shapes(const LlamaConfig& c);

}  // namespace llatte
