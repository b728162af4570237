// Attention for few queries, as in decoding: the work is reading the keys and values, so the context is cut
// into parts that depend on its length alone, one block each; a second kernel merges what the parts say, in
// their order (arXiv 2205.14135 and its split over keys). Rows of keys and values may be numbers or codes.
// Private to tensor/cuda.
#pragma once
#include "tensor/cuda/attention_softmax.h"

namespace llatte::cuda {

constexpr int kMostParts = 128;
constexpr int kDecodeChunks = 4;  // columns of o in registers: 256 in f32, 128 in f64

// Tokens of one part: whole tiles, no more than kMostParts of them for the whole context.
template <class A>
int tokens_per_part(int S) {
  const int tiles = (S + kSide<A> - 1) / kSide<A>;
  return kSide<A> * ((tiles + kMostParts - 1) / kMostParts);
}

// What a part says of row m of a stream, at index (part * streams + stream) * M + m: o [F] relative to the
// highest score, that score, and the sum of probabilities.
template <class A>
struct Parts {
  A *o, *top, *sum;
  int streams, tokens, count;
};

template <class A, int R, class K, class V>
__global__ void __launch_bounds__(kTileThreads, sizeof(A) == 4 ? 3 : 2)
    attention_part(AttentionSizes z, FloatRows<const A> qs, K ks, V vs, A scale, Parts<A> parts, int tiles) {
  constexpr int NC = kDecodeChunks;
  auto& s = block_shared<AttentionShared<A, R>>();
  const int stream = int(blockIdx.x) / tiles, m0 = int(blockIdx.x) % tiles * 8 * R, part = int(blockIdx.z);
  const int column = int(blockIdx.y) * NC * kSide<A>, begin = part * parts.tokens;
  const int end = min(z.visible(min(m0 + 8 * R, z.M) - 1), begin + parts.tokens);
  SoftmaxState<A, R, NC> state;
  attend(s, z, qs.of(stream), ks.of(stream), vs.of(stream), m0, begin, end, column, scale, state);

  const int64_t first = (int64_t(part) * parts.streams + stream) * z.M;
  A one[R];
#pragma unroll
  for (int r = 0; r < R; ++r) one[r] = 1;
  const int F = vs.width;
  store_rows(FloatRows<A>{parts.o + first * F, 0, F, 1, 1, F, F % kPad<A> == 0}, m0, z.M, column, one,
             state.o);
  if (column > 0 || thread_column() > 0) return;
#pragma unroll
  for (int r = 0; r < R; ++r) {
    const int m = m0 + R * thread_row() + r;
    if (m < z.M) parts.top[first + m] = state.top[r], parts.sum[first + m] = state.sum[r];
  }
}

template <class A>
struct MergeShared {
  A weight[kMostParts];
  A high, total;
};

// o = sum over parts of w o_part / sum of w sum_part, w = exp(top_part - highest top); a block for each row.
// lse may be null.
template <class T, class A>
__global__ void __launch_bounds__(kTileThreads)
    merge_parts(AttentionSizes z, Parts<A> parts, FloatRows<T> os, A* lse) {
  auto& s = block_shared<MergeShared<A>>();
  const int stream = int(blockIdx.x) / z.M, m = int(blockIdx.x) % z.M;
  const int64_t row = int64_t(stream) * z.M + m, next = int64_t(parts.streams) * z.M;
  if (threadIdx.x == 0) {
    s.high = kFloor<A>;
    for (int p = 0; p < parts.count; ++p) {
      const A top = parts.top[p * next + row];
      s.high = top > s.high ? top : s.high;
    }
    s.total = 0;
    for (int p = 0; p < parts.count; ++p) {
      s.weight[p] = exp_of(parts.top[p * next + row] - s.high);
      s.total += s.weight[p] * parts.sum[p * next + row];
    }
    if (lse) lse[z.statistic(stream, m)] = s.high + log_of(s.total);
  }
  __syncthreads();
  T* o = os.of(stream).row(m);
  for (int f = threadIdx.x; f < os.width; f += kTileThreads) {
    A sum = 0;
    for (int p = 0; p < parts.count; ++p) sum += s.weight[p] * parts.o[(p * next + row) * os.width + f];
    o[f] = T(sum / s.total);
  }
}

template <class A, int R, class K, class V>
void launch_parts(const char* name, const AttentionSizes& z, const FloatRows<const A>& q, const K& k,
                  const V& v, A scale, const Parts<A>& parts) {
  const unsigned tiles = blocks_for(z.M, 8 * R), slices = blocks_for(v.width, kDecodeChunks * kSide<A>);
  launch(name,
         {dim3(tiles * unsigned(parts.streams), slices, unsigned(parts.count)), kTileThreads,
          sizeof(AttentionShared<A, R>)},
         attention_part<A, R, K, V>, z, q, k, v, scale, parts, int(tiles));
}

// q and o (B,T,H,..), q in A; lse may be undefined.
template <class T, class A, class K, class V>
void decode(const char* name, const AttentionSizes& z, const Tensor& q, const K& k, const V& v, A scale,
            Tensor& o, A* lse) {
  const int streams = int(q.size(0)) * z.K, tokens = tokens_per_part<A>(z.S);
  const int count = (z.S + tokens - 1) / tokens;
  const int64_t rows = int64_t(count) * streams * z.M;
  Tensor sums = Tensor::empty(Shape{rows, v.width}, dtype_of<A>(), Device::cuda);
  Tensor statistics = Tensor::empty(Shape{2, rows}, dtype_of<A>(), Device::cuda);
  A* top = statistics.data<A>();
  const Parts<A> parts{sums.data<A>(), top, top + rows, streams, tokens, count};
  const auto qs = rows_of<A>(q, z.group);
  if (z.M <= 8) launch_parts<A, 1>(name, z, qs, k, v, scale, parts);
  else if (z.M <= 16) launch_parts<A, 2>(name, z, qs, k, v, scale, parts);
  else launch_parts<A, 4>(name, z, qs, k, v, scale, parts);
  launch("merge_parts", {unsigned(streams * z.M), kTileThreads, sizeof(MergeShared<A>)}, merge_parts<T, A>, z,
         parts, rows_of<T>(o, z.group), lse);
}

}  // namespace llatte::cuda
