// y = silu(gate) * up, silu(z) = z / (1 + exp(-z)).  arXiv 2002.05202.  Keeps gate and up.
#include "autograd/op_checks.h"
#include "autograd/ops.h"
#include "tensor/kernels.h"  // swiglu_fwd, swiglu_bwd

namespace llatte {

Var swiglu(const Var& gate, const Var& up) {
  check_same_shape("swiglu", gate.value, up.value);
  const Tensor g = gate.value.contiguous(), u = up.value.contiguous();
  Tensor y = Tensor::empty_like(g);
  kernels::swiglu_fwd(g, u, y);
  return record("swiglu", y, {gate, up}, [g, u](const Tensor& dy) -> Grads {
    Tensor dg = Tensor::empty_like(g), du = Tensor::empty_like(u);
    kernels::swiglu_bwd(dy.contiguous(), g, u, dg, du);
    return {dg, du};
  });
}

}  // namespace llatte
