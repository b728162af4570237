// The one seam where GQA, MLA and HLA meet: x_BTD in, y_BTD out.
//   B batch  T time  D model width  H query heads  K key/value heads  E head width  R latent rank
#pragma once
#include <memory>
#include "nn/kv_cache.h"
#include "nn/module.h"

namespace llatte {

struct AttentionConfig {
  std::string kind = "gqa";  // the only switch on kind is in make_attention
  int64_t D = 0, H = 0, K = 0, E = 0;
  bool qkv_bias = false;  // Qwen2
  bool qk_norm = false;   // Qwen3: RMSNorm over E on q and k, before RoPE
  double norm_eps = 1e-5;
  DType dtype = DType::f32;

  // MHA2MLA. Pairs of each kv head that keep RoPE, ascending; empty: all of them.
  std::vector<std::vector<int32_t>> kept_pairs;
  // kind mla: widths of the latents (0: not factored), and whether k and v read the same one.
  int64_t rank_k = 0, rank_v = 0;
  bool shared_latent = false;
};

// cos, sin of angle = position * frequency, acc [S,F]. Made once per model, shared by its layers.
struct RopeTable {
  Tensor cos, sin;
};

// Sees what goes through the attention of an unconverted model: q and k before RoPE, and o, the heads'
// outputs before o_proj. What it returns goes on in o's place: o itself, or o behind an op that watches its
// gradient.
struct AttentionProbe {
  virtual ~AttentionProbe() = default;
  virtual Var attention(int64_t layer, const Var& x_BTD, const Var& q_BTHE, const Var& k_BTKE,
                        const Var& v_BTKE, const Var& o_BTHE) = 0;
};

// What an attention layer is told about the tokens it sees.
struct AttentionInput {
  const RopeTable& rope;
  const Tensor& pos;  // i32 [T]: position of each token; cached tokens come before
  int64_t layer = 0;
  // decoding: keys and values of earlier tokens are here, and the new ones are added
  LayerCache* cache = nullptr;
  AttentionProbe* probe = nullptr;
};

class Attention : public Module {
 public:
  virtual Var forward(const Var& x_BTD, const AttentionInput& in) = 0;
  // An empty cache of the layer's own kind for B sequences of up to S tokens, its numbers kept as `t`.
  virtual std::unique_ptr<LayerCache> make_cache(int64_t B, int64_t S, CacheType t) const = 0;
};

std::unique_ptr<Attention> make_attention(const AttentionConfig& c);

// For the rope kernel: i32 [heads,E/2], each pair's own frequency where kv head h / (heads/K) keeps it, -1
// where it lost RoPE; undefined if all keep it.
Tensor rope_pairs(const AttentionConfig& c, int64_t heads);

}  // namespace llatte
