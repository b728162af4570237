// RoPE in the half-split layout: pair p of a head is dims (p, p + P), turned by the angle a of its position:
//   (u, v) -> (u cos a - v sin a,  v cos a + u sin a).
// A thread turns a pack of neighbouring pairs: both its packs are read before either is written, so y may be
// x. A position or column outside the tables is reported; its pair passes through.
#include "tensor/cuda/error.h"
#include "tensor/cuda/pack.h"

namespace llatte::cuda {
namespace {

struct Outside {
  Report position, frequency;
};

// Columns of the tables for `count` pairs from p of head h, -1 where nothing turns.
template <int N>
struct Columns {
  int64_t at[N];
};
template <int N>
__device__ Columns<N> columns_of(const int32_t* pairs, int64_t h, int64_t p, int64_t P, int64_t F,
                                 const Outside& outside) {
  Columns<N> c;
#pragma unroll
  for (int j = 0; j < N; ++j) {
    const bool exists = p + j < P;
    const int64_t column = !exists ? -1 : pairs ? pairs[h * P + p + j] : p + j;
    const bool valid = -1 <= column && column < F;
    if (!valid) outside.frequency(column, h * P + p + j, F);
    c.at[j] = valid ? column : -1;
  }
  return c;
}

template <class T, int N>
__global__ void rope_kernel(const T* x, const acc_t<T>* cos, const acc_t<T>* sin, const int32_t* pos,
                            const int32_t* pairs, acc_t<T> sign, int64_t H, int64_t P, int64_t S, int64_t F,
                            T* y, Outside outside) {
  using A = acc_t<T>;
  const int64_t n = blockIdx.x, packs = (P + N - 1) / N, s = pos[n];
  const bool valid = 0 <= s && s < S;
  if (!valid && threadIdx.x == 0) outside.position(s, n, S);
  cos += valid ? s * F : 0, sin += valid ? s * F : 0;
  for (int64_t i = threadIdx.x; i < H * packs; i += blockDim.x) {
    const int64_t h = i / packs, p = i % packs * N;
    const T* head = x + (n * H + h) * 2 * P;
    T* turned = y + (n * H + h) * 2 * P;
    Pack<T, N> u = load<N>(head, p, P), v = load<N>(head + P, p, P);
    const Columns<N> column = columns_of<N>(pairs, h, p, P, F, outside);
#pragma unroll
    for (int j = 0; j < N; ++j) {
      if (column.at[j] < 0 || !valid) continue;
      const A c = cos[column.at[j]], t = sign * sin[column.at[j]], a = A(u.at[j]), b = A(v.at[j]);
      u.at[j] = T(a * c - b * t), v.at[j] = T(b * c + a * t);
    }
    store<N>(turned, p, P, u);
    store<N>(turned + P, p, P, v);
  }
}

}  // namespace

void rope(const Tensor& x, const Tensor& cos, const Tensor& sin, const Tensor& pos, const Tensor& pairs,
          bool inverse, Tensor& y) {
  const int64_t N = pos.numel(), H = x.size(-2), P = x.size(-1) / 2, S = cos.size(0), F = cos.size(-1);
  LLATTE_CHECK(pairs.defined() || P <= F, "rope: ", P, " pairs a head, but the cos table has ", F,
               " columns");
  const Outside outside{
      report("rope: position {} at index {} is outside [0,{}) of the cos and sin tables"),
      report("rope: frequency {} at index {} is outside [-1,{}) of the cos and sin tables")};
  dispatch_float(x.dtype(), "rope", [&]<class T>() {
    using A = acc_t<T>;
    constexpr int W = kPack<T>;
    launch("rope", {blocks_for(N, 1), threads_for_row(H * ((P + W - 1) / W))}, rope_kernel<T, W>, x.data<T>(),
           cos.data<A>(), sin.data<A>(), pos.data<int32_t>(),
           pairs.defined() ? pairs.data<int32_t>() : nullptr, inverse ? A(-1) : A(1), H, P, S, F, y.data<T>(),
           outside);
  });
}

}  // namespace llatte::cuda
