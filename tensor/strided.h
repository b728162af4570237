// Two views of one shape as few loops as their strides allow: neighbouring dimensions that lie behind one
// another on both sides are one. For kernels that walk views.
#pragma once
#include <algorithm>
#include <array>
#include "tensor/tensor.h"

namespace llatte {

struct Loop {
  int64_t n, sx, sy;  // count, and the step in elements on either side
};

// Outermost first; always at least one.
struct Loops {
  static constexpr int kMaxDims = 8;
  std::array<Loop, kMaxDims> at;
  int count = 0;

  void append(Loop l) {
    if (l.n == 1) return;
    Loop& last = at[static_cast<size_t>(std::max(count - 1, 0))];
    const bool merges = count > 0 && last.sx == l.n * l.sx && last.sy == l.n * l.sy;
    if (merges) last = {last.n * l.n, l.sx, l.sy};
    else at[static_cast<size_t>(count++)] = l;
  }
};

inline Loops loops_over(const char* op, const Tensor& x, const Tensor& y) {
  LLATTE_CHECK(x.shape() == y.shape(), op, ": ", x.shape(), " does not fit ", y.shape());
  LLATTE_CHECK(x.ndim() <= Loops::kMaxDims, op, ": ", x.shape(), " has more than ", Loops::kMaxDims,
               " dimensions");
  Loops l{};
  for (int d = 0; d < x.ndim(); ++d) l.append({x.size(d), x.stride(d), y.stride(d)});
  if (l.count == 0) l.at[static_cast<size_t>(l.count++)] = {1, 1, 1};
  return l;
}

}  // namespace llatte
