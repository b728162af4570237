// cuBLAS over the host's BLAS, which counts columns first too. Arguments are checked when they are passed,
// matrices against the allocations they lie in; the product itself runs with its stream.
#include <cublas_v2.h>
#include "machine.h"
#include "tensor/dtype.h"

extern "C" {
void sgemm_(const char* opA, const char* opB, const int* m, const int* n, const int* k, const float* alpha,
            const float* A, const int* ldA, const float* B, const int* ldB, const float* beta, float* C,
            const int* ldC);
void dgemm_(const char* opA, const char* opB, const int* m, const int* n, const int* k, const double* alpha,
            const double* A, const int* ldA, const double* B, const int* ldB, const double* beta, double* C,
            const int* ldC);
}

struct cublasContext {
  cudaStream_t stream = nullptr;
};

namespace {

using namespace cuda_on_cpu;
using llatte::bf16;

struct Matrix {  // rows x columns of a batch, as stored
  const void* at;
  cudaDataType type;
  int rows, columns, ld;
  long long stride;

  size_t item() const { return type == CUDA_R_64F ? 8 : type == CUDA_R_32F ? 4 : 2; }
  size_t span() const { return size_t(ld) * (columns - 1) + rows; }  // from the first number to the last
  const void* of(int batch) const {
    return static_cast<const char*>(at) + batch * stride * static_cast<long long>(item());
  }
};

struct Gemm {
  cublasOperation_t opA, opB;
  int m, n, k, batches;
  double alpha, beta;
  Matrix A, B, C;
};

const char* letter(cublasOperation_t op) { return op == CUBLAS_OP_N ? "N" : "T"; }

std::vector<float> widened(const Matrix& x, int batch) {
  const auto* p = static_cast<const bf16*>(x.of(batch));
  return {p, p + x.span()};
}

void multiply(const Gemm& g, const float* A, const float* B, float* C, float beta) {
  const float alpha = static_cast<float>(g.alpha);
  sgemm_(letter(g.opA), letter(g.opB), &g.m, &g.n, &g.k, &alpha, A, &g.A.ld, B, &g.B.ld, &beta, C, &g.C.ld);
}

// bf16 operands; sums in f32, rounded once at the end where C is bf16.
void multiply_bf16(const Gemm& g, int batch) {
  const std::vector<float> A = widened(g.A, batch), B = widened(g.B, batch);
  const float beta = static_cast<float>(g.beta);
  void* at = const_cast<void*>(g.C.of(batch));
  if (g.C.type == CUDA_R_32F) return multiply(g, A.data(), B.data(), static_cast<float*>(at), beta);
  std::vector<float> C = widened(g.C, batch);
  multiply(g, A.data(), B.data(), C.data(), beta);
  for (int j = 0; j < g.n; ++j)
    for (int i = 0; i < g.m; ++i) {
      const size_t at_ij = size_t(j) * g.C.ld + i;
      static_cast<bf16*>(at)[at_ij] = C[at_ij];
    }
}

void run(const Gemm& g) {
  for (int b = 0; b < g.batches; ++b) {
    const void *A = g.A.of(b), *B = g.B.of(b);
    void* C = const_cast<void*>(g.C.of(b));
    if (g.A.type == CUDA_R_16BF) multiply_bf16(g, b);
    else if (g.A.type == CUDA_R_32F)
      multiply(g, static_cast<const float*>(A), static_cast<const float*>(B), static_cast<float*>(C),
               static_cast<float>(g.beta));
    else
      dgemm_(letter(g.opA), letter(g.opB), &g.m, &g.n, &g.k, &g.alpha, static_cast<const double*>(A), &g.A.ld,
             static_cast<const double*>(B), &g.B.ld, &g.beta, static_cast<double*>(C), &g.C.ld);
  }
}

void check_lies_on_device(const char* name, const Matrix& x, int batches) {
  const size_t numbers = x.span() + static_cast<size_t>(x.stride) * (batches - 1);
  check_device_range(sentence("cuBLAS product, matrix ", name, " ", x.rows, "x", x.columns), x.at,
                     numbers * x.item());
}

bool supported(const Gemm& g, cublasComputeType_t compute) {
  const bool wide = compute == CUBLAS_COMPUTE_64F || compute == CUBLAS_COMPUTE_64F_PEDANTIC;
  if (g.A.type != g.B.type || wide != (g.A.type == CUDA_R_64F)) return false;
  return g.C.type == g.A.type || (g.A.type == CUDA_R_16BF && g.C.type == CUDA_R_32F);
}

bool valid(const Gemm& g) {
  const auto holds = [](const Matrix& x) { return x.ld >= std::max(1, x.rows) && x.stride >= 0; };
  const bool apart = g.batches == 1 || g.C.stride >= static_cast<long long>(g.C.rows);
  return g.m >= 0 && g.n >= 0 && g.k >= 0 && g.batches >= 0 && holds(g.A) && holds(g.B) && holds(g.C) &&
         apart;
}

}  // namespace

const char* cublasGetStatusString(cublasStatus_t status) {
  switch (status) {
    case CUBLAS_STATUS_SUCCESS: return "success";
    case CUBLAS_STATUS_NOT_INITIALIZED: return "the library was not initialized";
    case CUBLAS_STATUS_INVALID_VALUE: return "an unsupported value or parameter was passed to the function";
    default: return "the functionality requested is not supported";
  }
}
const char* cublasGetStatusName(cublasStatus_t status) {
  switch (status) {
    case CUBLAS_STATUS_SUCCESS: return "CUBLAS_STATUS_SUCCESS";
    case CUBLAS_STATUS_NOT_INITIALIZED: return "CUBLAS_STATUS_NOT_INITIALIZED";
    case CUBLAS_STATUS_INVALID_VALUE: return "CUBLAS_STATUS_INVALID_VALUE";
    default: return "CUBLAS_STATUS_NOT_SUPPORTED";
  }
}
cublasStatus_t cublasCreate(cublasHandle_t* handle) {
  return *handle = new cublasContext, CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasDestroy(cublasHandle_t handle) { return delete handle, CUBLAS_STATUS_SUCCESS; }
cublasStatus_t cublasSetStream(cublasHandle_t handle, cudaStream_t stream) {
  if (!handle) return CUBLAS_STATUS_NOT_INITIALIZED;
  return handle->stream = stream, CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasSetWorkspace(cublasHandle_t, void* workspace, size_t bytes) {
  const auto guard = lock();
  check_device_range("cublasSetWorkspace", workspace, bytes);
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasSetMathMode(cublasHandle_t, cublasMath_t) { return CUBLAS_STATUS_SUCCESS; }

cublasStatus_t cublasGemmStridedBatchedEx(cublasHandle_t handle, cublasOperation_t opA, cublasOperation_t opB,
                                          int m, int n, int k, const void* alpha, const void* A,
                                          cudaDataType typeA, int ldA, long long strideA, const void* B,
                                          cudaDataType typeB, int ldB, long long strideB, const void* beta,
                                          void* C, cudaDataType typeC, int ldC, long long strideC,
                                          int batches, cublasComputeType_t compute, cublasGemmAlgo_t) {
  const auto guard = lock();
  if (!handle) return CUBLAS_STATUS_NOT_INITIALIZED;
  const bool plainA = opA == CUBLAS_OP_N, plainB = opB == CUBLAS_OP_N, wide = typeA == CUDA_R_64F;
  const auto number = [wide](const void* x) {
    return wide ? *static_cast<const double*>(x) : *static_cast<const float*>(x);
  };
  const Gemm g{opA,
               opB,
               m,
               n,
               k,
               batches,
               number(alpha),
               number(beta),
               {A, typeA, plainA ? m : k, plainA ? k : m, ldA, strideA},
               {B, typeB, plainB ? k : n, plainB ? n : k, ldB, strideB},
               {C, typeC, m, n, ldC, strideC}};
  if (!valid(g)) return CUBLAS_STATUS_INVALID_VALUE;
  if (!supported(g, compute)) return CUBLAS_STATUS_NOT_SUPPORTED;
  if (m == 0 || n == 0 || batches == 0) return CUBLAS_STATUS_SUCCESS;
  if (k > 0) check_lies_on_device("A", g.A, batches), check_lies_on_device("B", g.B, batches);
  check_lies_on_device("C", g.C, batches);
  enqueue(handle->stream, [g] { run(g); });
  return keep_up(handle->stream), CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasGemmEx(cublasHandle_t handle, cublasOperation_t opA, cublasOperation_t opB, int m, int n,
                            int k, const void* alpha, const void* A, cudaDataType typeA, int ldA,
                            const void* B, cudaDataType typeB, int ldB, const void* beta, void* C,
                            cudaDataType typeC, int ldC, cublasComputeType_t compute,
                            cublasGemmAlgo_t algorithm) {
  return cublasGemmStridedBatchedEx(handle, opA, opB, m, n, k, alpha, A, typeA, ldA, 0, B, typeB, ldB, 0,
                                    beta, C, typeC, ldC, 0, 1, compute, algorithm);
}
