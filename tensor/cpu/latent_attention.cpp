// Absorbed decoding: all H heads (and the T new tokens) score the same stream of rows, so they are the lanes
// of one product, M = T H wide:
//   scores^T [n, M] = rows [n, Wk] q^T [Wk, M],   o [M, F] += p [M, n] rows[:, v0 : v0 + F] [n, F].
// A tile of rows is read from the cache once, as f32 (f64 for proofs), and serves all of them; softmax is
// online (arXiv 2205.14135). The context is cut into parts of fixed length, which threads share and which are
// merged in their order: the result does not depend on the number of threads.
#include <algorithm>
#include <limits>
#include "tensor/cpu/cache_rows.h"
#include "tensor/cpu/parallel.h"
#include "tensor/cpu/tile.h"

namespace llatte::cpu {
namespace {

constexpr int64_t kTile = 64, kPart = 2 * kTile;  // tokens

// Below every score, yet finite: exp(kFloor - kFloor) = 1 where a query sees nothing of a part.
template <class A>
constexpr A kFloor = std::numeric_limits<A>::lowest() / 2;

template <class A>
struct Job {
  int64_t B, T, S, H, Wk, F, v0, M, lanes, ldf, ld, parts;
  Job(const Tensor& q, const CacheRows& rows, int64_t tokens, int64_t first_value, const Tensor& o)
      : B(q.size(0)), T(q.size(1)), S(tokens), H(q.size(2)), Wk(q.size(3)), F(o.size(3)), v0(first_value) {
    M = T * H, lanes = padded<A>(M), ldf = padded<A>(F), ld = padded<A>(std::max(rows.W, v0 + ldf));
    parts = (S + kPart - 1) / kPart;
  }
  int64_t part_elements() const { return M * ldf + 2 * lanes; }
};

// What one part of the context says: o [M, ldf] relative to the highest score `top` [lanes], and the sum of
// its probabilities.
template <class A>
struct Part {
  A *o, *top, *sum;
  Part(A* at, const Job<A>& z) : o(at), top(at + z.M * z.ldf), sum(top + z.lanes) {}
};

// q^T, scaled, zero in the lanes beyond M.
template <class T, class A>
void transpose_queries(const Job<A>& z, const T* q, A scale, A* qt) {
  std::fill(qt, qt + z.Wk * z.lanes, A(0));
  for (int64_t m = 0; m < z.M; ++m)
    for (int64_t w = 0; w < z.Wk; ++w) qt[w * z.lanes + m] = A(q[m * z.Wk + w]) * scale;
}

// Row s is hidden from the queries t < s - (S - T).
template <class A>
void mask(const Job<A>& z, int64_t s0, int64_t n, A* st) {
  for (int64_t j = std::max<int64_t>(0, z.S - z.T + 1 - s0); j < n; ++j)
    std::fill_n(st + j * z.lanes, (s0 + j - (z.S - z.T)) * z.H, -std::numeric_limits<A>::infinity());
}

// Scores become probabilities relative to the new highest; shrink = exp(old highest - new).
template <class A>
void online_softmax(int64_t lanes, int64_t n, A* st, const Part<A>& part, A* shrink) {
  for (int64_t l = 0; l < lanes; l += kLanes<A>) {
    alignas(64) A high[kLanes<A>], sum[kLanes<A>];
    std::copy_n(part.top + l, kLanes<A>, high);
    for (int64_t j = 0; j < n; ++j)
#pragma omp simd
      for (int64_t i = 0; i < kLanes<A>; ++i) high[i] = std::max(high[i], st[j * lanes + l + i]);
#pragma omp simd
    for (int64_t i = 0; i < kLanes<A>; ++i) {
      shrink[l + i] = simd_exp(part.top[l + i] - high[i]);
      sum[i] = part.sum[l + i] * shrink[l + i];
    }
    for (int64_t j = 0; j < n; ++j)
#pragma omp simd
      for (int64_t i = 0; i < kLanes<A>; ++i) {
        const A p = simd_exp(st[j * lanes + l + i] - high[i]);
        st[j * lanes + l + i] = p;
        sum[i] += p;
      }
    std::copy_n(high, kLanes<A>, part.top + l);
    std::copy_n(sum, kLanes<A>, part.sum + l);
  }
}

template <class A>
void attend_part(const Job<A>& z, const CacheRows& rows, int64_t b, int64_t begin, const A* qt, A* scratch,
                 const Part<A>& part) {
  A *tile = scratch, *st = tile + kTile * z.ld, *shrink = st + kTile * z.lanes;
  std::fill_n(part.o, z.M * z.ldf, A(0));
  std::fill_n(part.top, z.lanes, kFloor<A>);
  std::fill_n(part.sum, z.lanes, A(0));
  const int64_t end = std::min(z.S, begin + kPart);
  for (int64_t s0 = begin; s0 < end; s0 += kTile) {
    const int64_t n = std::min(kTile, end - s0);
    load_rows(rows, b, s0, n, tile, z.ld);
    tile_matmul(n, z.lanes, z.Wk, TileView<A>{tile, z.ld, 1}, qt, z.lanes, st, z.lanes, false);
    mask(z, s0, n, st);
    online_softmax(z.lanes, n, st, part, shrink);
    for (int64_t m = 0; m < z.M; ++m)
#pragma omp simd
      for (int64_t f = 0; f < z.ldf; ++f) part.o[m * z.ldf + f] *= shrink[m];
    tile_matmul(z.M, z.ldf, n, TileView<A>{st, 1, z.lanes}, tile + z.v0, z.ld, part.o, z.ldf, true);
  }
}

// o_m = sum over parts of exp(top - highest top) o / the same sum of sums, in the order of the parts.
template <class T, class A>
void merge(const Job<A>& z, A* parts, int64_t m, A* sums, T* o) {
  A high = kFloor<A>, total = 0;
  for (int64_t p = 0; p < z.parts; ++p)
    high = std::max(high, Part<A>(parts + p * z.part_elements(), z).top[m]);
  std::fill_n(sums, z.F, A(0));
  for (int64_t p = 0; p < z.parts; ++p) {
    const Part<A> part(parts + p * z.part_elements(), z);
    const A weight = simd_exp(part.top[m] - high);
    total += weight * part.sum[m];
    const A* from = part.o + m * z.ldf;
#pragma omp simd
    for (int64_t f = 0; f < z.F; ++f) sums[f] += weight * from[f];
  }
#pragma omp simd
  for (int64_t f = 0; f < z.F; ++f) store(o + f, sums[f] / total);
}

template <class T, class A>
void attend(const Job<A>& z, const Tensor& q, const CacheRows& rows, A scale, Tensor& o) {
  Tensor qts = Tensor::empty({z.B, z.Wk * z.lanes}, dtype_of<A>());
  Tensor parts = Tensor::empty({z.B * z.parts, z.part_elements()}, dtype_of<A>());
  A *qt = qts.template data<A>(), *all = parts.template data<A>();
  const bool pays = z.B * z.S * z.M * (z.Wk + z.F) > (1 << 18);
#pragma omp parallel if (pays)
  {
    Tensor scratch = Tensor::zeros({kTile * (z.ld + z.lanes) + z.lanes}, dtype_of<A>());
    A* own = scratch.template data<A>();
#pragma omp for schedule(static)
    for (int64_t b = 0; b < z.B; ++b)
      transpose_queries(z, q.data<T>() + b * z.M * z.Wk, scale, qt + b * z.Wk * z.lanes);
#pragma omp for schedule(static)
    for (int64_t i = 0; i < z.B * z.parts; ++i)
      attend_part(z, rows, i / z.parts, i % z.parts * kPart, qt + i / z.parts * z.Wk * z.lanes, own,
                  Part<A>(all + i * z.part_elements(), z));
#pragma omp for schedule(static)
    for (int64_t bm = 0; bm < z.B * z.M; ++bm)
      merge(z, all + bm / z.M * z.parts * z.part_elements(), bm % z.M, own, o.data<T>() + bm * z.F);
  }
}

}  // namespace

void latent_attention(const Tensor& q, const CacheRows& rows, int64_t S, double scale, int64_t v0,
                      Tensor& o) {
  dispatch_float(q.dtype(), "latent_attention", [&]<class T>() {
    using A = acc_t<T>;
    attend<T, A>(Job<A>(q, rows, S, v0, o), q, rows, A(scale), o);
  });
}

}  // namespace llatte::cpu
