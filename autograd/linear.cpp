// y (..,O) = x (..,I) w_OI^T (+ b_O): weights as on disk, one matrix product over all leading dimensions.
//   dx = dy w,  dw = dy^T x (in acc),  db = sum over rows of dy (in acc)
// Keeps x if w wants a gradient, w if x does. Each product that nobody wants is skipped.
#include "autograd/op_checks.h"
#include "autograd/ops.h"
#include "tensor/kernels.h"  // matmul, add_bias, sum_rows

namespace llatte {
namespace {

void check_inputs(const Tensor& x, const Tensor& w) {
  check_float("linear", "x", x);
  check_float("linear", "w", w);
  LLATTE_CHECK(x.ndim() >= 1 && w.ndim() == 2, "linear: x must be (..,I) and w (O,I), got ", x.shape(),
               " and ", w.shape());
  LLATTE_CHECK(x.size(-1) == w.size(1), "linear: x is ", x.shape(), " but w is ", w.shape(), ": inner sizes ",
               x.size(-1), " and ", w.size(1), " differ");
  check_dtypes_agree("linear", x, w);
}

Tensor as_matrix(const Tensor& w) { return w.stride(0) == 1 || w.stride(1) == 1 ? w : w.contiguous(); }

// a b^T, a b or a^T b, by the views that are passed in.
Tensor product(const Tensor& a, const Tensor& b, DType t) {
  Tensor c = Tensor::empty({a.size(0), b.size(1)}, t, a.device());
  kernels::matmul(a, b, c, 0);
  return c;
}

Tensor input_gradient(const Tensor& dy_NO, const Tensor& w, const Shape& shape) {
  return product(dy_NO, w, dy_NO.dtype()).reshape(shape);
}

Tensor weight_gradient(const Tensor& dy_NO, const Tensor& x_NI) {
  return product(dy_NO.transpose(0, 1), x_NI, acc_dtype(x_NI.dtype()));
}

Tensor bias_gradient(const Tensor& dy_NO) {
  Tensor db = Tensor::empty({dy_NO.size(1)}, acc_dtype(dy_NO.dtype()), dy_NO.device());
  kernels::sum_rows(dy_NO, db);
  return db;
}

}  // namespace

Var linear(const Var& x, const Var& w) {
  check_inputs(x.value, w.value);
  const Tensor x_NI = as_rows(x.value), w_OI = as_matrix(w.value);
  Tensor y_NO = product(x_NI, w_OI.transpose(0, 1), x.value.dtype());
  const Tensor for_x = x.node ? w_OI : Tensor(), for_w = w.node ? x_NI : Tensor();
  return record("linear", y_NO.reshape(with_last(x.shape(), w.size(0))), {x, w},
                [for_x, for_w, from = x.shape()](const Tensor& dy) -> Grads {
                  const Tensor dy_NO = as_rows(dy);
                  Grads g(2);
                  if (for_x.defined()) g[0] = input_gradient(dy_NO, for_x, from);
                  if (for_w.defined()) g[1] = weight_gradient(dy_NO, for_w);
                  return g;
                });
}

Var linear(const Var& x, const Var& w, const Var& b) {
  const Var y = linear(x, w);
  check_row_vector("linear: bias", "b", b.value, y.value);
  Tensor rows = as_rows(y.value);
  kernels::add_bias(rows, b.value.contiguous(), rows);  // in place: nobody has seen y yet
  return record("add_bias", y.value, {y, b}, [wants_b = b.node != nullptr](const Tensor& dy) -> Grads {
    return {dy, wants_b ? bias_gradient(as_rows(dy)) : Tensor()};
  });
}

}  // namespace llatte
