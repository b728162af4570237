// Embedding: rows of a table. The backward shares out columns, not positions: every row of dw is summed in
// ascending order of position whatever the number of threads.
#include <algorithm>
#include "tensor/cpu/parallel.h"
#include "tensor/kernels.h"

namespace llatte::cpu {
namespace {

constexpr int64_t kColumns = 64;  // that one thread adds at a time

void check_ids(const Tensor& ids, int64_t V) {
  const int32_t* id = ids.data<int32_t>();
  for (int64_t n = 0; n < ids.numel(); ++n) {
    LLATTE_CHECK(0 <= id[n] && id[n] < V, "embedding: id ", id[n], " at position ", n, " is outside [0,", V,
                 "), the vocabulary of the table");
  }
}

template <class T>
void add_to(acc_t<T>* sum, const T* x, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) sum[i] += acc_t<T>(x[i]);
}

}  // namespace

void embedding_fwd(const Tensor& ids, const Tensor& w, Tensor& y) {
  const int64_t V = w.size(0), D = w.size(1);
  check_ids(ids, V);
  dispatch_float(w.dtype(), "embedding", [&]<class T>() {
    const int32_t* id = ids.data<int32_t>();
    const T* pw = w.data<T>();
    T* py = y.data<T>();
    for_rows(ids.numel(), D, [=](int64_t n) { std::copy_n(pw + id[n] * D, D, py + n * D); });
  });
}

void embedding_bwd(const Tensor& dy, const Tensor& ids, Tensor& dw) {
  const int64_t V = dw.size(0), D = dw.size(1), N = ids.numel();
  check_ids(ids, V);
  dw.zero();
  dispatch_float(dy.dtype(), "embedding", [&]<class T>() {
    using A = acc_t<T>;
    const int32_t* id = ids.data<int32_t>();
    const T* g = dy.data<T>();
    A* pdw = dw.data<A>();
    for_rows((D + kColumns - 1) / kColumns, N * kColumns, [=](int64_t tile) {
      const int64_t begin = tile * kColumns, width = std::min(kColumns, D - begin);
      for (int64_t n = 0; n < N; ++n) add_to(pdw + id[n] * D + begin, g + n * D + begin, width);
    });
  });
}

}  // namespace llatte::cpu
