// The last linear layer and the loss in one: the mean over the rows whose target is not ignore_index of
// -log softmax(x w^T)[target]. The logits exist a chunk of rows at a time, so the gradient is made in the
// forward pass while they do; the backward pass only multiplies it by dy, in place.
#include <algorithm>
#include "autograd/op_checks.h"
#include "autograd/ops.h"
#include "tensor/kernels.h"  // linear_cross_entropy, sum_rows, scale_by

namespace llatte {
namespace {

void check_inputs(const Tensor& x, const Tensor& w, const Tensor& targets) {
  check_float("linear_cross_entropy", "x", x);
  check_float("linear_cross_entropy", "w", w);
  check_int("linear_cross_entropy", "targets", targets);
  LLATTE_CHECK(x.ndim() >= 1 && w.ndim() == 2 && x.size(-1) == w.size(1),
               "linear_cross_entropy: x must be (..,D) and w (V,D), got ", x.shape(), " and ", w.shape());
  const Shape rows(x.shape().begin(), x.shape().end() - 1);
  LLATTE_CHECK(targets.shape() == rows, "linear_cross_entropy: x is ", x.shape(), ", so targets must be ",
               rows, ", got ", targets.shape());
  LLATTE_CHECK(targets.numel() > 0, "linear_cross_entropy: x ", x.shape(), " has no rows");
  check_dtypes_agree("linear_cross_entropy", x, w);
}

int64_t count_rows(const Tensor& targets, int32_t ignore_index) {
  const int32_t* t = targets.data<int32_t>();
  return targets.numel() - std::count(t, t + targets.numel(), ignore_index);
}

// Summed in f64, whatever the number of rows; 0 if none counts.
Tensor mean(const Tensor& losses_N, int64_t kept) {
  Tensor sum = Tensor::empty({1}, DType::f64, losses_N.device());
  kernels::sum_rows(losses_N.to(DType::f64).reshape({losses_N.numel(), 1}), sum);
  kernels::scale(sum, 1.0 / static_cast<double>(std::max<int64_t>(kept, 1)), sum);
  return sum.to(losses_N.dtype()).reshape({});
}

Tensor times(Tensor g, const Tensor& dy) {
  if (g.defined()) kernels::scale_by(dy.reshape({1}), g);
  return g;
}

}  // namespace

Var linear_cross_entropy(const Var& x, const Var& w, const Tensor& targets, int32_t ignore_index) {
  check_inputs(x.value, w.value, targets);
  const Tensor x_ND = as_rows(x.value), targets_N = targets.contiguous().reshape({targets.numel()});
  const DType acc = acc_dtype(x_ND.dtype());
  const int64_t kept = count_rows(targets_N, ignore_index);
  Tensor losses = Tensor::empty({x_ND.size(0)}, acc, x_ND.device()), dx, dw;
  if (grad_enabled() && x.node) dx = Tensor::empty_like(x_ND);
  if (grad_enabled() && w.node) dw = Tensor::empty(w.shape(), acc, x_ND.device());
  kernels::linear_cross_entropy(x_ND, w.value.contiguous(), targets_N, ignore_index, losses, dx, dw);
  if (dx.defined()) dx = dx.reshape(x.shape());
  return record("linear_cross_entropy", mean(losses, kept), {x, w}, [dx, dw](const Tensor& dy) -> Grads {
    return {times(dx, dy), times(dw, dy)};
  });
}

}  // namespace llatte
