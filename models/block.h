// One block of a Llama: x += Attn(RMSNorm(x)), x += SwiGLU(RMSNorm(x)). Its two halves can be run apart.
//   B batch  T time  D model width
#pragma once
#include <memory>
#include "autograd/ops.h"
#include "models/llama.h"
#include "nn/layers.h"

namespace llatte {

class Block final : public Module {
 public:
  Block(const LlamaConfig& c, int64_t layer, DType t)
      : attention_norm_(c.hidden_size, c.rms_norm_eps, t),
        mlp_norm_(c.hidden_size, c.rms_norm_eps, t),
        attention_(make_attention(attention_config(c, layer, t))),
        mlp_(c.hidden_size, c.intermediate_size, t) {}

  Var forward(const Var& x_BTD, const AttentionInput& in) const {
    return feed_forward(add(x_BTD, attend(x_BTD, in)));
  }
  // Attn(RMSNorm(x)).
  Var attend(const Var& x_BTD, const AttentionInput& in) const {
    return attention_->forward(attention_norm_(x_BTD), in);
  }
  // h + SwiGLU(RMSNorm(h)).
  Var feed_forward(const Var& h_BTD) const { return add(h_BTD, mlp_(mlp_norm_(h_BTD))); }
  const Attention& attention() const { return *attention_; }

  void params(const std::string& prefix, const ParamFn& f) override {
    attention_norm_.params(prefix + "input_layernorm.", f);
    attention_->params(prefix + "self_attn.", f);
    mlp_norm_.params(prefix + "post_attention_layernorm.", f);
    mlp_.params(prefix + "mlp.", f);
  }
  void buffers(const BufferFn& f) override { attention_->buffers(f); }

 private:
  RmsNorm attention_norm_, mlp_norm_;
  std::unique_ptr<Attention> attention_;
  Mlp mlp_;
};

}  // namespace llatte
