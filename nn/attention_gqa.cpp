// Grouped-query attention (arXiv 2305.13245): H query heads share K key/value heads; K = H is MHA, K = 1 MQA.
//   B batch  T time  S tokens seen (cached + new)  D model width  H query heads  K kv heads  E head width
// q, k and v may have biases (Qwen2), q and k an RMSNorm over E before RoPE (Qwen3), and RoPE may be kept on
// a few pairs only (MHA2MLA's partial RoPE, arXiv 2502.14837). What the tape keeps per layer is x, q, k, v, o
// and the softmax statistics: RoPE and the reshapes keep nothing.
#include <cmath>
#include <optional>
#include "autograd/ops.h"
#include "nn/attention.h"
#include "nn/kv_cache_gqa.h"
#include "nn/layers.h"

namespace llatte {
namespace {

class Gqa final : public Attention {
 public:
  explicit Gqa(const AttentionConfig& c)
      : c_(c),
        q_proj_(c.D, c.H * c.E, c.qkv_bias, c.dtype),
        k_proj_(c.D, c.K * c.E, c.qkv_bias, c.dtype),
        v_proj_(c.D, c.K * c.E, c.qkv_bias, c.dtype),
        o_proj_(c.H * c.E, c.D, false, c.dtype),
        q_pairs_(rope_pairs(c, c.H)),
        k_pairs_(rope_pairs(c, c.K)) {
    if (!c.qk_norm) return;
    q_norm_.emplace(c.E, c.norm_eps, c.dtype);
    k_norm_.emplace(c.E, c.norm_eps, c.dtype);
  }

  Var forward(const Var& x_BTD, const AttentionInput& in) override {
    const int64_t B = x_BTD.size(0), T = x_BTD.size(1), H = c_.H, K = c_.K, E = c_.E;
    LLATTE_SHAPE(x_BTD, B, T, c_.D);
    const Var plain_q_BTHE = normed(reshape(q_proj_(x_BTD), {B, T, H, E}), q_norm_);
    const Var plain_k_BTKE = normed(reshape(k_proj_(x_BTD), {B, T, K, E}), k_norm_);
    const Var q_BTHE = rope(plain_q_BTHE, in.rope.cos, in.rope.sin, in.pos, q_pairs_);
    const Var k_BTKE = rope(plain_k_BTKE, in.rope.cos, in.rope.sin, in.pos, k_pairs_);
    const Var v_BTKE = reshape(v_proj_(x_BTD), {B, T, K, E});
    LLATTE_SHAPE(q_BTHE, B, T, H, E);
    LLATTE_SHAPE(k_BTKE, B, T, K, E);
    const double scale = 1 / std::sqrt(static_cast<double>(E));
    Var o_BTHE = in.cache ? attend_cached(q_BTHE, k_BTKE, v_BTKE, *in.cache, scale)
                          : attention(q_BTHE, k_BTKE, v_BTKE, scale);
    if (in.probe) o_BTHE = in.probe->attention(in.layer, x_BTD, plain_q_BTHE, plain_k_BTKE, v_BTKE, o_BTHE);
    return o_proj_(reshape(o_BTHE, {B, T, H * E}));
  }

  std::unique_ptr<LayerCache> make_cache(int64_t B, int64_t S, CacheType t) const override {
    return std::make_unique<GqaCache>(B, S, c_.K, c_.E, t, o_proj_.weight().value.device());
  }

  void params(const std::string& prefix, const ParamFn& f) override {
    q_proj_.params(prefix + "q_proj.", f);
    k_proj_.params(prefix + "k_proj.", f);
    v_proj_.params(prefix + "v_proj.", f);
    o_proj_.params(prefix + "o_proj.", f);
    if (q_norm_) q_norm_->params(prefix + "q_norm.", f);
    if (k_norm_) k_norm_->params(prefix + "k_norm.", f);
  }

  void buffers(const BufferFn& f) override { f(q_pairs_), f(k_pairs_); }

 private:
  static Var normed(const Var& x_BTHE, const std::optional<RmsNorm>& norm) {
    return norm ? (*norm)(x_BTHE) : x_BTHE;
  }

  // The new tokens join the cache, then see all of it, themselves too, as the cache's dtype has rounded it.
  static Var attend_cached(const Var& q_BTHE, const Var& k_BTKE, const Var& v_BTKE, LayerCache& cache,
                           double scale) {
    auto* gqa = dynamic_cast<GqaCache*>(&cache);
    LLATTE_CHECK(gqa, "gqa: this cache was made by another kind of attention");
    LLATTE_CHECK(!grad_enabled(), "gqa: a cache is for decoding and keeps no gradients; hold a NoGrad");
    gqa->append(k_BTKE.value, v_BTKE.value);
    const DType t = q_BTHE.value.dtype();
    return attention(q_BTHE, constant(gqa->keys(t)), constant(gqa->values(t)), scale);
  }

  AttentionConfig c_;
  Linear q_proj_, k_proj_, v_proj_, o_proj_;
  std::optional<RmsNorm> q_norm_, k_norm_;
  Tensor q_pairs_, k_pairs_;  // which pairs keep RoPE
};

void check(const AttentionConfig& c) {
  LLATTE_CHECK(c.D > 0 && c.H > 0 && c.K > 0 && c.E > 0, "gqa: widths must be positive, got D=", c.D,
               " H=", c.H, " K=", c.K, " E=", c.E);
  LLATTE_CHECK(c.H % c.K == 0, "gqa: ", c.H, " query heads do not split over ", c.K, " kv heads");
  LLATTE_CHECK(c.E % 2 == 0, "gqa: head width ", c.E, " is odd, RoPE turns pairs");
}

}  // namespace

std::unique_ptr<Attention> make_attention_gqa(const AttentionConfig& c) {
  check(c);
  return std::make_unique<Gqa>(c);
}

}  // namespace llatte
