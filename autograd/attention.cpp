// o (B,T,H,F): causal softmax attention with grouped heads; query head h reads key/value head h / (H/K), and
// query t sees keys s <= t + (S - T).  arXiv 2205.14135 Keeps q, k, v, o and lse [B,H,T]: the probabilities
// are made again, tile by tile, in the backward pass.
#include "autograd/op_checks.h"
#include "autograd/ops.h"
#include "tensor/kernels.h"  // attention_fwd, attention_bwd

namespace llatte {
namespace {

void check_inputs(const Tensor& q, const Tensor& k, const Tensor& v) {
  check_float("attention", "q", q);
  check_float("attention", "k", k);
  check_float("attention", "v", v);
  check_ndim("attention", "q", q, 4, "(B,T,H,E)");
  check_ndim("attention", "k", k, 4, "(B,S,K,E)");
  check_ndim("attention", "v", v, 4, "(B,S,K,F)");
  check_dtypes_agree("attention", q, k);
  check_dtypes_agree("attention", q, v);
}

void check_sizes(const Tensor& q, const Tensor& k, const Tensor& v) {
  LLATTE_CHECK(q.size(0) == k.size(0) && q.size(3) == k.size(3), "attention: q ", q.shape(), " and k ",
               k.shape(), " must agree in batch and head width (dimensions 0 and 3)");
  LLATTE_CHECK(k.size(0) == v.size(0) && k.size(1) == v.size(1) && k.size(2) == v.size(2), "attention: k ",
               k.shape(), " and v ", v.shape(),
               " must agree in batch, length and heads (dimensions 0, 1, 2)");
  LLATTE_CHECK(k.size(2) > 0 && q.size(2) % k.size(2) == 0, "attention: ", q.size(2),
               " query heads are not a multiple of ", k.size(2), " key/value heads");
  LLATTE_CHECK(q.size(1) <= k.size(1), "attention: ", q.size(1), " queries but only ", k.size(1),
               " keys; the queries are the last tokens of the sequence");
}

// The kernel follows strides of dimensions 0 and 1, so that a cache is read where it lies.
Tensor as_cache(const Tensor& x) {
  const bool rows_dense =
      (x.size(3) == 1 || x.stride(3) == 1) && (x.size(2) == 1 || x.stride(2) == x.size(3));
  return rows_dense ? x : x.contiguous();
}

}  // namespace

Var attention(const Var& q, const Var& k, const Var& v, double scale) {
  check_inputs(q.value, k.value, v.value);
  check_sizes(q.value, k.value, v.value);
  const Tensor qc = q.value.contiguous(), kc = as_cache(k.value), vc = as_cache(v.value);
  const int64_t B = q.size(0), T = q.size(1), H = q.size(2);
  Tensor o = Tensor::empty({B, T, H, v.size(3)}, qc.dtype(), qc.device());
  Tensor lse = Tensor::empty({B, H, T}, acc_dtype(qc.dtype()), qc.device());
  kernels::attention_fwd(qc, kc, vc, scale, o, lse);
  return record("attention", o, {q, k, v}, [qc, kc, vc, o, lse, scale](const Tensor& dout) -> Grads {
    Tensor dq = Tensor::empty_like(qc), dk = Tensor::empty_like(kc), dv = Tensor::empty_like(vc);
    kernels::attention_bwd(dout.contiguous(), qc, kc, vc, o, lse, scale, dq, dk, dv);
    return {dq, dk, dv};
  });
}

}  // namespace llatte
