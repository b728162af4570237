// What losses over rows of a last layer share: rows that count, the mean over them, and the backward pass of
// gradients that were made in the forward pass. Private to autograd/.
#pragma once
#include <algorithm>
#include "autograd/op_checks.h"
#include "tensor/kernels.h"  // sum_rows, scale, scale_by

namespace llatte {

inline void check_last_layer(const char* op, const Tensor& x, const Tensor& w, const Tensor& targets) {
  check_float(op, "x", x);
  check_float(op, "w", w);
  check_int(op, "targets", targets);
  LLATTE_CHECK(x.ndim() >= 1 && w.ndim() == 2 && x.size(-1) == w.size(1), op,
               ": x must be (..,D) and w (V,D), got ", x.shape(), " and ", w.shape());
  const Shape rows(x.shape().begin(), x.shape().end() - 1);
  LLATTE_CHECK(targets.shape() == rows, op, ": x is ", x.shape(), ", so targets must be ", rows, ", got ",
               targets.shape());
  LLATTE_CHECK(targets.numel() > 0, op, ": x ", x.shape(), " has no rows");
  check_dtypes_agree(op, x, w);
}

// On the host, so that nothing waits for a device: targets that are on one already come back for it.
inline int64_t count_rows(const Tensor& targets, int32_t ignore_index) {
  const Tensor on_host = targets.to(Device::cpu).contiguous();
  const int32_t* t = on_host.data<int32_t>();
  return targets.numel() - std::count(t, t + targets.numel(), ignore_index);
}

// (N), where x is.
inline Tensor as_row_targets(const Tensor& targets, const Tensor& x) {
  return targets.contiguous().reshape({targets.numel()}).to(x.device());
}

// Summed in f64, whatever the number of rows; 0 if none counts.
inline Tensor mean_of_rows(const Tensor& losses_N, int64_t kept) {
  Tensor sum = Tensor::empty({1}, DType::f64, losses_N.device());
  kernels::sum_rows(losses_N.to(DType::f64).reshape({losses_N.numel(), 1}), sum);
  kernels::scale(sum, 1.0 / static_cast<double>(std::max<int64_t>(kept, 1)), sum);
  return sum.to(losses_N.dtype()).reshape({});
}

// g *= dy, in place.
inline Tensor times(Tensor g, const Tensor& dy) {
  if (g.defined()) kernels::scale_by(dy.reshape({1}), g);
  return g;
}

}  // namespace llatte
