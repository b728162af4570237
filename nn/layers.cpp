// The small layers: parameters plus one op each.
#include "nn/layers.h"
#include "autograd/ops.h"

namespace llatte {

Linear::Linear(int64_t in, int64_t out, bool bias, DType t) : weight_(leaf(Tensor::zeros({out, in}, t))) {
  if (bias) bias_ = leaf(Tensor::zeros({out}, t));
}

Var Linear::operator()(const Var& x) const {
  return bias_.value.defined() ? linear(x, weight_, bias_) : linear(x, weight_);
}

void Linear::params(const std::string& prefix, const ParamFn& f) {
  f(prefix + "weight", weight_);
  if (bias_.value.defined()) f(prefix + "bias", bias_);
}

Embedding::Embedding(int64_t vocab, int64_t width, DType t)
    : weight_(leaf(Tensor::zeros({vocab, width}, t))) {}

Var Embedding::operator()(const Tensor& ids) const { return embedding(ids, weight_); }

void Embedding::params(const std::string& prefix, const ParamFn& f) { f(prefix + "weight", weight_); }

RmsNorm::RmsNorm(int64_t width, double eps, DType t) : eps_(eps), weight_(leaf(Tensor::zeros({width}, t))) {}

Var RmsNorm::operator()(const Var& x) const { return rms_norm(x, weight_, eps_); }

void RmsNorm::params(const std::string& prefix, const ParamFn& f) { f(prefix + "weight", weight_); }

Mlp::Mlp(int64_t width, int64_t ffn, DType t)
    : gate_(width, ffn, false, t), up_(width, ffn, false, t), down_(ffn, width, false, t) {}

Var Mlp::operator()(const Var& x_BTD) const { return down_(swiglu(gate_(x_BTD), up_(x_BTD))); }

void Mlp::params(const std::string& prefix, const ParamFn& f) {
  gate_.params(prefix + "gate_proj.", f);
  up_.params(prefix + "up_proj.", f);
  down_.params(prefix + "down_proj.", f);
}

}  // namespace llatte
