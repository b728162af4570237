// Causal softmax attention, tiled with an online softmax (FlashAttention, arXiv 2205.14135): no [T,S] tensor,
// forward or backward. 64 queries of a head sit side by side in vector lanes; a tile of scores is kept as
// S^T, a row per key and a column per query, so the running maximum and sum are vertical vector operations
// and only q and o are ever transposed.
//   forward    S^T = K Q^T     P^T = exp(S^T - m)     O^T = V^T P^T                       (per tile, rescaled
//   as m grows) backward   P^T = exp(S^T - lse)     dP^T = V dO^T     dS^T = P^T (dP^T - delta),  delta =
//   sum_F(dO O)
//              dV += P^T dO     dK += dS^T Q     dQ^T += K^T dS^T
// Query heads of a group share k and v without copies; their dk and dv are added in head order, so results
// don't depend on the number of threads.
#include <algorithm>
#include <cmath>
#include <limits>
#include "tensor/cpu/simd_math.h"
#include "tensor/cpu/tile.h"
#include "tensor/kernels.h"

namespace llatte::cpu {
namespace {

constexpr int64_t kTile = 64;  // queries and keys per tile: two 64 x 64 f32 tiles fit the first-level cache

struct Sizes {
  int64_t B, T, S, H, K, E, F;
  int64_t kv_head(int64_t h) const { return h / (H / K); }
  int64_t visible(int64_t t) const { return t + S - T + 1; }  // keys that query t may see
};

Sizes sizes_of(const Tensor& q, const Tensor& k, const Tensor& v) {
  return {q.size(0), q.size(1), k.size(1), q.size(2), k.size(2), q.size(3), v.size(3)};
}

// One head of a (B,T,heads,width) tensor: rows `row` apart. Strided in dimensions 0 and 1.
template <class T>
struct Head {
  T* data;
  int64_t row, width;
};
template <class T>
Head<const T> head_of(const Tensor& x, int64_t b, int64_t h) {
  return {x.ptr<T>() + b * x.stride(0) + h * x.stride(2), x.stride(1), x.size(3)};
}
template <class T>
Head<T> head_of(Tensor& x, int64_t b, int64_t h) {
  return {x.ptr<T>() + b * x.stride(0) + h * x.stride(2), x.stride(1), x.size(3)};
}

// Per-thread tiles: one block from the allocator, handed out in 64-byte steps.
template <class A>
class Scratch {
 public:
  explicit Scratch(int64_t elements) : block_(Tensor::empty({elements}, dtype_of<A>())) {}
  A* take(int64_t elements) {
    A* p = block_.template data<A>() + used_;
    used_ += padded<A>(elements);
    LLATTE_CHECK(used_ <= block_.numel(), "attention: scratch of ", block_.numel(), " elements is too small");
    return p;
  }

 private:
  Tensor block_;
  int64_t used_ = 0;
};

// n rows of a head as a dense tile [n, ld], zero beyond its width.
template <class A, class T>
void load_rows(Head<const T> x, int64_t first, int64_t n, A* tile, int64_t ld) {
  for (int64_t i = 0; i < n; ++i) {
    const T* from = x.data + (first + i) * x.row;
    A* to = tile + i * ld;
#pragma omp simd
    for (int64_t e = 0; e < x.width; ++e) to[e] = A(from[e]);
    for (int64_t e = x.width; e < ld; ++e) to[e] = 0;
  }
}

// n rows of a head, transposed and scaled: tile [width, kTile], zero in the lanes beyond n.
template <class A, class T>
void load_transposed(Head<const T> x, int64_t first, int64_t n, A factor, A* tile) {
  if (n < kTile) std::fill(tile, tile + x.width * kTile, A(0));
  for (int64_t i = 0; i < n; ++i)
    for (int64_t e = 0; e < x.width; ++e) tile[e * kTile + i] = A(x.data[(first + i) * x.row + e]) * factor;
}

// tile [width, kTile] -> n rows of a head, lane i times factor[i].
template <class A, class T>
void store_transposed(const A* tile, const A* factor, int64_t first, int64_t n, Head<T> x) {
  for (int64_t i = 0; i < n; ++i)
    for (int64_t e = 0; e < x.width; ++e)
      x.data[(first + i) * x.row + e] = T(tile[e * kTile + i] * factor[i]);
}

// Scores of keys a query may not see yet, overwritten with `hidden`. Key s is seen by lanes >= s - first
// visible.
template <class A>
void mask(A* st, const Sizes& z, int64_t q0, int64_t k0, int64_t keys, A hidden) {
  for (int64_t j = 0; j < keys; ++j) {
    const int64_t blind = std::min(kTile, k0 + j - (z.visible(q0) - 1));
    for (int64_t i = 0; i < blind; ++i) st[j * kTile + i] = hidden;
  }
}

// ---- forward: one head, one tile of queries
template <class A>
struct ForwardTiles {
  A *qt, *k, *v, *st, *ot, *top, *sum, *shrink;
  int64_t lde, ldf;
  static int64_t elements(const Sizes& z) {
    return kTile * (z.E + padded<A>(z.E) + 2 * padded<A>(z.F) + kTile + 3) + 8 * kLanes<A>;
  }
  ForwardTiles(Scratch<A>& s, const Sizes& z) : lde(padded<A>(z.E)), ldf(padded<A>(z.F)) {
    qt = s.take(z.E * kTile), k = s.take(kTile * lde), v = s.take(kTile * ldf), st = s.take(kTile * kTile);
    ot = s.take(z.F * kTile), top = s.take(kTile), sum = s.take(kTile), shrink = s.take(kTile);
  }
};

// Scores become probabilities relative to the new running maximum; shrink = exp(old maximum - new).
template <class A>
void online_softmax(const ForwardTiles<A>& t, int64_t keys) {
  alignas(64) A high[kTile];
  std::copy(t.top, t.top + kTile, high);
  for (int64_t j = 0; j < keys; ++j)
#pragma omp simd
    for (int64_t i = 0; i < kTile; ++i) high[i] = std::max(high[i], t.st[j * kTile + i]);
#pragma omp simd
  for (int64_t i = 0; i < kTile; ++i) {
    t.shrink[i] = simd_exp(t.top[i] - high[i]);
    t.sum[i] *= t.shrink[i];
    t.top[i] = high[i];
  }
  for (int64_t j = 0; j < keys; ++j)
#pragma omp simd
    for (int64_t i = 0; i < kTile; ++i) {
      const A p = simd_exp(t.st[j * kTile + i] - high[i]);
      t.st[j * kTile + i] = p;
      t.sum[i] += p;
    }
}

template <class T, class A>
void forward_tile(const Sizes& z, const ForwardTiles<A>& t, Head<const T> q, Head<const T> k, Head<const T> v,
                  int64_t q0, A scale, Head<T> o, A* lse) {
  const int64_t n = std::min(kTile, z.T - q0), seen = z.visible(q0 + n - 1);
  load_transposed(q, q0, n, scale, t.qt);
  std::fill(t.ot, t.ot + z.F * kTile, A(0));
  std::fill(t.sum, t.sum + kTile, A(0));
  std::fill(t.top, t.top + kTile, -std::numeric_limits<A>::infinity());
  for (int64_t k0 = 0; k0 < seen; k0 += kTile) {
    const int64_t keys = std::min(kTile, seen - k0);
    load_rows(k, k0, keys, t.k, t.lde);
    load_rows(v, k0, keys, t.v, t.ldf);
    tile_matmul(keys, kTile, z.E, TileView<A>{t.k, t.lde, 1}, t.qt, kTile, t.st, kTile, false);
    mask(t.st, z, q0, k0, keys, -std::numeric_limits<A>::infinity());
    online_softmax(t, keys);
    for (int64_t f = 0; f < z.F; ++f)
#pragma omp simd
      for (int64_t i = 0; i < kTile; ++i) t.ot[f * kTile + i] *= t.shrink[i];
    tile_matmul(z.F, kTile, keys, TileView<A>{t.v, 1, t.ldf}, t.st, kTile, t.ot, kTile, true);
  }
  for (int64_t i = 0; i < kTile; ++i) t.shrink[i] = 1 / t.sum[i];
  store_transposed(t.ot, t.shrink, q0, n, o);
  for (int64_t i = 0; i < n; ++i) lse[q0 + i] = t.top[i] + std::log(t.sum[i]);
}

template <class T>
void forward_tiles(const Sizes& z, const Tensor& q, const Tensor& k, const Tensor& v, double scale, Tensor& o,
                   Tensor& lse) {
  using A = acc_t<T>;
  const int64_t tiles = (z.T + kTile - 1) / kTile;
#pragma omp parallel if (z.B * z.H * tiles > 1)
  {
    Scratch<A> scratch(ForwardTiles<A>::elements(z));
    const ForwardTiles<A> t(scratch, z);
#pragma omp for schedule(dynamic)
    for (int64_t item = 0; item < z.B * z.H * tiles; ++item) {
      const int64_t bh = item / tiles, b = bh / z.H, h = bh % z.H, kv = z.kv_head(h);
      const int64_t q0 = (tiles - 1 - item % tiles) * kTile;  // long rows first: they balance better
      forward_tile<T, A>(z, t, head_of<T>(q, b, h), head_of<T>(k, b, kv), head_of<T>(v, b, kv), q0, A(scale),
                         head_of<T>(o, b, h), lse.data<A>() + bh * z.T);
    }
  }
}

// ---- decoding: few queries, where tiles of 64 would be mostly empty. One query of one head over its keys; p
// is [S].
template <class T, class A>
void forward_row(Head<const T> k, Head<const T> v, const T* q, int64_t seen, A scale, A* p, A* sums, T* o,
                 A* lse) {
  A top = -std::numeric_limits<A>::infinity(), total = 0;
  for (int64_t s = 0; s < seen; ++s) {
    const T* ks = k.data + s * k.row;
    A dot = 0;
#pragma omp simd reduction(+ : dot)
    for (int64_t e = 0; e < k.width; ++e) dot += A(q[e]) * A(ks[e]);
    p[s] = dot * scale;
    top = std::max(top, p[s]);
  }
#pragma omp simd reduction(+ : total)
  for (int64_t s = 0; s < seen; ++s) {
    p[s] = simd_exp(p[s] - top);
    total += p[s];
  }
  std::fill(sums, sums + v.width, A(0));
  for (int64_t s = 0; s < seen; ++s) {
    const T* vs = v.data + s * v.row;
#pragma omp simd
    for (int64_t f = 0; f < v.width; ++f) sums[f] += p[s] * A(vs[f]);
  }
  for (int64_t f = 0; f < v.width; ++f) o[f] = T(sums[f] / total);
  *lse = top + std::log(total);
}

template <class T>
void forward_rows(const Sizes& z, const Tensor& q, const Tensor& k, const Tensor& v, double scale, Tensor& o,
                  Tensor& lse) {
  using A = acc_t<T>;
#pragma omp parallel if (z.B * z.H * z.S * (z.E + z.F) > (1 << 16))
  {
    Scratch<A> scratch(padded<A>(z.S) + padded<A>(z.F));
    A *p = scratch.take(z.S), *sums = scratch.take(z.F);
#pragma omp for schedule(static)
    for (int64_t item = 0; item < z.B * z.H * z.T; ++item) {
      const int64_t bh = item / z.T, t = item % z.T, b = bh / z.H, h = bh % z.H, kv = z.kv_head(h);
      const Head<const T> qh = head_of<T>(q, b, h);
      const Head<T> oh = head_of<T>(o, b, h);
      forward_row<T, A>(head_of<T>(k, b, kv), head_of<T>(v, b, kv), qh.data + t * qh.row, z.visible(t),
                        A(scale), p, sums, oh.data + t * oh.row, lse.data<A>() + bh * z.T + t);
    }
  }
}

constexpr int64_t kFewQueries = 4;  // up to here rows are faster than tiles

template <class T>
void forward(const Tensor& q, const Tensor& k, const Tensor& v, double scale, Tensor& o, Tensor& lse) {
  const Sizes z = sizes_of(q, k, v);
  z.T <= kFewQueries ? forward_rows<T>(z, q, k, v, scale, o, lse)
                     : forward_tiles<T>(z, q, k, v, scale, o, lse);
}

// ---- backward: one head, all its queries
template <class A>
struct BackwardTiles {
  A *q, *qt, *dout, *dot, *k, *v, *st, *dst, *dqt, *lse, *delta;
  int64_t lde, ldf;
  static int64_t elements(const Sizes& z) {
    return kTile * (2 * z.E + z.F + 2 * padded<A>(z.E) + 2 * padded<A>(z.F) + 2 * kTile + 2) + 11 * kLanes<A>;
  }
  BackwardTiles(Scratch<A>& s, const Sizes& z) : lde(padded<A>(z.E)), ldf(padded<A>(z.F)) {
    q = s.take(kTile * lde), qt = s.take(z.E * kTile), dout = s.take(kTile * ldf), dot = s.take(z.F * kTile);
    k = s.take(kTile * lde), v = s.take(kTile * ldf), st = s.take(kTile * kTile), dst = s.take(kTile * kTile);
    dqt = s.take(z.E * kTile), lse = s.take(kTile), delta = s.take(kTile);
  }
};

// P^T from the saved row statistics, then dS^T = P^T (dP^T - delta), in st and dst.
template <class A>
void score_gradients(const Sizes& z, const BackwardTiles<A>& t, int64_t q0, int64_t k0, int64_t keys) {
  tile_matmul(keys, kTile, z.E, TileView<A>{t.k, t.lde, 1}, t.qt, kTile, t.st, kTile, false);
  tile_matmul(keys, kTile, z.F, TileView<A>{t.v, t.ldf, 1}, t.dot, kTile, t.dst, kTile, false);
  mask(t.st, z, q0, k0, keys, -std::numeric_limits<A>::infinity());
  for (int64_t j = 0; j < keys; ++j)
#pragma omp simd
    for (int64_t i = 0; i < kTile; ++i) {
      const A p = simd_exp(t.st[j * kTile + i] - t.lse[i]);
      t.st[j * kTile + i] = p;
      t.dst[j * kTile + i] = p * (t.dst[j * kTile + i] - t.delta[i]);
    }
}

// The query side of a tile: q, q^T (scaled), dO, dO^T, lse and delta. Lanes beyond n get lse = inf, so their
// p is 0.
template <class T, class A>
void load_queries(const BackwardTiles<A>& t, Head<const T> q, Head<const T> dout, Head<const T> o,
                  const A* lse, int64_t q0, int64_t n, A scale) {
  load_rows(q, q0, n, t.q, t.lde);
  load_transposed(q, q0, n, scale, t.qt);
  load_rows(dout, q0, n, t.dout, t.ldf);
  load_transposed(dout, q0, n, A(1), t.dot);
  std::fill(t.lse + n, t.lse + kTile, std::numeric_limits<A>::infinity());
  std::fill(t.delta + n, t.delta + kTile, A(0));
  for (int64_t i = 0; i < n; ++i) {
    A sum = 0;
    const T* oi = o.data + (q0 + i) * o.row;
#pragma omp simd reduction(+ : sum)
    for (int64_t f = 0; f < o.width; ++f) sum += t.dout[i * t.ldf + f] * A(oi[f]);
    t.delta[i] = sum;
    t.lse[i] = lse[q0 + i];
  }
}

// dk [S,lde] and dv [S,ldf] of this query head alone.
template <class T, class A>
void backward_head(const Sizes& z, const BackwardTiles<A>& t, Head<const T> q, Head<const T> k,
                   Head<const T> v, Head<const T> dout, Head<const T> o, const A* lse, A scale, Head<T> dq,
                   A* dk, A* dv) {
  alignas(64) A scales[kTile];
  std::fill(scales, scales + kTile, scale);
  std::fill(dk, dk + z.S * t.lde, A(0));
  std::fill(dv, dv + z.S * t.ldf, A(0));
  for (int64_t q0 = 0; q0 < z.T; q0 += kTile) {
    const int64_t n = std::min(kTile, z.T - q0), seen = z.visible(q0 + n - 1);
    load_queries(t, q, dout, o, lse, q0, n, scale);
    std::fill(t.dqt, t.dqt + z.E * kTile, A(0));
    for (int64_t k0 = 0; k0 < seen; k0 += kTile) {
      const int64_t keys = std::min(kTile, seen - k0);
      load_rows(k, k0, keys, t.k, t.lde);
      load_rows(v, k0, keys, t.v, t.ldf);
      score_gradients(z, t, q0, k0, keys);
      tile_matmul(keys, t.ldf, n, TileView<A>{t.st, kTile, 1}, t.dout, t.ldf, dv + k0 * t.ldf, t.ldf, true);
      tile_matmul(keys, t.lde, n, TileView<A>{t.dst, kTile, 1}, t.q, t.lde, dk + k0 * t.lde, t.lde, true);
      tile_matmul(z.E, kTile, keys, TileView<A>{t.k, 1, t.lde}, t.dst, kTile, t.dqt, kTile, true);
    }
    store_transposed(t.dqt, scales, q0, n, dq);
  }
}

// x (B,S,K,width) = factor * sum over the group's query heads of parts [B,H,S,ld], in head order.
template <class T, class A>
void sum_groups(const Sizes& z, const A* parts, int64_t ld, A factor, Tensor& x) {
  const int64_t G = z.H / z.K, width = x.size(3);
#pragma omp parallel for schedule(static)
  for (int64_t bk = 0; bk < z.B * z.K; ++bk) {
    Head<T> out = head_of<T>(x, bk / z.K, bk % z.K);
    for (int64_t s = 0; s < z.S; ++s)
      for (int64_t e = 0; e < width; ++e) {
        A sum = 0;
        for (int64_t g = 0; g < G; ++g) sum += parts[((bk * G + g) * z.S + s) * ld + e];
        out.data[s * out.row + e] = T(sum * factor);
      }
  }
}

template <class T>
void backward(const Tensor& dout, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& o,
              const Tensor& lse, double scale, Tensor& dq, Tensor& dk, Tensor& dv) {
  using A = acc_t<T>;
  const Sizes z = sizes_of(q, k, v);
  const int64_t lde = padded<A>(z.E), ldf = padded<A>(z.F);
  Tensor dk_parts = Tensor::empty({z.B * z.H, z.S, lde}, dtype_of<A>());
  Tensor dv_parts = Tensor::empty({z.B * z.H, z.S, ldf}, dtype_of<A>());
#pragma omp parallel if (z.B * z.H > 1)
  {
    Scratch<A> scratch(BackwardTiles<A>::elements(z));
    const BackwardTiles<A> t(scratch, z);
#pragma omp for schedule(dynamic)
    for (int64_t bh = 0; bh < z.B * z.H; ++bh) {
      const int64_t b = bh / z.H, h = bh % z.H, kv = z.kv_head(h);
      backward_head<T, A>(z, t, head_of<T>(q, b, h), head_of<T>(k, b, kv), head_of<T>(v, b, kv),
                          head_of<T>(dout, b, h), head_of<T>(o, b, h), lse.data<A>() + bh * z.T, A(scale),
                          head_of<T>(dq, b, h), dk_parts.data<A>() + bh * z.S * lde,
                          dv_parts.data<A>() + bh * z.S * ldf);
    }
  }
  sum_groups<T, A>(z, dk_parts.data<A>(), lde, A(scale), dk);
  sum_groups<T, A>(z, dv_parts.data<A>(), ldf, A(1), dv);
}

}  // namespace

void attention_fwd(const Tensor& q, const Tensor& k, const Tensor& v, double scale, Tensor& o, Tensor& lse) {
  dispatch_float(q.dtype(), "attention", [&]<class T>() { forward<T>(q, k, v, scale, o, lse); });
}

void attention_bwd(const Tensor& dout, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& o,
                   const Tensor& lse, double scale, Tensor& dq, Tensor& dk, Tensor& dv) {
  dispatch_float(q.dtype(), "attention",
                 [&]<class T>() { backward<T>(dout, q, k, v, o, lse, scale, dq, dk, dv); });
}

}  // namespace llatte::cpu
