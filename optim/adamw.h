// AdamW with decoupled weight decay (arXiv 1711.05101) over a module's parameters, and clipping by global
// norm. f32 master weights beside bf16 parameters; moments in f32 (f64 for f64). Frozen parameters have no
// state. A step is asked for as a whole (kernels.h) and waits for the device once, for the norm.
// Over several ranks gradients are summed first (ddp.h); with zero_stage 1 a rank keeps moments and masters
// of its own segments alone.
//
// Which parameters decay: here all but the 1-d ones (norm gains, biases), the field's usual rule. nanotron
// decays EVERY parameter, norms and embeddings included, except those whose name matches a regular expression
// of its `weight_decay_exclude_named_params` (empty unless set). decay_norms_and_biases = true gives exactly
// nanotron's default; with weight_decay 0, the paper's fine-tuning recipe, there is no difference.
#pragma once
#include <memory>
#include <string>
#include <vector>
#include "nn/module.h"
#include "optim/ddp.h"
#include "tensor/kernel_args.h"  // AdamWTensors

namespace llatte {

struct AdamWConfig {
  double beta1 = 0.9, beta2 = 0.95, eps = 1e-8, weight_decay = 0.01;
  double clip_grad = 1.0;                    // global 2-norm; 0: no clipping
  bool decay_norms_and_biases = false;       // 1-d parameters
  int zero_stage = 0;                        // 1: moments and masters are shared out over the ranks
  int64_t bucket_bytes = int64_t{25} << 20;  // of gradients that ranks sum in one go
};

// A tensor of the optimizer's state, whole whoever keeps it. Over several ranks all of them call get(), in
// the same order.
struct OptimizerTensor {
  std::string name;  // "exp_avg.NAME", "exp_avg_sq.NAME", "master.NAME" (bf16 only)
  DType dtype;
  Shape shape;
  std::function<Tensor()> get;
};

class AdamW {
 public:
  // Parameters whose name `trains` denies become constants of the module: no state, and no gradient is
  // computed. comm: the ranks that train this module together, from the same weights; null: this one alone.
  AdamW(Module& m, const AdamWConfig& c, const std::function<bool(const std::string&)>& trains = nullptr,
        Comm* comm = nullptr);
  // Before the last backward of a step: gradients are summed over the ranks while it runs.
  void expect_last_backward();
  // Clips, updates every parameter that has a gradient, drops the gradients. Returns the norm before
  // clipping. A norm that is not finite changes nothing: the caller decides.
  double step(double lr);
  double grad_norm() const;  // 2-norm over all gradients there are, taken in f64
  int64_t steps() const { return steps_; }

  std::vector<OptimizerTensor> state() const;  // by name, the order in which a file holds them
  void load_state(int64_t steps,
                  const std::function<Tensor(const std::string& name, const Shape& shape)>& read);
  // f32 weights: the master if there is one, else the parameter. All ranks call it alike.
  Tensor master_of(const std::string& name) const;
  int64_t state_bytes() const;  // of what this rank keeps

 private:
  struct Param {
    std::string name;
    Var var;
    bool decays = true;
  };
  // A parameter, or the part of it that this rank keeps, flat.
  struct Slot {
    Segment of;
    Tensor w, exp_avg, exp_avg_sq, master;
  };

  Slot make_slot(const Segment& of, Tensor w) const;
  bool sharded() const { return buckets_ && config_.zero_stage == 1; }
  Tensor gradient(const Slot& s) const;
  Tensor sum_squares() const;  // f64 [1] on the device, over all gradients there are
  Tensor whole(Tensor Slot::*part, size_t param) const;

  AdamWConfig config_;
  std::vector<Param> params_;
  std::unique_ptr<GradientBuckets> buckets_;  // null: one rank
  std::vector<Slot> slots_;
  std::vector<AdamWTensors> updates_;  // of the step in hand; kept for its memory
  int64_t steps_ = 0;
};

}  // namespace llatte
