// Gather: places of one dimension, picked by index. Law: each place of dx is summed in ascending order of m,
// so repeated indices give the same bits for every number of threads (threads share out n alone).
#include <algorithm>
#include "tensor/cpu/parallel.h"
#include "tensor/cpu/simd_math.h"
#include "tensor/kernels.h"

namespace llatte::cpu {
namespace {

void check_indices(const Tensor& index, int64_t C) {
  const int32_t* at = index.data<int32_t>();
  for (int64_t m = 0; m < index.numel(); ++m)
    LLATTE_CHECK(-1 <= at[m] && at[m] < C, "gather: index ", at[m], " at place ", m, " is outside [-1,", C,
                 "), the dimension gathered from");
}

// I = 1: single numbers.
template <class T>
void pick(const T* x, const int32_t* at, int64_t M, T* y) {
  for (int64_t m = 0; m < M; ++m) y[m] = at[m] < 0 ? T(0) : x[at[m]];
}

template <class T>
void pick_row(const T* x, int32_t at, int64_t I, T* y) {
  if (at < 0) std::fill_n(y, I, T(0));
  else std::copy_n(x + at * I, I, y);
}

template <class T>
void add_row(const T* dy, int64_t I, acc_t<T>* dx) {
#pragma omp simd
  for (int64_t i = 0; i < I; ++i) dx[i] += acc_t<T>(dy[i]);
}

}  // namespace

void gather_fwd(const Tensor& x, const Tensor& index, Tensor& y) {
  const int64_t C = x.size(1), M = y.size(1), I = y.size(2);
  check_indices(index, C);
  dispatch_float(x.dtype(), "gather", [&]<class T>() {
    const T* px = x.data<T>();
    const int32_t* at = index.data<int32_t>();
    T* py = y.data<T>();
    if (I == 1) return for_rows(y.size(0), M, [=](int64_t n) { pick(px + n * C, at, M, py + n * M); });
    for_rows(y.size(0) * M, I,
             [=](int64_t nm) { pick_row(px + nm / M * C * I, at[nm % M], I, py + nm * I); });
  });
}

void gather_bwd(const Tensor& dy, const Tensor& index, Tensor& dx) {
  const int64_t C = dx.size(1), M = dy.size(1), I = dy.size(2);
  check_indices(index, C);
  dx.zero();
  dispatch_float(dy.dtype(), "gather", [&]<class T>() {
    using A = acc_t<T>;
    const T* g = dy.data<T>();
    const int32_t* at = index.data<int32_t>();
    A* pdx = dx.data<A>();
    for_rows(dy.size(0), M * I, [=](int64_t n) {
      for (int64_t m = 0; m < M; ++m)
        if (at[m] >= 0) add_row(g + (n * M + m) * I, I, pdx + (n * C + at[m]) * I);
    });
  });
}

}  // namespace llatte::cpu
