// The last linear layer and the loss in one: the mean over the rows whose target is not ignore_index of
// -log softmax(x w^T)[target]. The logits exist a chunk of rows at a time, so the gradient is made in the
// forward pass while they do; the backward pass only multiplies it by dy, in place.
#include "autograd/ops.h"
#include "autograd/row_losses.h"

namespace llatte {

Var linear_cross_entropy(const Var& x, const Var& w, const Tensor& targets, int32_t ignore_index) {
  check_last_layer("linear_cross_entropy", x.value, w.value, targets);
  const Tensor x_ND = as_rows(x.value), targets_N = as_row_targets(targets, x_ND);
  const DType acc = acc_dtype(x_ND.dtype());
  const int64_t kept = count_rows(targets, ignore_index);
  Tensor losses = Tensor::empty({x_ND.size(0)}, acc, x_ND.device()), dx, dw;
  if (grad_enabled() && x.node) dx = Tensor::empty_like(x_ND);
  if (grad_enabled() && w.node) dw = Tensor::empty(w.shape(), acc, x_ND.device());
  kernels::linear_cross_entropy(x_ND, w.value.contiguous(), targets_N, ignore_index, losses, dx, dw);
  if (dx.defined()) dx = dx.reshape(x.shape());
  return record("linear_cross_entropy", mean_of_rows(losses, kept), {x, w},
                [dx, dw](const Tensor& dy) -> Grads {
                  return {times(dx, dy), times(dw, dy)};
                });
}

}  // namespace llatte
