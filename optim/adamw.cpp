#include "optim/adamw.h"
#include <algorithm>
#include <cmath>
#include "tensor/kernels.h"  // adamw, sum_squares

namespace llatte {
namespace {

// As torch's clip_grad_norm_: the small term keeps a zero norm from dividing by zero.
double clip_scale(double clip, double norm) { return clip > 0 ? std::min(1.0, clip / (norm + 1e-6)) : 1.0; }

}  // namespace

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

double AdamW::grad_norm() const {
  double sum = 0;
  for (const Slot& s : slots_) {
    if (!s.param.node->grad.defined()) continue;
    Tensor out = Tensor::empty({1}, DType::f64, s.param.value.device());
    kernels::sum_squares(s.param.node->grad, out);
    sum += out.item();
  }
  return std::sqrt(sum);
}

double AdamW::step(double lr) {
  const double norm = grad_norm();
  if (!std::isfinite(norm)) return norm;
  ++steps_;
  AdamWStep rule{lr,    config_.beta1, config_.beta2, config_.eps, 0, clip_scale(config_.clip_grad, norm),
                 steps_};
  for (Slot& s : slots_) {
    Tensor& grad = s.param.node->grad;
    if (!grad.defined()) continue;
    rule.weight_decay = s.decays ? config_.weight_decay : 0;
    kernels::adamw(s.param.value, grad, s.exp_avg, s.exp_avg_sq, s.master, rule);
    grad = Tensor();
  }
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
