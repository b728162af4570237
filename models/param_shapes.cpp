// What a Llama of a given configuration is made of, without building it: names, shapes, how many numbers.
#include <functional>
#include "models/llama.h"

namespace llatte {
namespace {

int64_t hla_cache_values(const HlaConfig& c, int64_t layer) {
  const HlaLayer& l = c.layers[static_cast<size_t>(layer)];
  const int64_t planes = c.rope == HlaRope::latent_literal ? 0 : 2 * l.k.count();  // literal: they are c_k
  return planes + l.rank_k + (c.rope == HlaRope::unified ? 0 : l.rank_v);
}

}  // namespace

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

bool is_latent(const LlamaConfig& c) { return c.mla && c.mla->svd.method != SvdMethod::none; }

LatentWidths latent_widths(const LlamaConfig& c) {
  using enum SvdMethod;
  const int64_t K = c.num_key_value_heads, E = c.head_dim;
  LatentWidths w;
  w.kept = 2 * K * kept_pairs(c), w.lost = K * E - w.kept;
  if (!is_latent(c)) return w;
  const SvdMethod m = c.mla->svd.method;
  const int64_t R = c.mla->svd.low_rank * K;
  w.rank_k = m == only_value ? 0 : R;
  w.rank_v = m == only_key ? 0 : R;
  w.shared = w.rank_k && w.rank_v && m != split && m != sqrt_split;
  return w;
}

int64_t cache_values(const LlamaConfig& c, int64_t layer) {
  if (c.hla) return hla_cache_values(*c.hla, layer);
  if (!is_latent(c)) return 2 * c.num_key_value_heads * c.head_dim;
  const LatentWidths w = latent_widths(c);
  if (w.shared) return w.kept + w.rank_k;
  return w.kept + (w.rank_k ? w.rank_k : w.lost) + (w.rank_v ? w.rank_v : w.kept + w.lost);
}

int64_t cache_values(const LlamaConfig& c) {
  int64_t sum = 0;
  for (int64_t l = 0; l < c.num_hidden_layers; ++l) sum += cache_values(c, l);
  return sum;
}

double mean_cache_values(const LlamaConfig& c) {
  return static_cast<double>(cache_values(c)) / static_cast<double>(c.num_hidden_layers);
}

namespace {

using NamedShapes = std::vector<std::pair<std::string, Shape>>;
using NamedLinear = std::function<void(const std::string& name, int64_t out, int64_t in)>;

// Nanotron-era names. What is not factored is an up projection that reads x itself; what has no rows is not
// there.
void add_mla_shapes(const LlamaConfig& c, const std::string& at, NamedShapes& r) {
  const int64_t D = c.hidden_size;
  const LatentWidths w = latent_widths(c);
  const auto add = [&](const char* name, int64_t out, int64_t in, bool bias) {
    if (out == 0) return;
    r.push_back({at + name + ".weight", {out, in}});
    if (bias) r.push_back({at + name + ".bias", {out}});
  };
  add("W_k_r", w.kept, D, c.qkv_bias);
  add("W_down_k", w.rank_k, D, false);
  if (!w.shared) add("W_down_v", w.rank_v, D, false);
  add("W_up_k", w.lost, w.rank_k ? w.rank_k : D, c.qkv_bias);
  add("W_up_v", w.kept + w.lost, w.rank_v ? w.rank_v : D, c.qkv_bias);
}

// q of a layer of HLA: whole, in planes, or behind a latent.
void add_hla_query_shapes(const LlamaConfig& c, const HlaLayer& l, const NamedLinear& linear,
                          const NamedLinear& plain) {
  const int64_t D = c.hidden_size, HE = c.num_attention_heads * c.head_dim, P = l.q.count();
  const int64_t group = c.num_attention_heads / c.num_key_value_heads, g = c.hla->head_block;
  if (lifts_planes(c.hla->rope) && P > 0) {
    linear("W_down_q", 2 * P, D);
    for (const char* name : {"A_q_re", "A_q_im"}) plain(name, g ? g * group : c.num_attention_heads, P);
  } else if (l.rank_q > 0) {
    plain("W_down_q.weight", l.rank_q, D);
    linear("W_up_q", HE, l.rank_q);
  } else {
    linear("q_proj", HE, D);
  }
}

void add_hla_shapes(const LlamaConfig& c, const HlaLayer& l, const std::string& at, NamedShapes& r) {
  const int64_t D = c.hidden_size, K = c.num_key_value_heads, E = c.head_dim, P = l.k.count();
  const bool lifts = lifts_planes(c.hla->rope);
  const NamedLinear plain = [&](const std::string& name, int64_t out, int64_t in) {
    r.push_back({at + name, {out, in}});
  };
  const NamedLinear linear = [&](const std::string& name, int64_t out, int64_t in) {
    plain(name + ".weight", out, in);
    if (c.qkv_bias) r.push_back({at + name + ".bias", {out}});
  };
  add_hla_query_shapes(c, l, linear, plain);
  if (lifts && P > 0) {
    linear("W_k_r", 2 * P, D);
    for (const char* name : {"A_k_re", "A_k_im"}) plain(name, c.hla->head_block ? c.hla->head_block : K, P);
  }
  if (l.rank_k > 0) {
    plain("W_down_k.weight", l.rank_k, D);
    linear("W_up_k", K * 2 * (lifts ? E / 2 - c.hla->rope_pairs : E / 2), l.rank_k);
  }
  if (c.hla->rope != HlaRope::unified) plain("W_down_v.weight", l.rank_v, D);
  linear("W_up_v", K * E, l.rank_v);
  plain("o_proj.weight", D, c.num_attention_heads * E);
}

void add_attention_shapes(const LlamaConfig& c, int64_t layer, const std::string& at, NamedShapes& r) {
  if (c.hla) return add_hla_shapes(c, c.hla->layers[static_cast<size_t>(layer)], at, r);
  const int64_t D = c.hidden_size, H = c.num_attention_heads, K = c.num_key_value_heads, E = c.head_dim;
  const auto linear = [&](const std::string& name, int64_t out) {
    r.push_back({at + name + ".weight", {out, D}});
    if (c.qkv_bias) r.push_back({at + name + ".bias", {out}});
  };
  linear("q_proj", H * E);
  if (is_latent(c)) {
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

void add_block_shapes(const LlamaConfig& c, int64_t layer, const std::string& at, NamedShapes& r) {
  const int64_t D = c.hidden_size, F = c.intermediate_size;
  r.push_back({at + "input_layernorm.weight", {D}});
  add_attention_shapes(c, layer, at + "self_attn.", r);
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
  for (int64_t l = 0; l < c.num_hidden_layers; ++l) add_block_shapes(c, l, str("model.layers.", l, '.'), r);
  r.push_back({"model.norm.weight", {D}});
  if (!c.tie_word_embeddings) r.push_back({"lm_head.weight", {c.vocab_size, D}});
  return r;
}

int64_t param_count(const LlamaConfig& c) {
  LlamaConfig none = c;
  none.num_hidden_layers = 0;
  const auto block = [&](int64_t layer) {
    NamedShapes shapes;
    add_block_shapes(c, layer, "", shapes);
    return sum_of(shapes);
  };
  long double all = sum_of(param_shapes(none));
  if (!c.hla) all += static_cast<long double>(c.num_hidden_layers) * block(0);
  else
    for (int64_t l = 0; l < c.num_hidden_layers; ++l) all += block(l);
  LLATTE_CHECK(all < 1e18L, "config: this shape has about ", static_cast<double>(all), " parameters");
  return static_cast<int64_t>(all);
}

}  // namespace llatte
