// Products of small tiles that stay in cache, the heart of the attention kernel: C (+)= A B with B and C
// row-major and A read one broadcast number at a time, so A may be transposed for free. Written with the
// compiler's vector type rather than intrinsics: 4 rows x 4 vectors of C live in registers, which is what two
// FMA units need to be busy.
#pragma once
#include <cstdint>
#include <cstring>

namespace llatte::cpu {

template <class A>
struct Lanes {
  typedef A type __attribute__((vector_size(64), aligned(sizeof(A)), may_alias));
};
template <class A>
inline constexpr int64_t kLanes = 64 / sizeof(A);

// Widths of tiles are padded to this many columns, so that rows are whole vectors.
template <class A>
constexpr int64_t padded(int64_t columns) {
  return (columns + kLanes<A> - 1) / kLanes<A> * kLanes<A>;
}

// A matrix seen as a(m, k) = data[m * row + k * col].
template <class A>
struct TileView {
  const A* data;
  int64_t row, col;
};

// Keeps the compiler from loading x again at each use: one load instead of R (measured: 90 -> 107 GF/s a
// core).
template <class Vec>
inline Vec in_register(Vec x) {
#ifdef __AVX512F__
  asm("" : "+v"(x));
#endif
  return x;
}

// R rows x V vectors of C += A B over depth K.
template <int R, int V, class A>
void micro_tile(const TileView<A>& a, const A* b, int64_t ldb, A* c, int64_t ldc, int64_t K, bool add) {
  using Vec = typename Lanes<A>::type;
  Vec sum[R][V];
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < V; ++v)
      sum[r][v] = add ? *reinterpret_cast<const Vec*>(c + r * ldc + v * kLanes<A>) : Vec{};
  for (int64_t k = 0; k < K; ++k) {
    Vec bk[V];
    for (int v = 0; v < V; ++v)
      bk[v] = in_register(*reinterpret_cast<const Vec*>(b + k * ldb + v * kLanes<A>));
    for (int r = 0; r < R; ++r) {
      const A x = a.data[r * a.row + k * a.col];
      for (int v = 0; v < V; ++v) sum[r][v] += x * bk[v];
    }
  }
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < V; ++v) *reinterpret_cast<Vec*>(c + r * ldc + v * kLanes<A>) = sum[r][v];
}

template <int V, class A>
void tile_panel(int64_t M, int64_t K, TileView<A> a, const A* b, int64_t ldb, A* c, int64_t ldc, bool add) {
  int64_t m = 0;
  for (; m + 4 <= M; m += 4)
    micro_tile<4, V>(TileView<A>{a.data + m * a.row, a.row, a.col}, b, ldb, c + m * ldc, ldc, K, add);
  for (; m < M; ++m)
    micro_tile<1, V>(TileView<A>{a.data + m * a.row, a.row, a.col}, b, ldb, c + m * ldc, ldc, K, add);
}

// C[M,N] = A[M,K] B[K,N] (+ C if add). N is a multiple of kLanes.
template <class A>
void tile_matmul(int64_t M, int64_t N, int64_t K, TileView<A> a, const A* b, int64_t ldb, A* c, int64_t ldc,
                 bool add) {
  int64_t n = 0;
  for (; n + 4 * kLanes<A> <= N; n += 4 * kLanes<A>) tile_panel<4>(M, K, a, b + n, ldb, c + n, ldc, add);
  for (; n < N; n += kLanes<A>) tile_panel<1>(M, K, a, b + n, ldb, c + n, ldc, add);
}

}  // namespace llatte::cpu
