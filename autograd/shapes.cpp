// reshape, transpose, slice, concat, cast: ops that move numbers and compute none. Where a view can say it,
// the value is a view; a closure keeps shapes only, never numbers.
#include "autograd/op_checks.h"
#include "autograd/ops.h"

namespace llatte {
namespace {

int dim_of(const char* op, const Tensor& x, int dim) {
  const int d = dim < 0 ? dim + x.ndim() : dim;
  LLATTE_CHECK(0 <= d && d < x.ndim(), op, ": dimension ", dim, " of a tensor of shape ", x.shape());
  return d;
}

void check_concat(const Tensor& a, const Tensor& b, int dim) {
  Shape rest_a = a.shape(), rest_b = b.shape();
  bool fits = a.ndim() == b.ndim();
  if (fits) rest_a[dim] = rest_b[dim] = 0, fits = rest_a == rest_b;
  LLATTE_CHECK(fits, "concat: shapes ", a.shape(), " and ", b.shape(), " differ outside dimension ", dim);
  check_dtypes_agree("concat", a, b);
}

}  // namespace

Var reshape(const Var& x, const Shape& shape) {
  return record("reshape", x.value.contiguous().reshape(shape), {x},
                [from = x.shape()](const Tensor& dy) -> Grads { return {dy.reshape(from)}; });
}

Var transpose(const Var& x, int a, int b) {
  return record("transpose", x.value.transpose(a, b), {x},
                [a, b](const Tensor& dy) -> Grads { return {dy.transpose(a, b)}; });
}

Var slice(const Var& x, int dim, int64_t begin, int64_t end) {
  return record("slice", x.value.slice(dim, begin, end), {x},
                [from = x.shape(), dim, begin, end](const Tensor& dy) -> Grads {
                  Tensor dx = Tensor::zeros(from, dy.dtype(), dy.device());
                  dx.slice(dim, begin, end).copy_from(dy);
                  return {dx};
                });
}

Var concat(const Var& a, const Var& b, int dim) {
  const int d = dim_of("concat", a.value, dim);
  check_concat(a.value, b.value, d);
  const int64_t A = a.size(d), B = b.size(d);
  Shape shape = a.shape();
  shape[d] = A + B;
  Tensor y = Tensor::empty(shape, a.value.dtype(), a.value.device());
  y.slice(d, 0, A).copy_from(a.value);
  y.slice(d, A, A + B).copy_from(b.value);
  return record("concat", y, {a, b}, [d, A, B](const Tensor& dy) -> Grads {
    return {dy.slice(d, 0, A), dy.slice(d, A, A + B)};
  });
}

Var cast(const Var& x, DType t) {
  check_float("cast", "x", x.value);
  LLATTE_CHECK(is_float(t), "cast: to f32, bf16 or f64, not ", name(t));
  // acc_dtype: a bf16 leaf keeps its gradient in f32, so rounding here would throw digits away.
  return record("cast", x.value.to(t), {x},
                [from = x.value.dtype()](const Tensor& dy) -> Grads { return {dy.to(acc_dtype(from))}; });
}

}  // namespace llatte
