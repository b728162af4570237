// The small layers a Llama is made of. Each owns its parameters, zero until they are initialised or loaded,
// and names them as Hugging Face does on disk; weights of products are [out, in].
//   B batch  T time  D model width  F ffn width  V vocabulary  I, O in and out widths
#pragma once
#include "nn/module.h"

namespace llatte {

// y (..,O) = x (..,I) weight_OI^T (+ bias_O).
class Linear final : public Module {
 public:
  Linear(int64_t in, int64_t out, bool bias, DType t);
  Var operator()(const Var& x) const;
  const Var& weight() const { return weight_; }
  const Var& bias() const { return bias_; }
  void params(const std::string& prefix, const ParamFn& f) override;

 private:
  Var weight_, bias_;  // bias_.value undefined: none
};

// y (..,D) = weight_VD[ids].
class Embedding final : public Module {
 public:
  Embedding(int64_t vocab, int64_t width, DType t);
  Var operator()(const Tensor& ids) const;
  const Var& weight() const { return weight_; }
  void params(const std::string& prefix, const ParamFn& f) override;

 private:
  Var weight_;
};

// y (..,D) = x / rms(x) * weight_D.  arXiv 1910.07467
class RmsNorm final : public Module {
 public:
  RmsNorm(int64_t width, double eps, DType t);
  Var operator()(const Var& x) const;
  const Var& weight() const { return weight_; }
  double eps() const { return eps_; }
  void params(const std::string& prefix, const ParamFn& f) override;

 private:
  double eps_;
  Var weight_;
};

// down(silu(gate(x)) * up(x)), the SwiGLU feed-forward.  arXiv 2002.05202
class Mlp final : public Module {
 public:
  Mlp(int64_t width, int64_t ffn, DType t);
  Var operator()(const Var& x_BTD) const;
  void params(const std::string& prefix, const ParamFn& f) override;

 private:
  Linear gate_, up_, down_;
};

}  // namespace llatte
