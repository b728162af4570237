// Dense factorisations by cuSOLVER, in f64. It counts columns first: a row-major buffer is its matrix
// transposed, and the upper triangle of ours is the lower one of its. Every call reads the routine's verdict,
// so it waits for the device.
#include <cusolverDn.h>
#include <limits>
#include "tensor/cuda/pack.h"

namespace llatte::cuda {
namespace {

#define LLATTE_CUSOLVER_CHECK(op, call)                                                                \
  do {                                                                                                 \
    const cusolverStatus_t status = (call);                                                            \
    LLATTE_CHECK(status == CUSOLVER_STATUS_SUCCESS, op, ": cuSOLVER refused it (status ", int(status), \
                 ", " #call ")");                                                                      \
  } while (0)

constexpr cublasFillMode_t kLower = CUBLAS_FILL_MODE_LOWER;  // our upper triangle

// Never destroyed, as the stream it works on.
cusolverDnHandle_t handle() {
  static const cusolverDnHandle_t made = [] {
    cusolverDnHandle_t h = nullptr;
    LLATTE_CUSOLVER_CHECK("linalg", cusolverDnCreate(&h));
    LLATTE_CUSOLVER_CHECK("linalg", cusolverDnSetStream(h, stream()));
    return h;
  }();
  return made;
}

Tensor f64(const Shape& shape) { return Tensor::empty(shape, DType::f64, Device::cuda); }

// What a routine works in, and its verdict: 0: done, below 0: a wrong argument (ours), above 0: this matrix
// defeats the method.
struct Work {
  Tensor space, verdict = Tensor::zeros({1}, DType::i32, Device::cuda);
  int size;

  explicit Work(int numbers) : space(f64({numbers})), size(numbers) {}
  double* at() { return space.data<double>(); }
  int* info() { return verdict.data<int32_t>(); }
  int read() const { return static_cast<int>(verdict.item()); }

  void check_done(const char* op, const Tensor& a) const {
    const int code = read();
    LLATTE_CHECK(code == 0, op, ": cuSOLVER did not finish on a matrix ", a.shape(), " (code ", code,
                 "): ", code > 0 ? "the iteration did not converge" : "an argument was refused");
  }
};

int side(const Tensor& a, int d) {
  LLATTE_CHECK(a.size(d) <= std::numeric_limits<int>::max(), "linalg: ", a.shape(), " has too long a side");
  return static_cast<int>(a.size(d));
}

// x = U diag(s) W^T as cuSOLVER sees it: x (n,m) row-major is its (m,n), m >= n; then vt (n,m) is its U, and
// u (n,n) its W^T.
void svd_wide(Tensor& x, Tensor& u, Tensor& s, Tensor& vt) {
  const int m = side(x, 1), n = side(x, 0);
  int size = 0;
  LLATTE_CUSOLVER_CHECK("svd", cusolverDnDgesvd_bufferSize(handle(), m, n, &size));
  Work work(size);
  Tensor unused = f64({n});  // where an iteration that does not converge leaves its superdiagonal
  LLATTE_CUSOLVER_CHECK("svd", cusolverDnDgesvd(handle(), 'S', 'S', m, n, x.data<double>(), m,
                                                s.data<double>(), vt.data<double>(), m, u.data<double>(), n,
                                                work.at(), size, unused.data<double>(), work.info()));
  work.check_done("svd", x);
}

__global__ void take_upper(const double* at, int64_t M, int64_t N, double* r) {
  const int64_t i = global_thread() / N, j = global_thread() % N;
  if (i < N) r[i * N + j] = i <= j ? at[j * M + i] : 0.0;
}

Tensor transposed(const Tensor& a) { return a.transpose(0, 1).contiguous(); }

}  // namespace

void svd(Tensor& a, Tensor& u, Tensor& s, Tensor& vt) {
  if (a.size(0) <= a.size(1)) return svd_wide(a, u, s, vt);
  Tensor turned = transposed(a), v = f64({a.size(1), a.size(1)}), ut = f64({a.size(1), a.size(0)});
  svd_wide(turned, v, s, ut);  // a^T = v diag(s) u^T
  copy(ut.transpose(0, 1), u);
  copy(v.transpose(0, 1), vt);
}

void eigh(Tensor& a, bool vectors, Tensor& values) {
  const int N = side(a, 0);
  const char* op = vectors ? "eigh" : "eigenvalues";
  const cusolverEigMode_t mode = vectors ? CUSOLVER_EIG_MODE_VECTOR : CUSOLVER_EIG_MODE_NOVECTOR;
  double *pa = a.data<double>(), *pv = values.data<double>();
  int size = 0;
  LLATTE_CUSOLVER_CHECK(op, cusolverDnDsyevd_bufferSize(handle(), mode, kLower, N, pa, N, pv, &size));
  Work work(size);
  LLATTE_CUSOLVER_CHECK(op,
                        cusolverDnDsyevd(handle(), mode, kLower, N, pa, N, pv, work.at(), size, work.info()));
  work.check_done(op, a);
  if (vectors) copy(a.clone().transpose(0, 1), a);
}

// cuSOLVER sees the transpose, which is the conjugate: its vectors are the conjugates of ours, in our rows.
void eigh_complex(Tensor& re, Tensor& im, Tensor& values) {
  const int N = side(re, 0);
  Tensor z = f64({N, N, 2}), parts[] = {z.slice(2, 0, 1), z.slice(2, 1, 2)};
  copy(re.reshape({N, N, 1}), parts[0]);
  copy(im.reshape({N, N, 1}), parts[1]);
  auto* pz = reinterpret_cast<cuDoubleComplex*>(z.data<double>());
  double* pv = values.data<double>();
  int size = 0;
  LLATTE_CUSOLVER_CHECK(
      "eigh", cusolverDnZheevd_bufferSize(handle(), CUSOLVER_EIG_MODE_VECTOR, kLower, N, pz, N, pv, &size));
  Work work(2 * size);  // complex numbers
  LLATTE_CUSOLVER_CHECK("eigh",
                        cusolverDnZheevd(handle(), CUSOLVER_EIG_MODE_VECTOR, kLower, N, pz, N, pv,
                                         reinterpret_cast<cuDoubleComplex*>(work.at()), size, work.info()));
  work.check_done("eigh", re);
  Tensor into[] = {re.reshape({N, N, 1}), im.reshape({N, N, 1})};
  for (int k = 0; k < 2; ++k) copy(parts[k].transpose(0, 1), into[k]);
  scale(im, -1, im);
}

void qr(Tensor& a, Tensor& r) {
  const int M = side(a, 0), N = side(a, 1);
  Tensor turned = transposed(a), tau = f64({N});
  double *pq = turned.data<double>(), *pt = tau.data<double>();
  int factor = 0, make = 0;
  LLATTE_CUSOLVER_CHECK("qr", cusolverDnDgeqrf_bufferSize(handle(), M, N, pq, M, &factor));
  LLATTE_CUSOLVER_CHECK("qr", cusolverDnDorgqr_bufferSize(handle(), M, N, N, pq, M, pt, &make));
  Work work(std::max(factor, make));
  LLATTE_CUSOLVER_CHECK("qr", cusolverDnDgeqrf(handle(), M, N, pq, M, pt, work.at(), work.size, work.info()));
  work.check_done("qr", a);
  launch("take_upper", {blocks_for(r.numel(), kThreads), unsigned(kThreads)}, take_upper, pq, int64_t(M),
         int64_t(N), r.data<double>());
  LLATTE_CUSOLVER_CHECK("qr",
                        cusolverDnDorgqr(handle(), M, N, N, pq, M, pt, work.at(), work.size, work.info()));
  work.check_done("qr", a);
  copy(turned.transpose(0, 1), a);
}

void solve_spd(Tensor& a, Tensor& x) {
  const int N = side(a, 0), M = side(x, 1);
  Tensor turned = transposed(x);
  double *pa = a.data<double>(), *px = turned.data<double>();
  int size = 0;
  LLATTE_CUSOLVER_CHECK("solve_spd", cusolverDnDpotrf_bufferSize(handle(), kLower, N, pa, N, &size));
  Work work(size);
  LLATTE_CUSOLVER_CHECK("solve_spd",
                        cusolverDnDpotrf(handle(), kLower, N, pa, N, work.at(), size, work.info()));
  LLATTE_CHECK(work.read() <= 0, "solve_spd: the matrix ", a.shape(),
               " is not positive definite (its leading minor of order ", work.read(),
               "); add to its diagonal");
  LLATTE_CUSOLVER_CHECK("solve_spd", cusolverDnDpotrs(handle(), kLower, N, M, pa, N, px, N, work.info()));
  work.check_done("solve_spd", a);
  copy(turned.transpose(0, 1), x);
}

}  // namespace llatte::cuda
