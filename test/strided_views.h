// The same numbers, laid out otherwise. NaN lies around a slice, so that nobody reads outside of it.
#pragma once
#include <limits>
#include "tensor/tensor.h"

namespace llatte::test {

inline Tensor transposed_view(const Tensor& x) { return x.transpose(0, -1).contiguous().transpose(0, -1); }

inline Tensor sliced_view(const Tensor& x) {
  Shape around = x.shape();
  for (int64_t& s : around) s += 3;
  Tensor v = Tensor::full(around, std::numeric_limits<double>::quiet_NaN(), x.dtype(), x.device());
  for (int d = 0; d < x.ndim(); ++d) v = v.slice(d, 1, 1 + x.size(d));
  v.copy_from(x);
  return v;
}

}  // namespace llatte::test
