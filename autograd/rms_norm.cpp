// y = x * r * w over the last dimension, r = 1/sqrt(mean(x^2) + eps).  arXiv 1910.07467
// Keeps x and r, one number per row.
#include "autograd/op_checks.h"
#include "autograd/ops.h"
#include "tensor/kernels.h"  // rms_norm_fwd, rms_norm_bwd

namespace llatte {

Var rms_norm(const Var& x, const Var& w, double eps) {
  check_float("rms_norm", "x", x.value);
  check_row_vector("rms_norm", "w", w.value, x.value);
  LLATTE_CHECK(eps >= 0, "rms_norm: eps is ", eps, ", expected 0 or more");
  const Tensor x_ND = as_rows(x.value), w_D = w.value.contiguous();
  Tensor y = Tensor::empty_like(x_ND);
  Tensor r = Tensor::empty({x_ND.size(0)}, acc_dtype(x_ND.dtype()), x_ND.device());
  kernels::rms_norm_fwd(x_ND, w_D, eps, y, r);
  return record("rms_norm", y.reshape(x.shape()), {x, w},
                [x_ND, w_D, r, from = x.shape()](const Tensor& dy) -> Grads {
                  Tensor dx = Tensor::empty_like(x_ND);
                  Tensor dw = Tensor::empty(w_D.shape(), acc_dtype(w_D.dtype()), w_D.device());
                  kernels::rms_norm_bwd(as_rows(dy), x_ND, w_D, r, dx, dw);
                  return {dx.reshape(from), dw};
                });
}

}  // namespace llatte
