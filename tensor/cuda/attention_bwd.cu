// The gradients of causal softmax attention (tensor/kernels.h; the loops are in attention_tile.h).
// Probabilities are made again from lse, a tile at a time: nothing of size [T,S].
//   delta = sum_F(dO O)       P = exp(scale Q K^T - lse)      dS = P (dO V^T - delta)
//   dV = P^T dO      dK = scale dS^T Q      a block for each tile of keys, over the queries of all heads of
//   the group dQ = scale dS K                         a block for each tile of queries, over the keys
// So every sum is made by one block in a fixed order, at the price of making P and dO V^T twice.
#include "tensor/cuda/attention_tile.h"
#include "tensor/cuda/device_math.h"

namespace llatte::cuda {
namespace {

template <class A>
constexpr int kR = kSide<A> / 8;  // tiles of scores are square

template <class A>
struct BackwardShared : AttentionShared<A, kR<A>> {
  A lse[kSide<A>], delta[kSide<A>];
};

template <class T>
struct Backward {
  using A = acc_t<T>;
  AttentionSizes z;
  FloatRows<const T> q, k, v, dout;
  const A *lse, *delta;  // [B,H,T]
  A scale;
  int streams;

  __device__ Backward of(int stream) const {
    Backward r = *this;
    r.q = q.of(stream), r.k = k.of(stream), r.v = v.of(stream), r.dout = dout.of(stream);
    return r;
  }
};

// delta [B,H,T]: a warp for each row of o and dout, in their order (b, t, h).
template <class T>
__global__ void attention_delta(const T* dout, const T* o, int64_t rows, int H, int queries, int F,
                                acc_t<T>* delta) {
  const int64_t row = (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) / 32;
  if (row >= rows) return;  // whole warps
  acc_t<T> sum = 0;
  for (int f = int(threadIdx.x) % 32; f < F; f += 32)
    sum += acc_t<T>(dout[row * F + f]) * acc_t<T>(o[row * F + f]);
  sum = warp_sum(sum);
  const int64_t bt = row / H, h = row % H;
  if (threadIdx.x % 32 == 0) delta[(bt / queries * H + h) * queries + bt % queries] = sum;
}

// The statistics of queries m0 ..; rows beyond the last get lse = inf, so that their P is 0.
template <class A>
__device__ void load_statistics(BackwardShared<A>& s, const AttentionSizes& z, const A* lse, const A* delta,
                                int stream, int m0) {
  for (int i = threadIdx.x; i < kSide<A>; i += kTileThreads) {
    const bool inside = m0 + i < z.M;
    const int64_t at = inside ? z.statistic(stream, m0 + i) : 0;
    s.lse[i] = inside ? lse[at] : std::numeric_limits<A>::infinity();
    s.delta[i] = inside ? delta[at] : A(0);
    s.seen[i] = min(z.visible(m0 + i), z.S);
  }
}

// Scores become probabilities; those of keys that a query does not see are 0.
template <class A>
__device__ void probabilities(const BackwardShared<A>& s, int k0, A scale, A (&p)[kR<A>][kC<A>]) {
#pragma unroll
  for (int r = 0; r < kR<A>; ++r) {
    const int i = kR<A> * thread_row() + r, seen = s.seen[i];
#pragma unroll
    for (int c = 0; c < kC<A>; ++c)
      p[r][c] = k0 + kC<A> * thread_column() + c < seen ? exp_of(p[r][c] * scale - s.lse[i]) : A(0);
  }
}

// dk and dv of a tile of keys; blockIdx.y: the slice of their columns.
template <class T, int NC>
__global__ void __launch_bounds__(kTileThreads, 2)
    attention_backward_keys(Backward<T> all, FloatRows<T> dks, FloatRows<T> dvs) {
  using A = acc_t<T>;
  constexpr int R = kR<A>, C = kC<A>;
  auto& s = block_shared<BackwardShared<A>>();
  const int stream = int(blockIdx.x) % all.streams, k0 = int(blockIdx.x) / all.streams * kSide<A>;
  const int column = int(blockIdx.y) * NC * kSide<A>;
  const Backward<T> b = all.of(stream);
  const AttentionSizes& z = b.z;
  const int keys = min(kSide<A>, z.S - k0), i0 = R * thread_row(), j0 = C * thread_column();
  A dk[NC][R][C] = {}, dv[NC][R][C] = {};
  for (int m0 = max(0, k0 - (z.S - z.T)) * z.group; m0 < z.M; m0 += kSide<A>) {
    const int rows = min(kSide<A>, z.M - m0);
    A x[R][C];
    load_statistics(s, z, b.lse, b.delta, stream, m0);
    products_of_rows(s, b.q, m0, rows, b.k, k0, keys, x);
    probabilities(s, k0, b.scale, x);
    store_tile(x, s);
    add_weighted_rows(s, b.dout, m0, rows, column, dv);
    if (column >= b.q.width) continue;  // this slice has columns of dv only
    products_of_rows(s, b.dout, m0, rows, b.v, k0, keys, x);
#pragma unroll
    for (int r = 0; r < R; ++r)
#pragma unroll
      for (int c = 0; c < C; ++c) s.p[i0 + r][j0 + c] *= x[r][c] - s.delta[i0 + r];
    add_weighted_rows(s, b.q, m0, rows, column, dk);
  }
  A scales[R], ones[R];
#pragma unroll
  for (int r = 0; r < R; ++r) scales[r] = b.scale, ones[r] = 1;
  store_rows(dks.of(stream), k0, z.S, column, scales, dk);
  store_rows(dvs.of(stream), k0, z.S, column, ones, dv);
}

// dq of a tile of queries.
template <class T, int NC>
__global__ void __launch_bounds__(kTileThreads, 2)
    attention_backward_queries(Backward<T> all, FloatRows<T> dqs) {
  using A = acc_t<T>;
  constexpr int R = kR<A>, C = kC<A>;
  auto& s = block_shared<BackwardShared<A>>();
  // Tiles of late queries see the most keys: they go first.
  const int stream = int(blockIdx.x) % all.streams, tile = int((gridDim.x - 1 - blockIdx.x) / all.streams);
  const int m0 = tile * kSide<A>, column = int(blockIdx.y) * NC * kSide<A>;
  const Backward<T> b = all.of(stream);
  const AttentionSizes& z = b.z;
  const int rows = min(kSide<A>, z.M - m0), end = z.visible(m0 + rows - 1);
  load_statistics(s, z, b.lse, b.delta, stream, m0);
  A dq[NC][R][C] = {};
  for (int k0 = 0; k0 < end; k0 += kSide<A>) {
    const int keys = min(kSide<A>, end - k0);
    A p[R][C], ds[R][C];
    products_of_rows(s, b.q, m0, rows, b.k, k0, keys, p);
    probabilities(s, k0, b.scale, p);
    products_of_rows(s, b.dout, m0, rows, b.v, k0, keys, ds);
#pragma unroll
    for (int r = 0; r < R; ++r)
#pragma unroll
      for (int c = 0; c < C; ++c) ds[r][c] = p[r][c] * (ds[r][c] - s.delta[R * thread_row() + r]);
    store_tile_transposed(ds, s);
    add_weighted_rows(s, b.k, k0, keys, column, dq);
  }
  A scales[R];
#pragma unroll
  for (int r = 0; r < R; ++r) scales[r] = b.scale;
  store_rows(dqs.of(stream), m0, z.M, column, scales, dq);
}

template <class T, int NC>
void launch_backward(const Backward<T>& b, const FloatRows<T>& dq, const FloatRows<T>& dk,
                     const FloatRows<T>& dv) {
  using A = acc_t<T>;
  constexpr int side = kSide<A>;
  const unsigned streams = unsigned(b.streams), E = blocks_for(dk.width, NC * side);
  launch("attention_backward_keys",
         {dim3(blocks_for(b.z.S, side) * streams, std::max(E, blocks_for(dv.width, NC * side))), kTileThreads,
          sizeof(BackwardShared<A>)},
         attention_backward_keys<T, NC>, b, dk, dv);
  launch("attention_backward_queries",
         {dim3(blocks_for(b.z.M, side) * streams, E), kTileThreads, sizeof(BackwardShared<A>)},
         attention_backward_queries<T, NC>, b, dq);
}

template <class T>
void backward(const Tensor& dout, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& o,
              const Tensor& lse, double scale, Tensor& dq, Tensor& dk, Tensor& dv) {
  using A = acc_t<T>;
  const AttentionSizes z = attention_sizes(q.size(1), k.size(1), q.size(2), k.size(2));
  const int64_t rows = int64_t(q.size(0)) * z.T * z.H, F = v.size(3);
  Tensor delta = Tensor::empty(lse.shape(), lse.dtype(), lse.device());
  launch("attention_delta", {blocks_for(rows, kTileThreads / 32), kTileThreads}, attention_delta<T>,
         dout.data<T>(), o.data<T>(), rows, z.H, z.T, int(F), delta.data<A>());
  const Backward<T> b{z,
                      rows_of<T>(q, z.group),
                      rows_of<T>(k, 1),
                      rows_of<T>(v, 1),
                      rows_of<T>(dout, z.group),
                      lse.data<A>(),
                      delta.data<A>(),
                      A(scale),
                      int(q.size(0)) * z.K};
  const auto dqs = rows_of<T>(dq, z.group), dks = rows_of<T>(dk, 1), dvs = rows_of<T>(dv, 1);
  if (std::max(q.size(3), F) <= kSide<A>) launch_backward<T, 1>(b, dqs, dks, dvs);
  else launch_backward<T, 2>(b, dqs, dks, dvs);
}

}  // namespace

void attention_bwd(const Tensor& dout, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& o,
                   const Tensor& lse, double scale, Tensor& dq, Tensor& dk, Tensor& dv) {
  if (q.numel() == 0) {  // no query: keys and values have no influence
    dk.zero();
    dv.zero();
    return;
  }
  dispatch_float(q.dtype(), "attention",
                 [&]<class T>() { backward<T>(dout, q, k, v, o, lse, scale, dq, dk, dv); });
}

}  // namespace llatte::cuda
