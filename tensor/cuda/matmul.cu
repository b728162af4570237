// Matrix products by cuBLAS: f32 as f32 (no TF32), bf16 with f32 accumulation, f64. cuBLAS counts columns
// first, so a row-major c = a b is asked for as its transpose, c^T = b^T a^T; operands are passed by their
// strides, and a batch of 1 has stride 0. One stream and one handle: the same call gives the same bits.
#include <cublas_v2.h>
#include <limits>
#include "tensor/cuda/launch.h"

namespace llatte::cuda {
namespace {

#define LLATTE_CUBLAS_CHECK(call)                                                            \
  do {                                                                                       \
    const cublasStatus_t status = (call);                                                    \
    LLATTE_CHECK(status == CUBLAS_STATUS_SUCCESS, "matmul: ", cublasGetStatusString(status), \
                 " (" #call ")");                                                            \
  } while (0)

// Never destroyed, as the stream it works on.
cublasHandle_t handle() {
  static const cublasHandle_t made = [] {
    cublasHandle_t h = nullptr;
    LLATTE_CUBLAS_CHECK(cublasCreate(&h));
    LLATTE_CUBLAS_CHECK(cublasSetStream(h, stream()));
    return h;
  }();
  return made;
}

// The last two dimensions as cuBLAS names them: x^T is column-major with leading dimension ld, or x is.
struct Layout {
  cublasOperation_t op;
  int64_t ld;
};
Layout layout_of(const Tensor& x) {
  const int64_t rows = x.size(-2), columns = x.size(-1);
  if (x.stride(-1) == 1 || columns == 1) return {CUBLAS_OP_N, std::max(rows > 1 ? x.stride(-2) : 0, columns)};
  return {CUBLAS_OP_T, std::max(x.stride(-1), rows)};
}

bool is_matrix(const Tensor& x) {
  const int64_t rows = x.size(-2), columns = x.size(-1), down = x.stride(-2), right = x.stride(-1);
  const bool by_rows = (right == 1 || columns == 1) && (rows == 1 || down >= columns);
  const bool by_columns = (down == 1 || rows == 1) && (columns == 1 || right >= rows);
  return by_rows || by_columns;
}

cudaDataType_t cuda_type(DType t) {
  return t == DType::bf16 ? CUDA_R_16BF : t == DType::f64 ? CUDA_R_64F : CUDA_R_32F;
}

int narrow(int64_t n) {
  LLATTE_CHECK(n <= std::numeric_limits<int>::max(), "matmul: ", n,
               " rows or columns; cuBLAS counts in 31 bits");
  return static_cast<int>(n);
}

// Row-major c.
void run(const Tensor& a, const Tensor& b, Tensor& c, double beta) {
  const Layout la = layout_of(a), lb = layout_of(b), lc = layout_of(c);
  const auto step = [](const Tensor& x) { return x.ndim() == 3 && x.size(0) > 1 ? x.stride(0) : 0; };
  const int M = narrow(c.size(-2)), N = narrow(c.size(-1)), K = narrow(a.size(-1));
  const int batches = narrow(c.ndim() == 3 ? c.size(0) : 1);
  const bool wide = a.dtype() == DType::f64;
  const double one = 1;
  const float one_f = 1, beta_f = static_cast<float>(beta);
  const void *alpha = wide ? static_cast<const void*>(&one) : &one_f,
             *keep = wide ? static_cast<const void*>(&beta) : &beta_f;
  const cudaDataType_t in = cuda_type(a.dtype()), out = cuda_type(c.dtype());
  LLATTE_CUBLAS_CHECK(cublasGemmStridedBatchedEx(
      handle(), lb.op, la.op, N, M, K, alpha, b.raw(), in, narrow(lb.ld), step(b), a.raw(), in, narrow(la.ld),
      step(a), keep, c.raw(), out, narrow(lc.ld), step(c), batches,
      wide ? CUBLAS_COMPUTE_64F : CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT));
}

}  // namespace

void matmul(const Tensor& a, const Tensor& b, Tensor& c, double beta) {
  LLATTE_CHECK(beta == 0 || beta == 1, "matmul: beta must be 0 or 1, got ", beta);
  LLATTE_CHECK(is_float(a.dtype()) && a.dtype() == b.dtype() &&
                   (c.dtype() == a.dtype() || c.dtype() == acc_dtype(a.dtype())),
               "matmul: dtypes ", name(a.dtype()), " x ", name(b.dtype()), " -> ", name(c.dtype()));
  if (c.numel() == 0) return;
  if (a.size(-1) == 0) {  // an empty sum
    if (beta == 0) fill(c, 0);
    return;
  }
  LLATTE_CHECK(is_matrix(c), "matmul: the result must be row- or column-major, strides ", c.strides());
  const Tensor am = is_matrix(a) ? a : a.contiguous(), bm = is_matrix(b) ? b : b.contiguous();
  if (layout_of(c).op == CUBLAS_OP_N) return run(am, bm, c, beta);
  Tensor turned = c.transpose(-1, -2);
  run(bm.transpose(-1, -2), am.transpose(-1, -2), turned, beta);
}

}  // namespace llatte::cuda
