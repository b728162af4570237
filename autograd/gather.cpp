// y = x with dimension `dim` picked by index: y[.., m, ..] = x[.., index[m], ..], zeros where index is -1.
// dx = dy summed back to where it came from. Keeps the index.
#include "autograd/op_checks.h"
#include "autograd/ops.h"
#include "tensor/kernels.h"  // gather_fwd, gather_bwd

namespace llatte {
namespace {

// A shape seen as (N,C,I) around dimension d.
Shape around(const Shape& s, int d) {
  const auto product = [&](int from, int to) {
    int64_t n = 1;
    for (int i = from; i < to; ++i) n *= s[static_cast<size_t>(i)];
    return n;
  };
  return {product(0, d), s[static_cast<size_t>(d)], product(d + 1, static_cast<int>(s.size()))};
}

}  // namespace

Var gather(const Var& x, int dim, const Tensor& index) {
  check_float("gather", "x", x.value);
  check_int("gather", "index", index);
  check_ndim("gather", "index", index, 1, "(M)");
  const int d = dim < 0 ? dim + x.value.ndim() : dim;
  LLATTE_CHECK(0 <= d && d < x.value.ndim(), "gather: dimension ", dim, " of a tensor of shape ", x.shape());
  Shape to = x.shape();
  to[static_cast<size_t>(d)] = index.numel();
  const Shape from_NCI = around(x.shape(), d), to_NMI = around(to, d);
  const Tensor index_M = index.contiguous();
  Tensor y_NMI = Tensor::empty(to_NMI, x.value.dtype(), x.value.device());
  kernels::gather_fwd(x.value.contiguous().reshape(from_NCI), index_M, y_NMI);
  return record("gather", y_NMI.reshape(to), {x},
                [index_M, from = x.shape(), from_NCI, to_NMI](const Tensor& dy) -> Grads {
                  Tensor dx = Tensor::empty(from_NCI, acc_dtype(dy.dtype()), dy.device());
                  kernels::gather_bwd(dy.contiguous().reshape(to_NMI), index_M, dx);
                  return {dx.reshape(from)};
                });
}

}  // namespace llatte
