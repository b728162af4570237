// y (M,N) = x (M,K) w_NK^T for a handful of rows of x, as in decoding: bound by reading w, so each row of w
// is read once and from end to end (several rows side by side would be twice as slow: the prefetcher loses
// its way), with four chains of f32 sums to hide the latency of one. Threads take contiguous shares of the
// rows; the result does not depend on their number.
#pragma once
#include "tensor/cpu/parallel.h"
#include "tensor/cpu/tile.h"
#include "tensor/dtype.h"

namespace llatte::cpu {

using FloatLanes = Lanes<float>::type;

inline FloatLanes load_lanes(const float* p) { return *reinterpret_cast<const FloatLanes*>(p); }

inline FloatLanes load_lanes(const bf16* p) {
  typedef uint16_t Halves __attribute__((vector_size(32), aligned(2), may_alias));
  typedef uint32_t Words __attribute__((vector_size(64)));
  const Words words = __builtin_convertvector(*reinterpret_cast<const Halves*>(p), Words) << 16;
  return std::bit_cast<FloatLanes>(words);
}

template <class T>
float dot(const float* x, const T* w, int64_t K) {
  constexpr int64_t L = kLanes<float>, kChains = 4;
  FloatLanes s[kChains] = {};
  int64_t k = 0;
  for (; k + kChains * L <= K; k += kChains * L)
    for (int64_t c = 0; c < kChains; ++c) s[c] += load_lanes(x + k + c * L) * load_lanes(w + k + c * L);
  const FloatLanes lanes = (s[0] + s[1]) + (s[2] + s[3]);
  float sum = 0;
  for (int64_t i = 0; i < L; ++i) sum += lanes[i];
  for (; k < K; ++k) sum += x[k] * float(w[k]);
  return sum;
}

// Rows of w are `ld` apart, rows of y `ldy`; x is dense. Adds to y if `accumulate`.
template <class T, class C>
void gemv(const float* x, int64_t M, const T* w, int64_t ld, int64_t N, int64_t K, C* y, int64_t ldy,
          bool accumulate) {
  for_rows(N, K, [=](int64_t n) {
    for (int64_t m = 0; m < M; ++m) {
      const float sum = dot(x + m * K, w + n * ld, K);
      C& to = y[m * ldy + n];
      to = C(accumulate ? float(to) + sum : sum);
    }
  });
}

}  // namespace llatte::cpu
