#include "optim/adamw.h"
#include <cmath>

namespace llatte {
AdamW::AdamW(Module& m, const AdamWConfig& c, const std::function<bool(const std::string&)>& trains)
    : config_(c) {
  m.params("", [&](const std::string& name, Var& param) {
    if (trains && !trains(name)) {
      param.node = nullptr;  // a constant from now on: backward computes no gradient for it
      return;
    }
    if (!param.node) param = leaf(param.value);
    const DType t = param.value.dtype(), acc = acc_dtype(t);
    Slot s{name, param, {}, {}, {}, c.decay_norms_and_biases || param.value.ndim() > 1};
    s.exp_avg = Tensor::zeros(param.shape(), acc, param.value.device());
    s.exp_avg_sq = Tensor::zeros(param.shape(), acc, param.value.device());
    if (t != acc) s.master = param.value.to(acc);
    slots_.push_back(std::move(s));
  });
}

Tensor AdamW::sum_squares() const {
  std::vector<Tensor> grads;
  for (const Slot& s : slots_)
    if (s.param.node->grad.defined()) grads.push_back(s.param.node->grad);
  Tensor sum = Tensor::zeros({1}, DType::f64, grads.empty() ? Device::cpu : grads.front().device());
  if (!grads.empty()) kernels::sum_squares(grads, sum);
  return sum;
}

double AdamW::grad_norm() const { return std::sqrt(sum_squares().item()); }

// The norm goes from kernel to kernel on the device; it is read here when the update has been asked for.
double AdamW::step(double lr) {
  const Tensor sum = sum_squares();
  for (Slot& s : slots_)
    if (s.param.node->grad.defined())
      updates_.push_back({s.param.value, s.param.node->grad, s.exp_avg, s.exp_avg_sq, s.master,
                          s.decays ? config_.weight_decay : 0});
  kernels::adamw(updates_, sum,
                 AdamWStep{lr, config_.beta1, config_.beta2, config_.eps, config_.clip_grad, steps_ + 1});
  updates_.clear();
  const double norm = std::sqrt(sum.item());
  if (!std::isfinite(norm)) return norm;
  ++steps_;
  for (Slot& s : slots_) s.param.node->grad = Tensor();
  return norm;
}

int64_t AdamW::steps() const { return steps_; }

std::vector<std::pair<std::string, Tensor>> AdamW::state() const {
  std::vector<std::pair<std::string, Tensor>> out;
  for (const Slot& s : slots_) {
    out.emplace_back("exp_avg." + s.name, s.exp_avg);
    out.emplace_back("exp_avg_sq." + s.name, s.exp_avg_sq);
    if (s.master.defined()) out.emplace_back("master." + s.name, s.master);
  }
  return out;
}

void AdamW::load_state(int64_t steps,
                       const std::function<Tensor(const std::string& name, const Shape& shape)>& read) {
  LLATTE_CHECK(steps >= 0, "adamw: the saved state counts ", steps, " steps; it can't be negative");
  for (auto& [name, tensor] : state()) {
    const Tensor saved = read(name, tensor.shape());
    LLATTE_CHECK(saved.shape() == tensor.shape(), "adamw: the saved ", name, " is ", saved.shape(),
                 " but the parameter is ", tensor.shape());
    tensor.copy_from(saved);
  }
  // The master is the weight; what the model computes with is its rounded copy.
  for (Slot& s : slots_)
    if (s.master.defined()) s.param.value.copy_from(s.master);
  steps_ = steps;
}

Tensor AdamW::master_of(const std::string& name) const {
  for (const Slot& s : slots_)
    if (s.name == name) return s.master.defined() ? s.master : s.param.value;
  LLATTE_FAIL("adamw: no trained parameter is called '", name, "'");
}

int64_t AdamW::state_bytes() const {
  int64_t bytes = 0;
  for (const auto& [name, tensor] : state()) bytes += static_cast<int64_t>(tensor.bytes());
  return bytes;
}

}  // namespace llatte
