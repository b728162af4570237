// y (..,D) = w_VD[ids (..)];  dw_VD (acc) = sum of dy over the positions of each id. Keeps the ids.
#include "autograd/op_checks.h"
#include "autograd/ops.h"
#include "tensor/kernels.h"  // embedding_fwd, embedding_bwd

namespace llatte {

Var embedding(const Tensor& ids, const Var& w) {
  check_int("embedding", "ids", ids);
  check_float("embedding", "w", w.value);
  check_ndim("embedding", "w", w.value, 2, "(V,D)");
  const Tensor ids_N = ids.contiguous().reshape({ids.numel()});
  Tensor y_ND = Tensor::empty({ids.numel(), w.size(1)}, w.value.dtype(), w.value.device());
  kernels::embedding_fwd(ids_N, w.value.contiguous(), y_ND);
  Shape shape = ids.shape();
  shape.push_back(w.size(1));
  return record("embedding", y_ND.reshape(shape), {w}, [ids_N, of = w.shape()](const Tensor& dy) -> Grads {
    Tensor dw = Tensor::empty(of, acc_dtype(dy.dtype()), dy.device());
    kernels::embedding_bwd(as_rows(dy), ids_N, dw);
    return {dw};
  });
}

}  // namespace llatte
