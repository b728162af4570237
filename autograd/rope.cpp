// Rotary position embedding of x (B,T,H,2P), half-split layout.  arXiv 2104.09864
// A rotation's transpose is its inverse, so the backward is the same kernel turning back. Keeps tables, no
// activations.
#include "autograd/op_checks.h"
#include "autograd/ops.h"
#include "tensor/kernels.h"  // rope

namespace llatte {
namespace {

void check_table(const Tensor& x, const Tensor& cos, const Tensor& sin) {
  check_float("rope", "cos", cos);
  check_float("rope", "sin", sin);
  LLATTE_CHECK(cos.ndim() == 2 && cos.shape() == sin.shape(), "rope: cos and sin must both be (S,F), got ",
               cos.shape(), " and ", sin.shape());
  const DType want = acc_dtype(x.dtype());
  LLATTE_CHECK(cos.dtype() == want && sin.dtype() == want, "rope: x is ", name(x.dtype()),
               ", so cos and sin must be ", name(want), ", got ", name(cos.dtype()), " and ",
               name(sin.dtype()));
}

void check_pairs(const Tensor& x, const Tensor& cos, const Tensor& pairs) {
  const int64_t H = x.size(2), P = x.size(3) / 2;
  if (!pairs.defined()) {
    LLATTE_CHECK(P <= cos.size(1), "rope: x is ", x.shape(), ", so it has ", P, " pairs, but cos is ",
                 cos.shape(), " with ", cos.size(1), " frequencies; pass pairs to say which turn");
    return;
  }
  check_int("rope", "pairs", pairs);
  LLATTE_CHECK((pairs.shape() == Shape{H, P}), "rope: pairs is ", pairs.shape(),
               ", expected (H,P) = ", Shape{H, P}, " for x ", x.shape());
}

// One position for each of the B*T rows, from pos [T] or [B,T].
Tensor row_positions(const Tensor& pos, int64_t B, int64_t T) {
  check_int("rope", "pos", pos);
  const bool shared = pos.shape() == Shape{T}, own = pos.shape() == Shape{B, T};
  LLATTE_CHECK(shared || own, "rope: pos is ", pos.shape(), ", expected (T) = (", T,
               ") or (B,T) = ", Shape{B, T});
  if (own || B == 1) return pos.contiguous().reshape({B * T});
  Tensor rows = Tensor::empty({B, T}, DType::i32, pos.device());
  const Tensor row = pos.contiguous().reshape({1, T});
  for (int64_t b = 0; b < B; ++b) rows.slice(0, b, b + 1).copy_from(row);
  return rows.reshape({B * T});
}

}  // namespace

Var rope(const Var& x, const Tensor& cos, const Tensor& sin, const Tensor& pos, const Tensor& pairs) {
  check_float("rope", "x", x.value);
  check_ndim("rope", "x", x.value, 4, "(B,T,H,2P)");
  LLATTE_CHECK(x.size(3) % 2 == 0, "rope: the last dimension of x ", x.shape(), " must be even");
  check_table(x.value, cos, sin);
  check_pairs(x.value, cos, pairs);
  const Shape rows{x.size(0) * x.size(1), x.size(2), x.size(3)};
  const Tensor pos_N = row_positions(pos, x.size(0), x.size(1)), cosc = cos.contiguous(),
               sinc = sin.contiguous();
  const Tensor pairsc = pairs.defined() ? pairs.contiguous() : pairs;
  const auto turn = [cosc, sinc, pos_N, pairsc, rows](const Tensor& from, bool inverse) {
    Tensor y = Tensor::empty(from.shape(), from.dtype(), from.device()), flat = y.reshape(rows);
    kernels::rope(from.contiguous().reshape(rows), cosc, sinc, pos_N, pairsc, inverse, flat);
    return y;
  };
  return record("rope", turn(x.value, false), {x},
                [turn](const Tensor& dy) -> Grads { return {turn(dy, true)}; });
}

}  // namespace llatte
