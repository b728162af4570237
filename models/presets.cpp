// The shapes people train, by name, and what makes a shape impossible.
#include <array>
#include "models/llama.h"

namespace llatte {
namespace {

struct Preset {
  const char* name;
  int64_t D, L, H, K, E, F, V;
  bool tied;
  double theta;
  int64_t max_positions;
  double norm_eps, initializer_range;
};

// Widths: the AICrossSim clm family, SmolLM v1 and Llama 2. clm's F is ceil128(1.3 * int(2*4*D/3)).
constexpr std::array<Preset, 6> kPresets{{
    {"clm-60m", 384, 22, 6, 2, 64, 1408, 49152, false, 1e4, 2048, 1e-5, 0.02},
    {"clm-200m", 768, 24, 12, 4, 64, 2688, 49152, false, 1e4, 2048, 1e-5, 0.02},
    {"smollm-135m", 576, 30, 9, 3, 64, 1536, 49152, true, 1e4, 2048, 1e-5, 0.02},
    {"smollm-360m", 960, 32, 15, 5, 64, 2560, 49152, true, 1e4, 2048, 1e-5, 0.02},
    {"smollm-1.7b", 2048, 24, 32, 32, 64, 8192, 49152, true, 1e4, 2048, 1e-5, 0.02},
    {"llama2-7b", 4096, 32, 32, 32, 128, 11008, 32000, false, 1e4, 4096, 1e-5, 0.02},
}};

LlamaConfig config_of(const Preset& p) {
  LlamaConfig c;
  c.hidden_size = p.D, c.num_hidden_layers = p.L, c.num_attention_heads = p.H, c.num_key_value_heads = p.K;
  c.head_dim = p.E, c.intermediate_size = p.F, c.vocab_size = p.V, c.tie_word_embeddings = p.tied;
  c.rope_theta = p.theta, c.max_position_embeddings = p.max_positions;
  c.rms_norm_eps = p.norm_eps, c.initializer_range = p.initializer_range;
  return c;
}

void check_positive(const char* field, int64_t value) {
  LLATTE_CHECK(value > 0, "config: ", field, " is ", value, ", it must be positive");
}

void check_scaling(const RopeScaling& s) {
  LLATTE_CHECK(s.factor > 0 && s.low_freq_factor > 0 && s.high_freq_factor > s.low_freq_factor,
               "config: rope_scaling has factor ", s.factor, ", low_freq_factor ", s.low_freq_factor,
               ", high_freq_factor ", s.high_freq_factor,
               "; they must be positive and high_freq_factor the larger of the two");
  check_positive("rope_scaling.original_max_position_embeddings", s.original_max_position_embeddings);
}

void check_mla(const LlamaConfig& c) {
  const PartialRope& rope = c.mla->rope;
  const LowRank& svd = c.mla->svd;
  const auto within = [](const char* field, int64_t value, int64_t low, int64_t high) {
    LLATTE_CHECK(low <= value && value <= high, "config: ", field, " is ", value, ", expected ", low, " to ",
                 high);
  };
  const int64_t pairs = c.head_dim / 2;
  within("RoPE.partial_rope_version", rope.partial_rope_version, 0, 6);
  within("RoPE.top_k_rope_dim", rope.top_k_rope_dim, 0, pairs);
  within("RoPE.last_k_rope_dim", rope.last_k_rope_dim, 0, pairs);
  within("RoPE.uniform_step", rope.uniform_step, 1, pairs);
  within("RoPE.uniform_start_point", rope.uniform_start_point, 0, rope.uniform_step - 1);
  LLATTE_CHECK(pairs % rope.uniform_step == 0, "config: RoPE.uniform_step ", rope.uniform_step,
               " does not divide the ", pairs, " pairs of a head");
  within("pairs that keep RoPE", kept_pairs(c), 0, pairs);
  if (!is_latent(c)) return;
  const LatentWidths w = latent_widths(c);
  within("SVD.low_rank", svd.low_rank, 1, c.hidden_size / c.num_key_value_heads);
  LLATTE_CHECK(w.lost > 0 || w.rank_k == 0, "config: RoPE is kept on all ", pairs,
               " pairs of a head, so SVD has",
               " nothing of k to factor; keep fewer pairs, or use SVD.method only_value");
  LLATTE_CHECK(!c.qk_norm, "config: SVD cannot factor k behind a q/k norm (Qwen3); use SVD.method 0");
}

void check_hla(const LlamaConfig& c) {
  LLATTE_CHECK(static_cast<int64_t>(c.hla->layers.size()) == c.num_hidden_layers, "config: HLA.layers lists ",
               c.hla->layers.size(), " of ", c.num_hidden_layers, " layers");
  for (int64_t l = 0; l < c.num_hidden_layers; ++l) {
    try {
      llatte::check_hla(attention_config(c, l, DType::f32));
    } catch (const Error& e) {
      LLATTE_FAIL("config: HLA.layers[", l, "]: ", e.what());
    }
  }
}

}  // namespace

LlamaConfig preset(const std::string& name) {
  std::string known;
  for (const Preset& p : kPresets) {
    if (name == p.name) return config_of(p);
    known += std::string(known.empty() ? "" : ", ") + p.name;
  }
  LLATTE_FAIL("preset: there is no '", name, "'; have ", known);
}

std::vector<std::string> preset_names() {
  std::vector<std::string> names;
  for (const Preset& p : kPresets) names.emplace_back(p.name);
  return names;
}

void LlamaConfig::check() const {
  const std::pair<const char*, int64_t> sizes[] = {{"hidden_size", hidden_size},
                                                   {"num_hidden_layers", num_hidden_layers},
                                                   {"num_attention_heads", num_attention_heads},
                                                   {"num_key_value_heads", num_key_value_heads},
                                                   {"head_dim", head_dim},
                                                   {"intermediate_size", intermediate_size},
                                                   {"vocab_size", vocab_size},
                                                   {"max_position_embeddings", max_position_embeddings}};
  for (const auto& [field, value] : sizes) check_positive(field, value);
  LLATTE_CHECK(num_hidden_layers <= 100000, "config: num_hidden_layers is ", num_hidden_layers,
               ", more than 100000 is surely a mistake");
  LLATTE_CHECK(num_attention_heads % num_key_value_heads == 0, "config: num_attention_heads ",
               num_attention_heads, " is not a multiple of num_key_value_heads ", num_key_value_heads);
  LLATTE_CHECK(head_dim % 2 == 0, "config: head_dim is ", head_dim, ", RoPE turns pairs and needs it even");
  LLATTE_CHECK(rms_norm_eps > 0, "config: rms_norm_eps is ", rms_norm_eps, ", it must be positive");
  LLATTE_CHECK(rope_theta > 0, "config: rope_theta is ", rope_theta, ", it must be positive");
  LLATTE_CHECK(initializer_range >= 0, "config: initializer_range is ", initializer_range,
               ", it must not be negative");
  if (rope_scaling) check_scaling(*rope_scaling);
  LLATTE_CHECK(!mla || !hla, "config: RoPE or SVD, and HLA: a model has one kind of latent attention");
  if (mla) check_mla(*this);
  if (hla) check_hla(*this);
}

}  // namespace llatte
