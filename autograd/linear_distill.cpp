// The last linear layer and the distillation loss in one: the mean over the rows whose target is not
// ignore_index of weight * KL(teacher || student) + (1 - weight) * cross-entropy. Both models' logits exist a
// chunk of rows at a time; the gradient is made while they do, and only multiplied by dy later.
#include <cmath>
#include "autograd/ops.h"
#include "autograd/row_losses.h"

namespace llatte {
namespace {

void check_teacher(const Tensor& x, const Tensor& w, const Tensor& tx, const Tensor& tw) {
  check_float("linear_distill", "the teacher's x", tx);
  check_float("linear_distill", "the teacher's w", tw);
  const Shape rows(x.shape().begin(), x.shape().end() - 1);
  LLATTE_CHECK(tx.ndim() == x.ndim() && Shape(tx.shape().begin(), tx.shape().end() - 1) == rows &&
                   tw.ndim() == 2 && tx.size(-1) == tw.size(1) && tw.size(0) == w.size(0),
               "linear_distill: x is ", x.shape(), " and w ", w.shape(),
               ", so the teacher's must have the same rows and vocabulary, got ", tx.shape(), " and ",
               tw.shape());
  check_dtypes_agree("linear_distill", x, tx);
  check_dtypes_agree("linear_distill", x, tw);
}

void check_rule(const DistillRule& r) {
  LLATTE_CHECK(r.weight >= 0 && r.weight <= 1, "linear_distill: weight ", r.weight, " must be in [0,1]");
  LLATTE_CHECK(r.temperature > 0 && std::isfinite(r.temperature), "linear_distill: temperature ",
               r.temperature, " must be positive");
}

// weight kl + (1 - weight) ce, both of shape ().
Tensor combined(const Tensor& kl, const Tensor& ce, double weight) {
  Tensor a = Tensor::empty_like(kl), b = Tensor::empty_like(ce);
  kernels::scale(kl, weight, a);
  kernels::scale(ce, 1 - weight, b);
  kernels::add(a, b, a);
  return a;
}

}  // namespace

DistillLoss linear_distill(const Var& x, const Var& w, const Tensor& teacher_x, const Tensor& teacher_w,
                           const Tensor& targets, const DistillRule& rule, int32_t ignore_index) {
  check_last_layer("linear_distill", x.value, w.value, targets);
  check_teacher(x.value, w.value, teacher_x, teacher_w);
  check_rule(rule);
  const Tensor x_ND = as_rows(x.value), targets_N = as_row_targets(targets, x_ND);
  const DType acc = acc_dtype(x_ND.dtype());
  const int64_t N = x_ND.size(0), kept = count_rows(targets, ignore_index);
  Tensor kl_N = Tensor::empty({N}, acc, x_ND.device()), ce_N = Tensor::empty({N}, acc, x_ND.device()), dx, dw;
  if (grad_enabled() && x.node) dx = Tensor::empty_like(x_ND);
  if (grad_enabled() && w.node) dw = Tensor::empty(w.shape(), acc, x_ND.device());
  kernels::linear_distill(x_ND, w.value.contiguous(), as_rows(teacher_x), teacher_w.contiguous(), targets_N,
                          ignore_index, rule, kl_N, ce_N, dx, dw);
  if (dx.defined()) dx = dx.reshape(x.shape());
  const Tensor kl = mean_of_rows(kl_N, kept), ce = mean_of_rows(ce_N, kept);
  const Var loss =
      record("linear_distill", combined(kl, ce, rule.weight), {x, w}, [dx, dw](const Tensor& dy) -> Grads {
        return {times(dx, dy), times(dw, dy)};
      });
  return {loss, kl, ce};
}

}  // namespace llatte
