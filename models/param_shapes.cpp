// What a Llama of a given configuration is made of, without building it: names, shapes, how many numbers.
#include "models/llama.h"

namespace llatte {

int64_t kept_pairs(const LlamaConfig& c) {
  const PartialRope r = c.mla ? c.mla->rope : PartialRope{};
  switch (r.partial_rope_version) {
    case 0: return c.head_dim / 2;
    case 2: return c.head_dim / 2 / r.uniform_step;
    case 3: return r.top_k_rope_dim + r.last_k_rope_dim;
    case 5: return r.last_k_rope_dim;
    default: return r.top_k_rope_dim;
  }
}

namespace {

using NamedShapes = std::vector<std::pair<std::string, Shape>>;

// Nanotron-era names; W_down_v only where k and v have latents of their own (split).
void add_mla_shapes(const LlamaConfig& c, const std::string& at, NamedShapes& r) {
  const int64_t D = c.hidden_size, K = c.num_key_value_heads, E = c.head_dim;
  const int64_t kept = 2 * kept_pairs(c), R = c.mla->svd.low_rank * K;
  const int64_t method = c.mla->svd.method;
  r.push_back({at + "W_k_r.weight", {K * kept, D}});
  r.push_back({at + "W_down_k.weight", {R, D}});
  if (method == 2 || method == 3) r.push_back({at + "W_down_v.weight", {R, D}});
  r.push_back({at + "W_up_k.weight", {K * (E - kept), R}});
  r.push_back({at + "W_up_v.weight", {K * E, R}});
}

void add_attention_shapes(const LlamaConfig& c, const std::string& at, NamedShapes& r) {
  const int64_t D = c.hidden_size, H = c.num_attention_heads, K = c.num_key_value_heads, E = c.head_dim;
  const auto linear = [&](const std::string& name, int64_t out) {
    r.push_back({at + name + ".weight", {out, D}});
    if (c.qkv_bias) r.push_back({at + name + ".bias", {out}});
  };
  linear("q_proj", H * E);
  if (c.mla && c.mla->svd.method != 0) {
    add_mla_shapes(c, at, r);
  } else {
    linear("k_proj", K * E);
    linear("v_proj", K * E);
  }
  r.push_back({at + "o_proj.weight", {D, H * E}});
  if (!c.qk_norm) return;
  r.push_back({at + "q_norm.weight", {E}});
  r.push_back({at + "k_norm.weight", {E}});
}

void add_block_shapes(const LlamaConfig& c, const std::string& at, NamedShapes& r) {
  const int64_t D = c.hidden_size, F = c.intermediate_size;
  r.push_back({at + "input_layernorm.weight", {D}});
  add_attention_shapes(c, at + "self_attn.", r);
  r.push_back({at + "post_attention_layernorm.weight", {D}});
  r.push_back({at + "mlp.gate_proj.weight", {F, D}});
  r.push_back({at + "mlp.up_proj.weight", {F, D}});
  r.push_back({at + "mlp.down_proj.weight", {D, F}});
}

long double sum_of(const NamedShapes& shapes) {
  long double sum = 0;
  for (const auto& [name, shape] : shapes) {
    long double n = 1;
    for (const int64_t d : shape) n *= static_cast<long double>(d);
    sum += n;
  }
  return sum;
}

}  // namespace

std::vector<std::pair<std::string, Shape>> param_shapes(const LlamaConfig& c) {
  const int64_t D = c.hidden_size;
  NamedShapes r{{"model.embed_tokens.weight", {c.vocab_size, D}}};
  for (int64_t l = 0; l < c.num_hidden_layers; ++l) add_block_shapes(c, str("model.layers.", l, '.'), r);
  r.push_back({"model.norm.weight", {D}});
  if (!c.tie_word_embeddings) r.push_back({"lm_head.weight", {c.vocab_size, D}});
  return r;
}

int64_t param_count(const LlamaConfig& c) {
  LlamaConfig none = c;
  none.num_hidden_layers = 0;
  NamedShapes block;
  add_block_shapes(c, "", block);
  const long double all =
      sum_of(param_shapes(none)) + static_cast<long double>(c.num_hidden_layers) * sum_of(block);
  LLATTE_CHECK(all < 1e18L, "config: this shape has about ", static_cast<double>(all), " parameters");
  return static_cast<int64_t>(all);
}

}  // namespace llatte
