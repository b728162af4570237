// How attention's kernels see their tensors: rows of numbers, by stream. A stream is one key head of one
// sequence; its rows of queries are those of all heads that share it, m = token * group + head, so grouped
// heads, one head, and the H heads of latent decoding are the same loop. Private to tensor/cuda.
#pragma once
#include <limits>
#include "tensor/cuda/launch.h"

namespace llatte::cuda {

// ---- rows of numbers, as they lie in memory. of(stream): those of one (sequence, key head).
// Heads of a (B,T,heads,width) tensor, dense in its last two dimensions; row m is token m / group.
template <class T>
struct FloatRows {
  T* data;
  int64_t batch, step;  // elements from one sequence, and one token, to the next
  int streams, group, width;
  bool packed;  // every row begins on 16 bytes and is a multiple of them

  __device__ FloatRows of(int stream) const {
    FloatRows r = *this;
    r.data += stream / streams * batch + int64_t(stream % streams) * group * width;
    return r;
  }
  __device__ T* row(int m) const {
    return group == 1 ? data + m * step : data + m / group * step + int64_t(m % group) * width;
  }
};

// N numbers of row m from column c on, zeros beyond the width.
template <int N, class A, class T>
__device__ void load_pack(const FloatRows<T>& x, int m, int c, A (&to)[N]) {
  using Value = std::remove_const_t<T>;
  const T* from = x.row(m) + c;
  if (x.packed && c + N <= x.width) {
    const auto pack = *reinterpret_cast<const Pack<Value, N>*>(from);
#pragma unroll
    for (int i = 0; i < N; ++i) to[i] = A(pack.at[i]);
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i) to[i] = c + i < x.width ? A(from[i]) : A(0);
  }
}

// ---- on the host
template <class T>
FloatRows<T> rows_at(T* data, int64_t batch, int64_t step, int64_t streams, int64_t group, int64_t width) {
  const auto on_16_bytes = [](int64_t bytes) { return bytes % 16 == 0; };
  const int64_t size = sizeof(T);
  const bool packed = on_16_bytes(reinterpret_cast<intptr_t>(data)) && on_16_bytes(width * size) &&
                      on_16_bytes(batch * size) && on_16_bytes(step * size);
  return {data, batch, step, int(streams), int(group), int(width), packed};
}
// x (B,T,heads,width), strided in its first two dimensions.
template <class T>
FloatRows<const T> rows_of(const Tensor& x, int64_t group) {
  return rows_at(x.ptr<T>(), x.stride(0), x.stride(1), x.size(2) / group, group, x.size(3));
}
template <class T>
FloatRows<T> rows_of(Tensor& x, int64_t group) {
  return rows_at(x.ptr<T>(), x.stride(0), x.stride(1), x.size(2) / group, group, x.size(3));
}

// ---- which query sees which key
struct AttentionSizes {
  int T, S, H, K, group, M;  // M = T * group rows of queries in a stream
  __host__ __device__ int visible(int m) const { return m / group + S - T + 1; }
  // Where row m of a stream is in a [B,H,T] tensor.
  __device__ int64_t statistic(int stream, int m) const {
    return (int64_t(stream / K) * H + stream % K * group + m % group) * T + m / group;
  }
};

inline AttentionSizes attention_sizes(int64_t T, int64_t S, int64_t H, int64_t K) {
  LLATTE_CHECK(T * H <= std::numeric_limits<int>::max() / 2 && S <= std::numeric_limits<int>::max() / 2,
               "attention: ", T, " queries of ", H, " heads over ", S, " keys are too many for one sequence");
  return {int(T), int(S), int(H), int(K), int(H / K), int(T * (H / K))};
}

}  // namespace llatte::cuda
