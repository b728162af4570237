// The one seam where GQA, MLA and HLA meet: x_BTD in, y_BTD out.
//   B batch  T time  D model width  H query heads  K key/value heads  E head width  R latent rank
#pragma once
#include <memory>
#include "nn/module.h"

namespace llatte {

struct AttentionConfig {
  std::string kind = "gqa";  // the only switch on kind is in make_attention
  int64_t D = 0, H = 0, K = 0, E = 0;
  bool qkv_bias = false;  // Qwen2
  bool qk_norm = false;   // Qwen3: RMSNorm over E on q and k, before RoPE
  double norm_eps = 1e-5;
  DType dtype = DType::f32;
};

// cos, sin of angle = position * frequency, acc [S,F]. Made once per model, shared by its layers.
struct RopeTable {
  Tensor cos, sin;
};

class LayerCache;  // nn/kv_cache.h

// What an attention layer is told about the tokens it sees.
struct AttentionInput {
  const RopeTable& rope;
  const Tensor& pos;  // i32 [T]: position of each token; cached tokens come before
  LayerCache* cache =
      nullptr;  // decoding: keys and values of earlier tokens are here, and the new ones are added
};

class Attention : public Module {
 public:
  virtual Var forward(const Var& x_BTD, const AttentionInput& in) = 0;
  // An empty cache of the layer's own kind for B sequences of up to S tokens, its numbers kept as `t`.
  virtual std::unique_ptr<LayerCache> make_cache(int64_t B, int64_t S, DType t) const = 0;
};

std::unique_ptr<Attention> make_attention(const AttentionConfig& c);

}  // namespace llatte
