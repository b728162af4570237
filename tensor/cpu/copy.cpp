// Copies between any two layouts and types, and fills. The two shapes are merged into as few loops as their
// strides allow; the innermost one is vectorised where both sides are dense. Rounding: see tensor/dtype.h
// (f64 reaches bf16 through f32); a float becomes i32 by truncation.
#include <algorithm>
#include "tensor/cpu/parallel.h"
#include "tensor/kernels.h"
#include "tensor/strided.h"

namespace llatte::cpu {
namespace {

constexpr int64_t kBlock = 1 << 13;  // numbers of a row that one thread takes at a time

template <class To, class From>
To convert(From v) {
  if constexpr (std::is_same_v<To, From>) return v;
  else if constexpr (std::is_same_v<To, bf16>) return bf16(static_cast<float>(v));
  else return static_cast<To>(static_cast<std::conditional_t<std::is_same_v<From, bf16>, float, From>>(v));
}

template <class X, class Y>
void copy_row(const X* x, int64_t sx, Y* y, int64_t sy, int64_t n) {
  if (sx == 1 && sy == 1) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) y[i] = convert<Y>(x[i]);
  } else {
    for (int64_t i = 0; i < n; ++i) y[i * sy] = convert<Y>(x[i * sx]);
  }
}

template <class X, class Y>
void run(const X* x, Y* y, const Loops& loops) {
  const Loop inner = loops.at[static_cast<size_t>(loops.count - 1)];
  int64_t rows = 1;
  for (int d = 0; d + 1 < loops.count; ++d) rows *= loops.at[static_cast<size_t>(d)].n;
  const int64_t parts = (inner.n + kBlock - 1) / kBlock;  // of a row
  for_rows(rows * parts, std::min(inner.n, kBlock), [=](int64_t task) {
    const int64_t begin = task % parts * kBlock;
    int64_t row = task / parts, ox = begin * inner.sx, oy = begin * inner.sy;
    for (int d = loops.count - 2; d >= 0; --d) {
      const Loop& l = loops.at[static_cast<size_t>(d)];
      ox += row % l.n * l.sx, oy += row % l.n * l.sy, row /= l.n;
    }
    copy_row(x + ox, inner.sx, y + oy, inner.sy, std::min(kBlock, inner.n - begin));
  });
}

}  // namespace

void copy(const Tensor& x, Tensor& y) {
  const Loops loops = loops_over("copy", x, y);
  if (x.numel() == 0) return;
  dispatch_any(x.dtype(), "copy", [&]<class X>() {
    dispatch_any(y.dtype(), "copy", [&]<class Y>() { run(x.ptr<X>(), y.ptr<Y>(), loops); });
  });
}

void fill(Tensor& y, double value) {
  dispatch_any(y.dtype(), "fill", [&]<class T>() {
    T* py = y.data<T>();
    const T v = convert<T>(value);
    for_each(y.numel(), [=](int64_t i) { py[i] = v; });
  });
}

}  // namespace llatte::cpu
