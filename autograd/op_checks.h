// What the ops ask of their inputs before a kernel sees them: number of dimensions, dtype, one shape or dtype
// for all. Private to autograd/. Each refusal names the op, the argument and the values.
#pragma once
#include "autograd/var.h"

namespace llatte {

inline void check_float(const char* op, const char* arg, const Tensor& x) {
  LLATTE_CHECK(x.defined(), op, ": ", arg, " was never set");
  LLATTE_CHECK(is_float(x.dtype()), op, ": ", arg, " must be f32, bf16 or f64, not ", name(x.dtype()));
}

inline void check_int(const char* op, const char* arg, const Tensor& x) {
  LLATTE_CHECK(x.defined(), op, ": ", arg, " was never set");
  LLATTE_CHECK(x.dtype() == DType::i32, op, ": ", arg, " must be i32, not ", name(x.dtype()));
}

inline void check_dtypes_agree(const char* op, const Tensor& a, const Tensor& b) {
  LLATTE_CHECK(a.dtype() == b.dtype(), op, ": inputs are ", name(a.dtype()), " and ", name(b.dtype()),
               "; cast() one of them");
}

inline void check_same_shape(const char* op, const Tensor& a, const Tensor& b) {
  check_float(op, "the first input", a);
  check_float(op, "the second input", b);
  LLATTE_CHECK(a.shape() == b.shape(), op, ": shapes ", a.shape(), " and ", b.shape(), " differ");
  check_dtypes_agree(op, a, b);
}

inline void check_ndim(const char* op, const char* arg, const Tensor& x, int ndim, const char* letters) {
  LLATTE_CHECK(x.ndim() == ndim, op, ": ", arg, " must be ", letters, ", got ", x.shape());
}

// A vector of D entries that goes with every row of x (..,D).
inline void check_row_vector(const char* op, const char* arg, const Tensor& v, const Tensor& x) {
  check_float(op, arg, v);
  LLATTE_CHECK(x.ndim() >= 1, op, ": x must be (..,D), got ", x.shape());
  LLATTE_CHECK(v.ndim() == 1 && v.size(0) == x.size(-1), op, ": x is ", x.shape(), " but ", arg, " is ",
               v.shape(), ", expected (", x.size(-1), ")");
  check_dtypes_agree(op, x, v);
}

// x (..,D) as (N,D), contiguous.
inline Tensor as_rows(const Tensor& x) {
  const int64_t D = x.size(-1);
  int64_t N = 1;
  for (int d = 0; d + 1 < x.ndim(); ++d) N *= x.size(d);
  return x.contiguous().reshape({N, D});
}

// `shape` with its last entry replaced.
inline Shape with_last(Shape shape, int64_t last) {
  shape.back() = last;
  return shape;
}

}  // namespace llatte
