// c (..,M,N) = a (..,M,K) b (..,K,N), 2 or 3 dimensions; a batch of 1 broadcasts over the other's.
//   da = dc b^T,  db = a^T dc;  where an operand was broadcast, its gradient is the sum over the batch (in
//   acc).
#include <algorithm>
#include "autograd/op_checks.h"
#include "autograd/ops.h"
#include "tensor/kernels.h"  // matmul

namespace llatte {
namespace {

// The kernel follows row- and column-major matrices, so a transpose() costs nothing; anything else is copied.
Tensor as_matrix(const Tensor& x) { return x.stride(-1) == 1 || x.stride(-2) == 1 ? x : x.contiguous(); }

void check_operands(const Tensor& a, const Tensor& b) {
  check_float("matmul", "a", a);
  check_float("matmul", "b", b);
  const bool ranks = a.ndim() == b.ndim() && (a.ndim() == 2 || a.ndim() == 3);
  LLATTE_CHECK(ranks, "matmul: a and b must both have 2 or both have 3 dimensions, got ", a.shape(), " and ",
               b.shape());
  LLATTE_CHECK(a.size(-1) == b.size(-2), "matmul: ", a.shape(), " times ", b.shape(), ": inner sizes ",
               a.size(-1), " and ", b.size(-2), " differ");
  const bool batches = a.ndim() == 2 || a.size(0) == b.size(0) || a.size(0) == 1 || b.size(0) == 1;
  LLATTE_CHECK(batches, "matmul: batches of ", a.shape(), " and ", b.shape(), " differ and neither is 1");
  check_dtypes_agree("matmul", a, b);
}

Tensor product(const Tensor& a, const Tensor& b) {
  Shape shape = a.size(0) == 1 && b.ndim() == 3 ? b.shape() : a.shape();
  shape[shape.size() - 2] = a.size(-2);
  shape.back() = b.size(-1);
  Tensor c = Tensor::empty(shape, a.dtype(), a.device());
  kernels::matmul(a, b, c, 0);
  return c;
}

// sum over i of a[i] b[i]: the gradient of a broadcast operand, shape (1,M,N).
Tensor product_sum(const Tensor& a, const Tensor& b) {
  const int64_t batch = std::max(a.size(0), b.size(0));
  Tensor c = Tensor::zeros({1, a.size(1), b.size(2)}, acc_dtype(a.dtype()), a.device());
  const auto at = [](const Tensor& x, int64_t i) { return x.size(0) == 1 ? x : x.slice(0, i, i + 1); };
  for (int64_t i = 0; i < batch; ++i) kernels::matmul(at(a, i), at(b, i), c, 1);
  return c;
}

Tensor gradient(const Tensor& a, const Tensor& b, const Shape& of) {
  const bool broadcast = of.size() == 3 && of[0] == 1 && std::max(a.size(0), b.size(0)) != 1;
  return broadcast ? product_sum(a, b) : product(a, b);
}

}  // namespace

Var matmul(const Var& a, const Var& b) {
  check_operands(a.value, b.value);
  const Tensor av = as_matrix(a.value), bv = as_matrix(b.value);
  const Tensor for_a = a.node ? bv : Tensor(), for_b = b.node ? av : Tensor();
  return record("matmul", product(av, bv), {a, b},
                [for_a, for_b, sa = a.shape(), sb = b.shape()](const Tensor& dc) -> Grads {
                  Tensor da, db;
                  if (for_a.defined()) da = gradient(dc, for_a.transpose(-1, -2), sa);
                  if (for_b.defined()) db = gradient(for_b.transpose(-1, -2), dc, sb);
                  return {da, db};
                });
}

}  // namespace llatte
