#include "optim/adamw.h"
#include <algorithm>
#include <cmath>
#include "tensor/kernels.h"  // adamw, sum_squares

namespace llatte {

AdamW::AdamW(Module& m, const AdamWConfig& c, const std::function<bool(const std::string&)>& trains,
             Comm* comm)
    : config_(c) {
  std::vector<Var> vars;
  m.params("", [&](const std::string& name, Var& param) {
    if (trains && !trains(name)) {
      param.node = nullptr;  // a constant from now on: backward computes no gradient for it
      return;
    }
    if (!param.node) param = leaf(param.value);
    params_.push_back({name, param, c.decay_norms_and_biases || param.value.ndim() > 1});
    vars.push_back(param);
  });
  if (comm && comm->size() > 1 && !vars.empty())
    buckets_ = std::make_unique<GradientBuckets>(vars, *comm, c.bucket_bytes, c.zero_stage == 1);
  if (sharded()) {
    for (const Segment& s : buckets_->own()) slots_.push_back(make_slot(s, buckets_->value(s)));
    return;
  }
  for (size_t p = 0; p < params_.size(); ++p)
    slots_.push_back(make_slot({p, 0, vars[p].value.numel()}, vars[p].value));
}

AdamW::Slot AdamW::make_slot(const Segment& of, Tensor w) const {
  const DType acc = acc_dtype(w.dtype());
  const Tensor zeros = Tensor::zeros(w.shape(), acc, w.device());
  return {of, w, zeros, zeros.clone(), w.dtype() == acc ? Tensor() : w.to(acc)};
}

void AdamW::expect_last_backward() {
  if (buckets_) buckets_->expect();
}

Tensor AdamW::gradient(const Slot& s) const {
  return sharded() ? buckets_->gradient(s.of) : params_[s.of.param].var.node->grad;
}

Tensor AdamW::sum_squares() const {
  if (buckets_) return buckets_->sum_squares();
  std::vector<Tensor> grads;
  for (const Slot& s : slots_)
    if (Tensor g = gradient(s); g.defined()) grads.push_back(std::move(g));
  Tensor sum = Tensor::zeros({1}, DType::f64, grads.empty() ? Device::cpu : grads.front().device());
  if (!grads.empty()) kernels::sum_squares(grads, sum);
  return sum;
}

double AdamW::grad_norm() const { return std::sqrt(sum_squares().item()); }

// The norm goes from kernel to kernel on the device; it is read here when the update has been asked for.
double AdamW::step(double lr) {
  if (buckets_) buckets_->wait();
  const Tensor sum = sum_squares();
  for (const Slot& s : slots_)
    if (Tensor g = gradient(s); g.defined())
      updates_.push_back({s.w, std::move(g), s.exp_avg, s.exp_avg_sq, s.master,
                          params_[s.of.param].decays ? config_.weight_decay : 0});
  kernels::adamw(updates_, sum,
                 AdamWStep{lr, config_.beta1, config_.beta2, config_.eps, config_.clip_grad, steps_ + 1});
  updates_.clear();
  const double norm = std::sqrt(sum.item());
  if (!std::isfinite(norm)) return norm;
  ++steps_;
  for (const Param& p : params_) p.var.node->grad = Tensor();
  if (sharded()) buckets_->share();
  return norm;
}

// ---- the state
Tensor AdamW::whole(Tensor Slot::*part, size_t param) const {
  if (!sharded()) return slots_[param].*part;
  std::vector<Tensor> pieces;
  for (const Slot& s : slots_) pieces.push_back(s.*part);
  return buckets_->gathered(pieces, param);
}

std::vector<OptimizerTensor> AdamW::state() const {
  std::vector<OptimizerTensor> out;
  for (size_t p = 0; p < params_.size(); ++p) {
    const Tensor& w = params_[p].var.value;
    const auto add = [&](const char* kind, Tensor Slot::*part) {
      out.push_back(
          {kind + params_[p].name, acc_dtype(w.dtype()), w.shape(), [=, this] { return whole(part, p); }});
    };
    add("exp_avg.", &Slot::exp_avg);
    add("exp_avg_sq.", &Slot::exp_avg_sq);
    if (w.dtype() != acc_dtype(w.dtype())) add("master.", &Slot::master);
  }
  std::sort(out.begin(), out.end(), [](const auto& a, const auto& b) { return a.name < b.name; });
  return out;
}

void AdamW::load_state(int64_t steps,
                       const std::function<Tensor(const std::string& name, const Shape& shape)>& read) {
  LLATTE_CHECK(steps >= 0, "adamw: the saved state counts ", steps, " steps; it can't be negative");
  for (Slot& s : slots_) {
    const Param& p = params_[s.of.param];
    const auto load = [&](const char* kind, Tensor& part) {
      const Tensor saved = read(kind + p.name, p.var.shape());
      LLATTE_CHECK(saved.shape() == p.var.shape(), "adamw: the saved ", kind, p.name, " is ", saved.shape(),
                   " but the parameter is ", p.var.shape());
      part.copy_from(saved.contiguous().reshape({-1}).slice(0, s.of.begin, s.of.end).reshape(part.shape()));
    };
    load("exp_avg.", s.exp_avg);
    load("exp_avg_sq.", s.exp_avg_sq);
    if (!s.master.defined()) continue;
    // The master is the weight; what the model computes with is its rounded copy.
    load("master.", s.master);
    s.w.copy_from(s.master);
  }
  if (sharded()) buckets_->share();
  steps_ = steps;
}

Tensor AdamW::master_of(const std::string& name) const {
  for (size_t p = 0; p < params_.size(); ++p)
    if (params_[p].name == name) {
      const Tensor& w = params_[p].var.value;
      return w.dtype() == acc_dtype(w.dtype()) ? w : whole(&Slot::master, p);
    }
  LLATTE_FAIL("adamw: no trained parameter is called '", name, "'");
}

int64_t AdamW::state_bytes() const {
  size_t bytes = 0;
  for (const Slot& s : slots_)
    bytes += s.exp_avg.bytes() + s.exp_avg_sq.bytes() + (s.master.defined() ? s.master.bytes() : 0);
  return static_cast<int64_t>(bytes);
}

}  // namespace llatte
