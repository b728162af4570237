// Matrix products. f32 and bf16 through oneDNN, f64 (proofs only) through the BLAS that LAPACK brings along.
// Operands are passed by their strides, so a transposed view costs nothing. A primitive is made once per
// shape and kept with its memory descriptors; a call only sets pointers. A few rows against weights as they
// lie on disk, which is what decoding does, are bound by reading the weights: gemv.h.
#include <cblas.h>
#include <omp.h>
#include <algorithm>
#include <array>
#include <memory>
#include <oneapi/dnnl/dnnl.hpp>
#include <unordered_map>
#include "tensor/cpu/gemv.h"
#include "tensor/kernels.h"

namespace llatte::cpu {
namespace {

using dnnl::memory;

dnnl::engine& engine() {
  static dnnl::engine e(dnnl::engine::kind::cpu, 0);
  return e;
}

// What a primitive depends on: per operand dtype, sizes and strides; and beta. Plain numbers, so it hashes as
// words.
struct Key {
  std::array<int64_t, 22> words{};
  bool operator==(const Key&) const = default;
};
struct KeyHash {
  size_t operator()(const Key& k) const {
    uint64_t h = 1469598103934665603ull;  // FNV-1a over words
    for (int64_t w : k.words) h = (h ^ static_cast<uint64_t>(w)) * 1099511628211ull;
    return h;
  }
};

struct Primitive {
  dnnl::matmul run;
  memory a, b, c;
  std::unordered_map<int, memory> arguments;
};

// A dimension of size 1 may carry any stride; oneDNN wants one that fits its neighbours.
memory::dims tidy_strides(const Tensor& x) {
  memory::dims s = x.strides();
  const int n = x.ndim();
  if (x.size(-2) == 1) s[n - 2] = std::max<int64_t>(s[n - 2], x.size(-1) * x.stride(-1));
  if (x.size(-1) == 1 && s[n - 2] == 1) s[n - 1] = x.size(-2);
  return s;
}

memory::desc descriptor(const Tensor& x) {
  const auto type = x.dtype() == DType::bf16 ? memory::data_type::bf16 : memory::data_type::f32;
  return memory::desc(x.shape(), type, tidy_strides(x));
}

Key key_of(const Tensor& a, const Tensor& b, const Tensor& c, bool accumulate) {
  Key k;
  size_t at = 0;
  for (const Tensor* x : {&a, &b, &c}) {
    k.words[at++] = static_cast<int64_t>(x->dtype()) * 8 + x->ndim();
    for (int d = 0; d < x->ndim(); ++d) k.words[at++] = x->size(d), k.words[at++] = x->stride(d);
  }
  k.words[at] = accumulate;
  return k;
}

std::unique_ptr<Primitive> make_primitive(const Tensor& a, const Tensor& b, const Tensor& c,
                                          bool accumulate) {
  dnnl::primitive_attr attr;
  if (accumulate) {
    dnnl::post_ops sum;
    sum.append_sum(1.0f);
    attr.set_post_ops(sum);
  }
  const auto da = descriptor(a), db = descriptor(b), dc = descriptor(c);
  const dnnl::matmul::primitive_desc pd(dnnl::matmul::desc(da, db, dc), attr, engine());
  auto p = std::make_unique<Primitive>(Primitive{dnnl::matmul(pd),
                                                 memory(da, engine(), nullptr),
                                                 memory(db, engine(), nullptr),
                                                 memory(dc, engine(), nullptr),
                                                 {}});
  p->arguments = {{DNNL_ARG_SRC, p->a}, {DNNL_ARG_WEIGHTS, p->b}, {DNNL_ARG_DST, p->c}};
  return p;
}

// Per thread: a primitive's memory handles are set before each run, so two threads must not share one.
Primitive& primitive_for(const Tensor& a, const Tensor& b, const Tensor& c, bool accumulate) {
  thread_local std::unordered_map<Key, std::unique_ptr<Primitive>, KeyHash> made;
  auto& p = made[key_of(a, b, c, accumulate)];
  if (!p) p = make_primitive(a, b, c, accumulate);
  return *p;
}

// oneDNN deals its work out to omp_get_max_threads() threads and takes it for granted that it gets so many.
// Under OMP_THREAD_LIMIT or OMP_DYNAMIC it might get fewer, and part of the result would never be written.
void get_the_threads_that_are_asked_for() {
  if (omp_get_dynamic()) omp_set_dynamic(0);
  if (omp_get_max_threads() > omp_get_thread_limit()) omp_set_num_threads(omp_get_thread_limit());
}

void run_onednn(const Tensor& a, const Tensor& b, Tensor& c, bool accumulate) try {
  get_the_threads_that_are_asked_for();
  Primitive& p = primitive_for(a, b, c, accumulate);
  p.a.set_data_handle(const_cast<void*>(a.raw()));
  p.b.set_data_handle(const_cast<void*>(b.raw()));
  p.c.set_data_handle(c.raw());
  thread_local dnnl::stream stream(engine());
  p.run.execute(stream, p.arguments);
} catch (const dnnl::error& e) {
  LLATTE_FAIL("matmul: oneDNN refused ", a.shape(), " x ", b.shape(), " -> ", c.shape(), " of ",
              name(a.dtype()), ": ", e.what());
}

// Transposed or not, and the distance between rows (or columns), of the last two dimensions.
struct Layout {
  CBLAS_TRANSPOSE trans;
  int ld;
};
Layout layout_of(const Tensor& x) {
  const int64_t rows = x.size(-2), cols = x.size(-1);
  if (x.stride(-1) == 1 || cols == 1) return {CblasNoTrans, int(std::max(x.stride(-2), cols))};
  LLATTE_CHECK(x.stride(-2) == 1 || rows == 1, "matmul: f64 operands must be row- or column-major, strides ",
               x.strides());
  return {CblasTrans, int(std::max(x.stride(-1), rows))};
}

void run_f64(const Tensor& a, const Tensor& b, Tensor& c, double beta) {
  const int64_t batches = c.ndim() == 3 ? c.size(0) : 1;
  const auto step = [](const Tensor& x) { return x.ndim() == 3 && x.size(0) > 1 ? x.stride(0) : 0; };
  const Layout la = layout_of(a), lb = layout_of(b), lc = layout_of(c);
  LLATTE_CHECK(lc.trans == CblasNoTrans, "matmul: an f64 result must be row-major");
  for (int64_t i = 0; i < batches; ++i)
    cblas_dgemm(CblasRowMajor, la.trans, lb.trans, int(c.size(-2)), int(c.size(-1)), int(a.size(-1)), 1.0,
                a.ptr<double>() + i * step(a), la.ld, b.ptr<double>() + i * step(b), lb.ld, beta,
                c.ptr<double>() + i * step(c), lc.ld);
}

constexpr int64_t kFewRows = 4;  // up to here reading the weights costs more than the sums

bool is_gemv(const Tensor& a, const Tensor& b, const Tensor& c) {
  return a.ndim() == 2 && b.ndim() == 2 && a.size(0) <= kFewRows && b.stride(0) == 1 && c.stride(1) == 1;
}

template <class T, class C>
void run_gemv(const Tensor& a, const Tensor& b, Tensor& c, bool accumulate) {
  const Tensor x_MK = a.to(DType::f32).contiguous();
  gemv(x_MK.ptr<float>(), a.size(0), b.ptr<T>(), b.stride(1), c.size(1), a.size(1), c.ptr<C>(), c.stride(0),
       accumulate);
}

void run_gemv(const Tensor& a, const Tensor& b, Tensor& c, bool accumulate) {
  if (a.dtype() == DType::f32) return run_gemv<float, float>(a, b, c, accumulate);
  if (c.dtype() == DType::f32) return run_gemv<bf16, float>(a, b, c, accumulate);
  run_gemv<bf16, bf16>(a, b, c, accumulate);
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
  if (a.dtype() == DType::f64) return run_f64(a, b, c, beta);
  if (is_gemv(a, b, c)) return run_gemv(a, b, c, beta == 1);
  run_onednn(a, b, c, beta == 1);
}

}  // namespace llatte::cpu
