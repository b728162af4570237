// RoPE in the half-split layout: pair p of a head is dims (p, p + P), turned by the angle a of its position:
//   (u, v) -> (u cos a - v sin a,  v cos a + u sin a).
#include <algorithm>
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

constexpr int64_t kLanes = 16;
using Floats = float __attribute__((vector_size(kLanes * sizeof(float)), aligned(alignof(float))));
using Ints = int32_t __attribute__((vector_size(kLanes * sizeof(int32_t)), aligned(alignof(int32_t))));

// table[j] of F columns in registers: choosing from them is a shuffle, a third of the time of a gather.
template <int F>
Floats pick(const float* table, Ints j) {
  const auto part = [&](int at) { return reinterpret_cast<const Floats*>(table)[at]; };
  const Floats low = __builtin_shuffle(part(0), part(1), j);
  if constexpr (F == 64) return (j & 32) != 0 ? __builtin_shuffle(part(2), part(3), j) : low;
  return low;
}

// c[p] = table[column[p]]; anything where the column is -1.
template <class A>
void choose(const A* table, int64_t F, const int32_t* column, int64_t n, A* c) {
  int64_t p = 0;
  if constexpr (std::is_same_v<A, float>) {
    const int64_t whole = F == 32 || F == 64 ? n / kLanes * kLanes : 0;  // heads of 64 or 128 dims
    for (; p < whole; p += kLanes) {
      const Ints j = *reinterpret_cast<const Ints*>(column + p);
      *reinterpret_cast<Floats*>(c + p) = F == 32 ? pick<32>(table, j) : pick<64>(table, j);
    }
  }
  for (; p < n; ++p) c[p] = table[column[p] < 0 ? 0 : column[p]];
}

// Pair p turns with column[p]; -1 passes through untouched, even if its partner is infinite.
template <class T, class A>
void turn_chosen(const T* x, const A* cos, const A* sin, int64_t F, A sign, const int32_t* column, int64_t P,
                 T* y) {
  constexpr int64_t kChunk = 64;
  A c[kChunk], s[kChunk];
  for (int64_t begin = 0; begin < P; begin += kChunk, column += kChunk, x += kChunk, y += kChunk) {
    const int64_t n = std::min(kChunk, P - begin);
    choose(cos, F, column, n, c);
    choose(sin, F, column, n, s);
#pragma omp simd
    for (int64_t p = 0; p < n; ++p) {
      const A u = A(x[p]), v = A(x[P + p]), t = sign * s[p];
      store(y + p, column[p] < 0 ? u : u * c[p] - v * t);
      store(y + P + p, column[p] < 0 ? v : v * c[p] + u * t);
    }
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
        if (column) turn_chosen(px + head, c, s, F, sign, column + h * P, P, py + head);
        else turn(px + head, c, s, sign, P, py + head);
      }
    });
  });
}

}  // namespace llatte::cpu
