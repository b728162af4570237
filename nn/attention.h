// The one seam where GQA, MLA and HLA meet: x_BTD in, y_BTD out.
//   B batch  T time  D model width  H query heads  K key/value heads  E head width  R latent rank
#pragma once
#include <memory>
#include "nn/kv_cache.h"
#include "nn/module.h"

namespace llatte {

// HLA: latent attention with RoPE inside the latents. What is rotated is planes: two numbers of the latent
// read as one complex number, each turning with the frequency of one pair of a head. docs/latent-rope.md.
enum class HlaRope {
  original,       // unrotated latents; k is rotated after it has been lifted from them
  latent,         // planes of the plain SVD, dealt out to the heads: a new start rather than a conversion
  aligned,        // planes that lift to the model's own rotated pairs
  hybrid,         // aligned, but pairs from `rope_pairs` on lose RoPE and are read from an unrotated latent
  unified,        // planes, and one unrotated latent that k and v share
  latent_literal  // the stacked latent turned before a dense lift: scores are no function of s - t
};
// Their words in settings and in config.json.
inline constexpr const char* kHlaRopes[] = {"original", "latent",  "aligned",
                                            "hybrid",   "unified", "latent_literal"};
inline const char* name(HlaRope r) { return kHlaRopes[static_cast<size_t>(r)]; }
inline bool lifts_planes(HlaRope r) { return r != HlaRope::original && r != HlaRope::latent_literal; }

// Sorted by pair, then block (latent_literal: as they come). block b serves the kv heads [b g, (b+1) g),
// g = head_block; all 0 where all heads share the planes.
struct Planes {
  std::vector<int32_t> pair, block;
  int64_t count() const { return static_cast<int64_t>(pair.size()); }
};

struct AttentionConfig {
  std::string kind = "gqa";  // the only switch on kind is in make_attention
  int64_t D = 0, H = 0, K = 0, E = 0;
  bool qkv_bias = false;  // Qwen2
  bool qk_norm = false;   // Qwen3: RMSNorm over E on q and k, before RoPE
  double norm_eps = 1e-5;
  DType dtype = DType::f32;

  // MHA2MLA. Pairs of each kv head that keep RoPE, ascending; empty: all of them.
  std::vector<std::vector<int32_t>> kept_pairs;
  // kind mla and hla: widths of the latents (mla: 0 where not factored), and whether k and v read the same
  // one.
  int64_t rank_k = 0, rank_v = 0;
  bool shared_latent = false;

  // kind hla; models/llama.h says the same of a whole model.
  HlaRope hla_rope = HlaRope::aligned;
  Planes k_planes, q_planes;
  int64_t rank_q = 0, rope_pairs = 0, head_block = 0;
};

// cos, sin of angle = position * frequency, acc [S,F]. Made once per model, shared by its layers.
struct RopeTable {
  Tensor cos, sin;
};

// Sees what goes through attention: q and k before RoPE (latent attention: as they meet), and o, the heads'
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
  const Tensor& pos;  // i32 [T] or [B,T]: position of each token; cached tokens come before
  int64_t layer = 0;
  // decoding: keys and values of earlier tokens are here, and the new ones are added
  LayerCache* cache = nullptr;
  AttentionProbe* probe = nullptr;
};

class Attention : public Module {
 public:
  virtual Var forward(const Var& x_BTD, const AttentionInput& in) = 0;
  // An empty cache of the layer's own kind for B sequences of up to S tokens, its numbers kept as `t`, where
  // the parameters are.
  virtual std::unique_ptr<LayerCache> make_cache(int64_t B, int64_t S, CacheType t) const = 0;
};

std::unique_ptr<Attention> make_attention(const AttentionConfig& c);
// Throws one sentence for the first impossible value of kind hla, named as in config.json.
void check_hla(const AttentionConfig& c);

// For the rope kernel: i32 [heads,E/2], each pair's own frequency where kv head h / (heads/K) keeps it, -1
// where it lost RoPE; undefined if all keep it.
Tensor rope_pairs(const AttentionConfig& c, int64_t heads);

}  // namespace llatte
