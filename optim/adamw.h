// AdamW with decoupled weight decay (arXiv 1711.05101) over a module's parameters, and clipping by global
// norm. f32 master weights beside bf16 parameters; moments in f32 (f64 for f64). Frozen parameters have no
// state. A step is asked for as a whole (kernels.h) and waits for the device once, for the norm.
//
// Which parameters decay: here all but the 1-d ones (norm gains, biases), the field's usual rule. nanotron
// decays EVERY parameter, norms and embeddings included, except those whose name matches a regular expression
// of its `weight_decay_exclude_named_params` (empty unless set). decay_norms_and_biases = true gives exactly
// nanotron's default; with weight_decay 0, the paper's fine-tuning recipe, there is no difference.
#pragma once
#include <map>
#include <set>
#include <string>
#include <vector>
#include "nn/module.h"
#include "tensor/kernels.h"  // AdamWTensors

namespace llatte {

struct AdamWConfig {
  double beta1 = 0.9, beta2 = 0.95, eps = 1e-8, weight_decay = 0.01;
  double clip_grad = 1.0;               // global 2-norm; 0: no clipping
  bool decay_norms_and_biases = false;  // 1-d parameters
};

class AdamW {
 public:
  // Parameters whose name `trains` denies become constants of the module: no state, and no gradient is
  // computed.
  AdamW(Module& m, const AdamWConfig& c, const std::function<bool(const std::string&)>& trains = nullptr);
  // Clips, updates every parameter that has a gradient, drops the gradients. Returns the norm before
  // clipping. A norm that is not finite changes nothing: the caller decides.
  double step(double lr);
  double grad_norm() const;  // 2-norm over all gradients there are, taken in f64
  int64_t steps() const;

  // State by name: "exp_avg.NAME", "exp_avg_sq.NAME", "master.NAME" (bf16 only). The same tensors, not
  // copies.
  std::vector<std::pair<std::string, Tensor>> state() const;
  void load_state(int64_t steps,
                  const std::function<Tensor(const std::string& name, const Shape& shape)>& read);
  Tensor master_of(
      const std::string& name) const;  // f32 weights: the master if there is one, else the parameter
  int64_t state_bytes() const;

 private:
  Tensor sum_squares() const;  // f64 [1] on the device, over all gradients there are

  struct Slot {
    std::string name;
    Var param;
    Tensor exp_avg, exp_avg_sq, master;
    bool decays = true;
  };
  AdamWConfig config_;
  std::vector<Slot> slots_;
  std::vector<AdamWTensors> updates_;  // of the step in hand; kept for its memory
  int64_t steps_ = 0;
};

}  // namespace llatte
