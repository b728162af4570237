// RoPE in the half-split layout: pair p of a head is dims (p, p + P), turned by the angle a of its position:
//   (u, v) -> (u cos a - v sin a,  v cos a + u sin a).
#include "tensor/cpu/parallel.h"
#include "tensor/cpu/simd_math.h"
#include "tensor/kernels.h"

namespace llatte::cpu {
namespace {

void check_range(const Tensor& indices, int64_t low, int64_t end, const char* what) {
  const int32_t* p = indices.data<int32_t>();
  for (int64_t i = 0; i < indices.numel(); ++i) {
    LLATTE_CHECK(low <= p[i] && p[i] < end, "rope: ", what, " ", p[i], " at index ", i, " is outside [", low,
                 ",", end, ") of the cos and sin tables");
  }
}

// Every pair has its own column of the table.
template <class T, class A>
void turn(const T* x, const A* cos, const A* sin, A sign, int64_t P, T* y) {
#pragma omp simd
  for (int64_t p = 0; p < P; ++p) {
    const A u = A(x[p]), v = A(x[P + p]), c = cos[p], s = sign * sin[p];
    store(y + p, u * c - v * s);
    store(y + P + p, v * c + u * s);
  }
}

// Pair p turns with column[p]; -1 passes through untouched, even if its partner is infinite.
template <class T, class A>
void turn_chosen(const T* x, const A* cos, const A* sin, A sign, const int32_t* column, int64_t P, T* y) {
#pragma omp simd
  for (int64_t p = 0; p < P; ++p) {
    const int32_t j = column[p] < 0 ? 0 : column[p];
    const A u = A(x[p]), v = A(x[P + p]), c = cos[j], s = sign * sin[j];
    store(y + p, column[p] < 0 ? u : u * c - v * s);
    store(y + P + p, column[p] < 0 ? v : v * c + u * s);
  }
}

}  // namespace

void rope(const Tensor& x, const Tensor& cos, const Tensor& sin, const Tensor& pos, const Tensor& pairs,
          bool inverse, Tensor& y) {
  const int64_t N = pos.numel(), H = x.size(-2), P = x.size(-1) / 2, F = cos.size(-1);
  check_range(pos, 0, cos.size(0), "position");
  if (pairs.defined()) check_range(pairs, -1, F, "frequency");
  LLATTE_CHECK(pairs.defined() || P <= F, "rope: ", P, " pairs a head, but the cos table has ", F,
               " columns");
  dispatch_float(x.dtype(), "rope", [&]<class T>() {
    using A = acc_t<T>;
    const T* px = x.data<T>();
    T* py = y.data<T>();
    const A *pc = cos.data<A>(), *ps = sin.data<A>(), sign = inverse ? A(-1) : A(1);
    const int32_t *at = pos.data<int32_t>(), *column = pairs.defined() ? pairs.data<int32_t>() : nullptr;
    for_rows(N, H * P * 2, [=](int64_t n) {
      const A *c = pc + at[n] * F, *s = ps + at[n] * F;
      for (int64_t h = 0; h < H; ++h) {
        const int64_t head = (n * H + h) * 2 * P;
        if (column) turn_chosen(px + head, c, s, sign, column + h * P, P, py + head);
        else turn(px + head, c, s, sign, P, py + head);
      }
    });
  });
}

}  // namespace llatte::cpu
