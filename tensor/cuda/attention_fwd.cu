// Causal softmax attention, forward (tensor/kernels.h; the loops are in attention_tile.h). A block owns a
// tile of queries of one stream, goes through the keys they may see, a tile at a time, and keeps o in
// registers: no [T,S] tensor. Few queries, as in decoding, are shared out by keys instead
// (attention_decode.h).
#include "tensor/cuda/attention_decode.h"

namespace llatte::cuda {
namespace {

template <class T, int R, int NC>
__global__ void __launch_bounds__(kTileThreads, NC == 1 ? 3 : 2)
    attention_forward(AttentionSizes z, FloatRows<const T> qs, FloatRows<const T> ks, FloatRows<const T> vs,
                      acc_t<T> scale, FloatRows<T> os, acc_t<T>* lse, int streams) {
  using A = acc_t<T>;
  auto& s = block_shared<AttentionShared<A, R>>();
  // Tiles of late queries see the most keys: they go first.
  const int stream = int(blockIdx.x) % streams, tile = int((gridDim.x - 1 - blockIdx.x) / streams);
  const int m0 = tile * 8 * R, column = int(blockIdx.y) * NC * kSide<A>;
  const int end = z.visible(min(m0 + 8 * R, z.M) - 1);
  SoftmaxState<A, R, NC> state;
  attend(s, z, qs.of(stream), ks.of(stream), vs.of(stream), m0, 0, end, column, scale, state);

  A factor[R];
#pragma unroll
  for (int r = 0; r < R; ++r) factor[r] = 1 / state.sum[r];
  store_rows(os.of(stream), m0, z.M, column, factor, state.o);
  if (column > 0 || thread_column() > 0) return;
#pragma unroll
  for (int r = 0; r < R; ++r) {
    const int m = m0 + R * thread_row() + r;
    if (m < z.M) lse[z.statistic(stream, m)] = state.top[r] + log_of(state.sum[r]);
  }
}

template <class T, int NC>
void forward_tiles(const AttentionSizes& z, const Tensor& q, const Tensor& k, const Tensor& v, double scale,
                   Tensor& o, Tensor& lse) {
  using A = acc_t<T>;
  constexpr int R = kSide<A> / 8;
  const int streams = int(q.size(0)) * z.K;
  const unsigned tiles = blocks_for(z.M, 8 * R), slices = blocks_for(v.size(3), NC * kSide<A>);
  launch("attention_forward",
         {dim3(tiles * unsigned(streams), slices), kTileThreads, sizeof(AttentionShared<A, R>)},
         attention_forward<T, R, NC>, z, rows_of<T>(q, z.group), rows_of<T>(k, 1), rows_of<T>(v, 1), A(scale),
         rows_of<T>(o, z.group), lse.data<A>(), streams);
}

constexpr int kFewRows = 32;  // of queries in a stream: up to here its keys are shared out among blocks

template <class T>
void forward(const Tensor& q, const Tensor& k, const Tensor& v, double scale, Tensor& o, Tensor& lse) {
  using A = acc_t<T>;
  const AttentionSizes z = attention_sizes(q.size(1), k.size(1), q.size(2), k.size(2));
  if (z.M <= kFewRows)
    return decode<T, A>("attention_part", z, q.to(dtype_of<A>()), rows_of<T>(k, 1), rows_of<T>(v, 1),
                        A(scale), o, lse.data<A>());
  if (v.size(3) <= kSide<A>) forward_tiles<T, 1>(z, q, k, v, scale, o, lse);
  else forward_tiles<T, 2>(z, q, k, v, scale, o, lse);
}

}  // namespace

void attention_fwd(const Tensor& q, const Tensor& k, const Tensor& v, double scale, Tensor& o, Tensor& lse) {
  if (q.numel() == 0) return;
  dispatch_float(q.dtype(), "attention", [&]<class T>() { forward<T>(q, k, v, scale, o, lse); });
}

}  // namespace llatte::cuda
