// cuSOLVER over LAPACK. What a routine reads and writes is checked against the allocations when it is called;
// what it leaves undefined on a GPU (the matrix after an SVD, the work space) is poison here.
#include <cusolverDn.h>
#include <lapacke.h>
#include "machine.h"

struct cusolverDnContext {
  cudaStream_t stream = nullptr;
};

namespace {

using namespace cuda_on_cpu;

struct Range {
  const char* name;
  const void* at;
  size_t bytes;
};
Range matrix(const char* name, const void* at, int rows, int columns, int ld, size_t item = sizeof(double)) {
  return {name, at, columns > 0 ? (size_t(ld) * (columns - 1) + rows) * item : 0};
}
Range numbers(const char* name, const void* at, int n, size_t item = sizeof(double)) {
  return {name, at, size_t(n) * item};
}

int work_size(int m, int n) { return 2 * std::max(m, n) + 32; }

// routine() returns the verdict; `scratch` is the work space.
template <class Routine>
cusolverStatus_t run(cusolverDnHandle_t handle, const char* name, int* info, const std::vector<Range>& ranges,
                     const Range& scratch, Routine routine) {
  for (const Range& r : ranges) check_device_range(sentence(name, ", ", r.name), r.at, r.bytes);
  check_device_range(sentence(name, ", work"), scratch.at, scratch.bytes);
  check_device_range(sentence(name, ", info"), info, sizeof(int));
  enqueue(handle->stream, [info, scratch, routine] {
    *info = static_cast<int>(routine());
    if (scratch.bytes) fill(const_cast<void*>(scratch.at), scratch.bytes, kPoison);
  });
  return keep_up(handle->stream), CUSOLVER_STATUS_SUCCESS;
}

char letter(cublasFillMode_t uplo) { return uplo == CUBLAS_FILL_MODE_LOWER ? 'L' : 'U'; }
char letter(cusolverEigMode_t jobz) { return jobz == CUSOLVER_EIG_MODE_VECTOR ? 'V' : 'N'; }
cusolverStatus_t set(int* lwork, int size) { return *lwork = size, CUSOLVER_STATUS_SUCCESS; }

// m, n >= 0, leading dimensions that hold their rows, enough work space.
bool valid(int m, int n, int lda, int lwork) {
  return m >= 0 && n >= 0 && lda >= std::max(1, m) && lwork >= work_size(m, n);
}

}  // namespace

cusolverStatus_t cusolverDnCreate(cusolverDnHandle_t* handle) {
  return *handle = new cusolverDnContext, CUSOLVER_STATUS_SUCCESS;
}
cusolverStatus_t cusolverDnDestroy(cusolverDnHandle_t handle) {
  return delete handle, CUSOLVER_STATUS_SUCCESS;
}
cusolverStatus_t cusolverDnSetStream(cusolverDnHandle_t handle, cudaStream_t stream) {
  return handle->stream = stream, CUSOLVER_STATUS_SUCCESS;
}

// ---- singular values
cusolverStatus_t cusolverDnDgesvd_bufferSize(cusolverDnHandle_t, int m, int n, int* lwork) {
  return m >= n ? set(lwork, work_size(m, n)) : CUSOLVER_STATUS_INVALID_VALUE;
}
cusolverStatus_t cusolverDnDgesvd(cusolverDnHandle_t handle, signed char jobu, signed char jobvt, int m,
                                  int n, double* A, int lda, double* S, double* U, int ldu, double* VT,
                                  int ldvt, double* work, int lwork, double* rwork, int* info) {
  const auto guard = lock();
  const int columns_of_u = jobu == 'A' ? m : jobu == 'S' ? n : 0, rows_of_vt = jobvt == 'N' ? 0 : n;
  if (m < n || !valid(m, n, lda, lwork) || (columns_of_u && ldu < m) || (rows_of_vt && ldvt < n))
    return CUSOLVER_STATUS_INVALID_VALUE;
  return run(handle, "cusolverDnDgesvd", info,
             {matrix("A", A, m, n, lda), numbers("S", S, n), matrix("U", U, m, columns_of_u, ldu),
              matrix("VT", VT, rows_of_vt, rows_of_vt, ldvt), numbers("rwork", rwork, rwork ? n - 1 : 0)},
             numbers("work", work, lwork), [=] {
               std::vector<double> rest(static_cast<size_t>(std::max(1, n)));
               const int verdict =
                   LAPACKE_dgesvd(LAPACK_COL_MAJOR, static_cast<char>(jobu), static_cast<char>(jobvt), m, n,
                                  A, lda, S, U, ldu, VT, ldvt, rest.data());
               for (int j = 0; j < n; ++j) fill(A + size_t(j) * lda, size_t(m) * sizeof(double), kPoison);
               return verdict;
             });
}

// ---- eigenvalues
cusolverStatus_t cusolverDnDsyevd_bufferSize(cusolverDnHandle_t, cusolverEigMode_t, cublasFillMode_t, int n,
                                             const double*, int, const double*, int* lwork) {
  return set(lwork, work_size(n, n));
}
cusolverStatus_t cusolverDnDsyevd(cusolverDnHandle_t handle, cusolverEigMode_t jobz, cublasFillMode_t uplo,
                                  int n, double* A, int lda, double* W, double* work, int lwork, int* info) {
  const auto guard = lock();
  if (!valid(n, n, lda, lwork)) return CUSOLVER_STATUS_INVALID_VALUE;
  return run(handle, "cusolverDnDsyevd", info, {matrix("A", A, n, n, lda), numbers("W", W, n)},
             numbers("work", work, lwork),
             [=] { return LAPACKE_dsyevd(LAPACK_COL_MAJOR, letter(jobz), letter(uplo), n, A, lda, W); });
}
cusolverStatus_t cusolverDnZheevd_bufferSize(cusolverDnHandle_t, cusolverEigMode_t, cublasFillMode_t, int n,
                                             const cuDoubleComplex*, int, const double*, int* lwork) {
  return set(lwork, work_size(n, n));
}
cusolverStatus_t cusolverDnZheevd(cusolverDnHandle_t handle, cusolverEigMode_t jobz, cublasFillMode_t uplo,
                                  int n, cuDoubleComplex* A, int lda, double* W, cuDoubleComplex* work,
                                  int lwork, int* info) {
  const auto guard = lock();
  if (!valid(n, n, lda, lwork)) return CUSOLVER_STATUS_INVALID_VALUE;
  return run(handle, "cusolverDnZheevd", info, {matrix("A", A, n, n, lda, sizeof *A), numbers("W", W, n)},
             numbers("work", work, lwork, sizeof *work), [=] {
               return LAPACKE_zheevd(LAPACK_COL_MAJOR, letter(jobz), letter(uplo), n,
                                     reinterpret_cast<lapack_complex_double*>(A), lda, W);
             });
}

// ---- Cholesky
cusolverStatus_t cusolverDnDpotrf_bufferSize(cusolverDnHandle_t, cublasFillMode_t, int n, double*, int,
                                             int* lwork) {
  return set(lwork, work_size(n, n));
}
cusolverStatus_t cusolverDnDpotrf(cusolverDnHandle_t handle, cublasFillMode_t uplo, int n, double* A, int lda,
                                  double* work, int lwork, int* info) {
  const auto guard = lock();
  if (!valid(n, n, lda, lwork)) return CUSOLVER_STATUS_INVALID_VALUE;
  return run(handle, "cusolverDnDpotrf", info, {matrix("A", A, n, n, lda)}, numbers("work", work, lwork),
             [=] { return LAPACKE_dpotrf(LAPACK_COL_MAJOR, letter(uplo), n, A, lda); });
}
cusolverStatus_t cusolverDnDpotrs(cusolverDnHandle_t handle, cublasFillMode_t uplo, int n, int nrhs,
                                  const double* A, int lda, double* B, int ldb, int* info) {
  const auto guard = lock();
  if (n < 0 || nrhs < 0 || lda < std::max(1, n) || ldb < std::max(1, n)) return CUSOLVER_STATUS_INVALID_VALUE;
  return run(handle, "cusolverDnDpotrs", info, {matrix("A", A, n, n, lda), matrix("B", B, n, nrhs, ldb)}, {},
             [=] { return LAPACKE_dpotrs(LAPACK_COL_MAJOR, letter(uplo), n, nrhs, A, lda, B, ldb); });
}

// ---- QR
cusolverStatus_t cusolverDnDgeqrf_bufferSize(cusolverDnHandle_t, int m, int n, double*, int, int* lwork) {
  return set(lwork, work_size(m, n));
}
cusolverStatus_t cusolverDnDgeqrf(cusolverDnHandle_t handle, int m, int n, double* A, int lda, double* tau,
                                  double* work, int lwork, int* info) {
  const auto guard = lock();
  if (!valid(m, n, lda, lwork)) return CUSOLVER_STATUS_INVALID_VALUE;
  return run(handle, "cusolverDnDgeqrf", info,
             {matrix("A", A, m, n, lda), numbers("tau", tau, std::min(m, n))}, numbers("work", work, lwork),
             [=] { return LAPACKE_dgeqrf(LAPACK_COL_MAJOR, m, n, A, lda, tau); });
}
cusolverStatus_t cusolverDnDorgqr_bufferSize(cusolverDnHandle_t, int m, int n, int, const double*, int,
                                             const double*, int* lwork) {
  return set(lwork, work_size(m, n));
}
cusolverStatus_t cusolverDnDorgqr(cusolverDnHandle_t handle, int m, int n, int k, double* A, int lda,
                                  const double* tau, double* work, int lwork, int* info) {
  const auto guard = lock();
  if (!valid(m, n, lda, lwork) || n > m || k > n || k < 0) return CUSOLVER_STATUS_INVALID_VALUE;
  return run(handle, "cusolverDnDorgqr", info, {matrix("A", A, m, n, lda), numbers("tau", tau, k)},
             numbers("work", work, lwork),
             [=] { return LAPACKE_dorgqr(LAPACK_COL_MAJOR, m, n, k, A, lda, tau); });
}
