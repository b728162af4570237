// One row of W numbers for each token of B sequences, filled from the front: what every cache is made of.
//   f32, bf16, f64  the numbers, rounded to that type
//   int8, int4      whole multiples of a scale (bf16) for each group of at most 32 columns; -m-1 <= multiple
//                   <= m, m = 127 or 7. The group's largest number lies at -m-1 (the scale has the sign for
//                   it), unless one of the other sign is nearly as large. Error: at most max|x| / 2m
//                   (1 + 2^-8), that is 0.40 % or 7.2 % of the group's largest number. 8.5 and 4.5 bits each.
// No group crosses a border between sections, so numbers of unlike size can be kept apart.
//   B sequences  S capacity in tokens  T new tokens  W numbers a token
#pragma once
#include "nn/kv_cache.h"
#include "tensor/kernel_args.h"  // CacheRows

namespace llatte {

class TokenStore {
 public:
  // W is the sum of the sections.
  TokenStore(int64_t B, int64_t S, const std::vector<int64_t>& sections, CacheType t, Device d = Device::cpu);
  int64_t length() const { return length_; }
  int64_t capacity() const { return capacity_; }
  void truncate(int64_t length);
  int64_t bytes_per_token() const;  // of one sequence, from the allocated tensors

  void append(const Tensor& x_BTW);  // after those held, rounded as they are kept
  // All rows held, as they are kept, in dtype t: (B,length,row..), a view where they are kept as t.
  Tensor read(DType t, const Shape& row) const;
  const CacheRows& rows() const { return rows_; }  // for kernels that read them where they lie

 private:
  CacheRows rows_;
  int64_t B_, capacity_, length_ = 0;
};

}  // namespace llatte
