// Softmax over the last dimension. Keeps its output: dx = y * (dy - sum(dy * y)).
#include "autograd/op_checks.h"
#include "autograd/ops.h"
#include "tensor/kernels.h"  // softmax_fwd, softmax_bwd

namespace llatte {

Var softmax(const Var& x) {
  check_float("softmax", "x", x.value);
  LLATTE_CHECK(x.value.ndim() >= 1, "softmax: x must be (..,D), got ", x.shape());
  const Tensor xc = x.value.contiguous();
  Tensor y = Tensor::empty_like(xc);
  kernels::softmax_fwd(xc, y);
  return record("softmax", y, {x}, [y](const Tensor& dy) -> Grads {
    Tensor dx = Tensor::empty_like(y);
    kernels::softmax_bwd(dy.contiguous(), y, dx);
    return {dx};
  });
}

}  // namespace llatte
