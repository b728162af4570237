// add, mul, scale: same shape, same dtype, no broadcasting. add keeps nothing; mul keeps the factor whose
// partner wants a gradient.
#include "autograd/op_checks.h"
#include "autograd/ops.h"
#include "tensor/kernels.h"  // add, mul, scale

namespace llatte {
namespace {

Tensor product(const Tensor& a, const Tensor& b) {
  const Tensor ac = a.contiguous(), bc = b.contiguous();
  Tensor y = Tensor::empty_like(ac);
  kernels::mul(ac, bc, y);
  return y;
}

Tensor scaled(const Tensor& x, double factor) {
  const Tensor xc = x.contiguous();
  Tensor y = Tensor::empty_like(xc);
  kernels::scale(xc, factor, y);
  return y;
}

}  // namespace

Var add(const Var& a, const Var& b) {
  check_same_shape("add", a.value, b.value);
  const Tensor ac = a.value.contiguous(), bc = b.value.contiguous();
  Tensor y = Tensor::empty_like(ac);
  kernels::add(ac, bc, y);
  return record("add", y, {a, b}, [](const Tensor& dy) -> Grads { return {dy, dy}; });
}

Var mul(const Var& a, const Var& b) {
  check_same_shape("mul", a.value, b.value);
  const Tensor for_a = a.node ? b.value : Tensor(), for_b = b.node ? a.value : Tensor();
  return record("mul", product(a.value, b.value), {a, b}, [for_a, for_b](const Tensor& dy) -> Grads {
    return {for_a.defined() ? product(dy, for_a) : Tensor(), for_b.defined() ? product(dy, for_b) : Tensor()};
  });
}

Var scale(const Var& x, double factor) {
  check_float("scale", "x", x.value);
  return record("scale", scaled(x.value, factor), {x},
                [factor](const Tensor& dy) -> Grads { return {scaled(dy, factor)}; });
}

}  // namespace llatte
