// Llama: token embedding, L blocks of x += Attn(RMSNorm(x)), x += SwiGLU(RMSNorm(x)), final RMSNorm, lm_head
// (tied or not). Covers Llama, Qwen2 (q, k, v biases) and Qwen3 (q/k norms); SPEC of widths is LlamaConfig.
// Files are in models/hf.h.
#pragma once
#include <memory>
#include <optional>
#include <vector>
#include "nn/attention.h"
#include "nn/kv_cache.h"

namespace llatte {

// llama3 rope_scaling: low frequencies are divided by `factor`, with a smooth passage between the two bounds.
struct RopeScaling {
  double factor = 8, low_freq_factor = 1, high_freq_factor = 4;
  int64_t original_max_position_embeddings = 8192;
};

// MHA2MLA's latent attention (SPEC names as in config.json): first RoPE is kept on a few pairs only, then the
// rest of k is factored together with v.
struct PartialRope {
  int64_t partial_rope_version =
      0;  // 0 full, 1 high, 2 uniform, 3 high+low, 4 2-norm, 5 low, 6 2-norm by layer
  int64_t top_k_rope_dim = 0, last_k_rope_dim = 0;  // pairs kept
  int64_t uniform_start_point = 0, uniform_step = 1;
  std::optional<std::string> qk_tensor_path;
  std::optional<int64_t> n_gqa_group;
};
// SVD.method. The numbers are MHA2MLA's; the last two have none and are words on disk.
enum class SvdMethod {
  none = 0,          // partial RoPE alone
  average = 1,       // one latent, its down projection the mean of k's and v's
  split = 2,         // a latent for k and one for v
  sqrt_split = 3,    // split, the singular values shared out to both sides
  sqrt_average = 4,  // average, likewise
  key_down = 5,      // one latent, k's
  value_down = 6,    // one latent, v's
  joint = 7,         // one latent, of k and v stacked
  only_key,          // a latent for k, v stays whole
  only_value
};
struct LowRank {
  SvdMethod method = SvdMethod::none;
  int64_t low_rank = 0;  // per kv head
};
using KeptPairs = std::vector<std::vector<std::vector<int32_t>>>;  // [L][K]: ascending
struct MlaConfig {
  PartialRope rope;
  LowRank svd;
  KeptPairs kept;  // pairs that keep RoPE; empty: not known yet (models/partial_rope.h)
  Tensor scores;   // f32 [L,K,E/2] that they were chosen by; undefined where the version needs none
};

// HLA: latent attention with RoPE inside the latents (HlaRope, Planes: nn/attention.h).
// One layer; the width of what is not there is 0.
struct HlaLayer {
  Planes k, q;         // of k, cached; of q, none where q is not factored
  int64_t rank_q = 0;  // original, latent_literal: width of q's latent; 0: q is not factored
  int64_t rank_k = 0;  // of k's unrotated latent (latent_literal: rotated as it is)
  int64_t rank_v = 0;  // of v's latent; unified: the same latent as k's, so rank_k = rank_v
};
struct HlaConfig {
  HlaRope rope = HlaRope::aligned;
  // First pair whose unrotated dims read k's latent: hybrid as asked for, unified 0, the others E/2.
  int64_t rope_pairs = 0;
  int64_t head_block = 0;  // kv heads that share planes; 0: all
  std::vector<HlaLayer> layers;
};

struct LlamaConfig {
  int64_t hidden_size = 0, num_hidden_layers = 0, num_attention_heads = 0, num_key_value_heads = 0,
          head_dim = 0;
  int64_t intermediate_size = 0, vocab_size = 0, max_position_embeddings = 2048;
  double rms_norm_eps = 1e-5, rope_theta = 10000, initializer_range = 0.02;
  bool tie_word_embeddings = false;
  bool qkv_bias = false;  // Qwen2
  bool qk_norm = false;   // Qwen3
  std::optional<RopeScaling> rope_scaling;
  std::optional<MlaConfig> mla;  // at most one of these two; neither: ordinary grouped-query attention
  std::optional<HlaConfig> hla;
  std::optional<int64_t> bos_token_id, eos_token_id, pad_token_id;
  std::vector<int64_t> more_eos_token_ids;  // Llama 3 ends a turn in several ways; eos_token_id is the first

  void check() const;  // throws one sentence for the first impossible value
};

// Exact, without building the model; an Error beyond 10^18.
int64_t param_count(const LlamaConfig& c);
// Pairs of a kv head that keep RoPE (version 6: on average over the heads): all E/2 unless `mla` says
// otherwise.
int64_t kept_pairs(const LlamaConfig& c);
bool is_latent(const LlamaConfig& c);  // MLA: some of k and v is factored

// What a layer of MLA is made of, all kv heads together.
struct LatentWidths {
  int64_t kept = 0, lost = 0;      // dims of k with and without RoPE: kept + lost = K E
  int64_t rank_k = 0, rank_v = 0;  // widths of the latents; 0: not factored
  bool shared = false;             // k and v read the same latent
};
LatentWidths latent_widths(const LlamaConfig& c);
// Numbers a decoder keeps of a token: in one layer, in all of them, and on average over the layers.
int64_t cache_values(const LlamaConfig& c, int64_t layer);
int64_t cache_values(const LlamaConfig& c);
double mean_cache_values(const LlamaConfig& c);
// Every parameter by its name on disk, in the order of Llama::params; a tied lm_head is not listed.
std::vector<std::pair<std::string, Shape>> param_shapes(const LlamaConfig& c);

// clm-60m clm-200m smollm-135m smollm-360m smollm-1.7b llama2-7b; an unknown name is an Error that lists
// them.
LlamaConfig preset(const std::string& name);
std::vector<std::string> preset_names();

// frequencies f64 [head_dim/2], rope_scaling applied.
std::vector<double> rope_frequencies(const LlamaConfig& c);
RopeTable make_rope_table(const std::vector<double>& frequencies, int64_t positions, DType acc,
                          Device d = Device::cpu);

// What make_attention needs for one layer.
AttentionConfig attention_config(const LlamaConfig& c, int64_t layer, DType t);

class Llama : public Module {
 public:
  Llama(const LlamaConfig& c, DType dtype);  // weights are zero until init() or a load
  ~Llama() override;
  // N(0, std) for matrices (HLA's A: so that lifted keys are as large as k_proj's), 1 for norms, 0 for
  // biases; a pure function of (seed, parameter name), any thread count.
  void init(uint64_t seed, double std);

  const LlamaConfig& config() const;
  DType dtype() const;
  Device device() const;                  // made on the CPU; moved by to()
  void set_recompute(bool each_layer);    // recompute blocks in backward: same numbers, less memory
  void set_probe(AttentionProbe* probe);  // null: none

  // Tokens and targets may lie on the host whatever the device; results lie on the device.
  // tokens i32 [B,T] -> hidden states after the final norm (B,T,D). With a cache, the tokens come after its
  // contents.
  Var hidden(const Tensor& tokens_BT, KvCache* cache = nullptr);
  // [V,D] that hidden states meet: lm_head's, or the embedding where it is tied.
  const Var& head_weight() const;
  // (B,T,V), in the model's dtype. For evaluation and decoding; training uses loss().
  Var logits(const Var& hidden_BTD);
  // Mean cross-entropy of predicting targets i32 [B,T] (-100: ignored); acc, shape ().
  Var loss(const Tensor& tokens_BT, const Tensor& targets_BT);
  // Each term of that mean: -log softmax of every target that is not -100, row by row; acc [N]. No gradient.
  // With a cache, the tokens come after its contents and join it.
  Tensor losses(const Tensor& tokens_BT, const Tensor& targets_BT, KvCache* cache = nullptr);

  // For B sequences of up to S tokens, kept as `t`, or in the model's dtype.
  KvCache make_cache(int64_t B, int64_t S, std::optional<CacheType> t = std::nullopt) const;
  void params(const std::string& prefix,
              const ParamFn& f) override;  // a tied lm_head is listed once, as the embedding
  void buffers(const BufferFn& f) override;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace llatte
