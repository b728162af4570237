// The tile loops of attention, forward, backward and decoding, in one place. All is one product of tiles,
//   C[8R, 16C] += a^T b,   a [depth, 8R] and b [depth, 16C] in shared memory,
// by 128 threads, of which thread (y, x) of 8 x 16 owns rows R y + [0,R) and columns C x + [0,C) of C in
// registers: R + C numbers are read for R C multiplications. Tensor cores would go into multiply().
// Widths are free: products over E or F go through panels of kDepth columns, results through chunks of kSide
// columns, NC of them in registers; wider results are made by several blocks (slices).
// Private to tensor/cuda.
#pragma once
#include "tensor/cuda/attention_rows.h"
#include "tensor/cuda/cache_rows.h"

namespace llatte::cuda {

constexpr int kTileThreads = 128, kThreadsAcross = 16;
constexpr int kDepth = 32;  // depth of the panels that go through shared memory
template <class A>
constexpr int kSide = sizeof(A) == 4 ? 64 : 32;  // keys of a tile, and columns of a chunk of results
template <class A>
constexpr int kC = kSide<A> / kThreadsAcross;  // columns a thread owns: 16 bytes
template <class A>
constexpr int kPad = 16 / sizeof(A);  // keeps rows of panels 16-byte aligned, and writes to columns apart

__device__ inline int thread_row() { return int(threadIdx.x) / kThreadsAcross; }
__device__ inline int thread_column() { return int(threadIdx.x) % kThreadsAcross; }

// ---- panels: to[c][i] = x[first + i][c0 + c] and to[i][c] = x[first + i][c0 + c], zeros where x ends.
template <int W, class A, int LD, class T>
__device__ void load_transposed(const FloatRows<T>& x, int first, int rows, int c0, A (&to)[kDepth][LD]) {
  constexpr int N = 16 / sizeof(T);
#pragma unroll 2
  for (int i = threadIdx.x; i < W * (kDepth / N); i += kTileThreads) {
    const int row = i % W, c = i / W * N;  // a warp writes side by side
    if (c0 + c >= x.width) break;
    A pack[N] = {};
    if (row < rows) load_pack(x, first + row, c0 + c, pack);
#pragma unroll
    for (int j = 0; j < N; ++j) to[c + j][row] = pack[j];
  }
}
template <int W, class A, int LD, int Bits>
__device__ void load_transposed(const CodeRows<Bits>& x, int first, int rows, int c0, A (&to)[kDepth][LD]) {
  const int c = int(threadIdx.x) % kDepth;
  if (c0 + c >= x.width) return;
  const auto column = x.column(c0 + c);
#pragma unroll 2
  for (int i = int(threadIdx.x) / kDepth; i < W; i += kTileThreads / kDepth)
    to[c][i] = i < rows ? x.template at<A>(first + i, column) : A(0);
}

template <class A, int LD, class T>
__device__ void load_natural(const FloatRows<T>& x, int first, int rows, int c0, A (&to)[kDepth][LD]) {
  constexpr int N = 16 / sizeof(T), packs = kSide<A> / N;
#pragma unroll 2
  for (int i = threadIdx.x; i < rows * packs; i += kTileThreads) {
    const int row = i / packs, c = i % packs * N;
    A pack[N];
    load_pack(x, first + row, c0 + c, pack);
#pragma unroll
    for (int j = 0; j < N; ++j) to[row][c + j] = pack[j];
  }
}
template <class A, int LD, int Bits>
__device__ void load_natural(const CodeRows<Bits>& x, int first, int rows, int c0, A (&to)[kDepth][LD]) {
  const int c = int(threadIdx.x) % kSide<A>;
  const bool inside = c0 + c < x.width;
  const auto column = x.column(inside ? c0 + c : 0);
#pragma unroll 2
  for (int i = int(threadIdx.x) / kSide<A>; i < rows; i += kTileThreads / kSide<A>)
    to[i][c] = inside ? x.template at<A>(first + i, column) : A(0);
}

// ---- the product
template <int N, class A>
__device__ void load_fragment(const A* from, A (&to)[N]) {
  constexpr int V = N < kPad<A> ? N : kPad<A>;
#pragma unroll
  for (int i = 0; i < N; i += V) {
    const auto pack = *reinterpret_cast<const Pack<A, V>*>(from + i);
#pragma unroll
    for (int j = 0; j < V; ++j) to[i + j] = pack.at[j];
  }
}

// sum[r][c] += a[k][R y + r] b[k][C x + c] over k in [0, depth); a begins at row `first`.
template <int R, int C, class A, int DA, int LA, int DB, int LB>
__device__ void multiply(const A (&a)[DA][LA], int first, const A (&b)[DB][LB], int depth, A (&sum)[R][C]) {
  const int i = R * thread_row(), j = C * thread_column();
#pragma unroll 4
  for (int k = 0; k < depth; ++k) {
    A x[R], y[C];
    load_fragment(&a[first + k][i], x);
    load_fragment(&b[k][j], y);
#pragma unroll
    for (int r = 0; r < R; ++r)
#pragma unroll
      for (int c = 0; c < C; ++c) sum[r][c] += x[r] * y[c];
  }
}

// What a block shares. left and right: the panels; p: a tile of probabilities, or of their gradients.
template <class A, int R>
struct AttentionShared {
  alignas(16) A left[kDepth][8 * R + kPad<A>];
  alignas(16) A right[kDepth][kSide<A> + kPad<A>];
  alignas(16) A p[kSide<A>][8 * R + kPad<A>];
  int seen[8 * R];  // keys that each row of the tile may see
};

// sum[r][c] = <row m0 + R y + r of x, row k0 + C x + c of y>.
template <int R, int C, class A, class X, class Y>
__device__ void products_of_rows(AttentionShared<A, R>& s, const X& x, int m0, int m_rows, const Y& y, int k0,
                                 int k_rows, A (&sum)[R][C]) {
#pragma unroll
  for (int r = 0; r < R; ++r)
#pragma unroll
    for (int c = 0; c < C; ++c) sum[r][c] = 0;
  for (int e = 0; e < x.width; e += kDepth) {
    load_transposed<8 * R>(x, m0, m_rows, e, s.left);
    load_transposed<kSide<A>>(y, k0, k_rows, e, s.right);
    __syncthreads();
    multiply(s.left, 0, s.right, min(kDepth, x.width - e), sum);
    __syncthreads();
  }
}

// sum[n][r][c] += sum over i < rows of s.p[i][R y + r] x[first + i][column + n kSide + C x + c].
template <int NC, int R, int C, class A, class X>
__device__ void add_weighted_rows(AttentionShared<A, R>& s, const X& x, int first, int rows, int column,
                                  A (&sum)[NC][R][C]) {
#pragma unroll
  for (int n = 0; n < NC; ++n) {
    const int c0 = column + n * kSide<A>;
    if (c0 >= x.width) break;  // the same for all threads
    for (int d = 0; d < rows; d += kDepth) {
      const int depth = min(kDepth, rows - d);
      load_natural(x, first + d, depth, c0, s.right);
      __syncthreads();
      multiply(s.p, d, s.right, depth, sum[n]);
      __syncthreads();
    }
  }
}

// s.p[C x + c][R y + r] = tile[r][c]. Whoever reads s.p waits in between.
template <int R, int C, class A>
__device__ void store_tile_transposed(const A (&tile)[R][C], AttentionShared<A, R>& s) {
#pragma unroll
  for (int c = 0; c < C; ++c)
#pragma unroll
    for (int r = 0; r < R; ++r) s.p[C * thread_column() + c][R * thread_row() + r] = tile[r][c];
}

// s.p[R y + r][C x + c] = tile[r][c].
template <int R, int C, class A, class S>
__device__ void store_tile(const A (&tile)[R][C], S& s) {
#pragma unroll
  for (int r = 0; r < R; ++r)
#pragma unroll
    for (int c = 0; c < C; ++c) s.p[R * thread_row() + r][C * thread_column() + c] = tile[r][c];
}

// Row m0 + R y + r of y, columns column + n kSide + C x + c: sum times factor[r].
template <int NC, int R, int C, class A, class T>
__device__ void store_rows(const FloatRows<T>& y, int m0, int M, int column, const A (&factor)[R],
                           const A (&sum)[NC][R][C]) {
#pragma unroll
  for (int r = 0; r < R; ++r) {
    const int m = m0 + R * thread_row() + r;
    if (m >= M) continue;
    T* row = y.row(m);
#pragma unroll
    for (int n = 0; n < NC; ++n) {
      const int f = column + n * kSide<A> + C * thread_column();
      Pack<T, C> pack;
#pragma unroll
      for (int c = 0; c < C; ++c) pack.at[c] = T(sum[n][r][c] * factor[r]);
      if (y.packed && f + C <= y.width) *reinterpret_cast<Pack<T, C>*>(row + f) = pack;
      else
        for (int c = 0; c < C; ++c)
          if (f + c < y.width) row[f + c] = pack.at[c];
    }
  }
}

}  // namespace llatte::cuda
