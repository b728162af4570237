// AdamW (tensor/adamw_rule.h) and the sum of squares over lists of tensors: a launch takes up to kTensors of
// them, whose addresses travel as kernel parameters, and its blocks have kChunk numbers each. The clipping
// factor is computed from the sum where it lies; one that is not finite leaves everything as it is.
#include "tensor/adamw_rule.h"
#include "tensor/cuda/pack.h"

namespace llatte::cuda {
namespace {

constexpr int kTensors = 40;  // of a launch: below 4 KiB of parameters
constexpr int64_t kChunk = int64_t(1) << 14;

// Which numbers of which tensor a block has.
struct Chunks {
  int64_t n[kTensors];
  int32_t end[kTensors];  // blocks of tensors 0..k
  int count = 0;

  void append(int64_t numel) {
    n[count] = numel;
    end[count] = (count > 0 ? end[count - 1] : 0) + static_cast<int32_t>(blocks_for(numel, kChunk));
    ++count;
  }
  unsigned blocks() const { return count > 0 ? static_cast<unsigned>(end[count - 1]) : 0; }
};

struct Chunk {
  int tensor;
  int64_t begin, end;
};
__device__ inline Chunk chunk_of(const Chunks& c, int block) {
  int k = 0;
  while (block >= c.end[k]) ++k;
  const int64_t begin = (block - (k > 0 ? c.end[k - 1] : 0)) * kChunk;
  return {k, begin, begin + kChunk < c.n[k] ? begin + kChunk : c.n[k]};
}

// ---- sum of squares
struct Squared {
  const void* x[kTensors];
};

template <class T, int N>
__global__ void square_chunks(Squared tensors, Chunks chunks, double* partial) {
  auto& s = block_shared<PerWarp<double>>();
  const Chunk c = chunk_of(chunks, int(blockIdx.x));
  const T* x = static_cast<const T*>(tensors.x[c.tensor]);
  double sum = 0;
  for (int64_t at = c.begin + threadIdx.x * N; at < c.end; at += blockDim.x * N) {
    const Pack<T, N> p = load<N>(x, at, c.end);
#pragma unroll
    for (int j = 0; j < N; ++j) sum += double(p.at[j]) * double(p.at[j]);
  }
  sum = block_sum(sum, s);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

// One block; thread i sums partial[i], partial[i + threads], ...
__global__ void sum_all(const double* partial, int64_t n, double* out) {
  auto& s = block_shared<PerWarp<double>>();
  double sum = 0;
  for (int64_t i = threadIdx.x; i < n; i += blockDim.x) sum += partial[i];
  sum = block_sum(sum, s);
  if (threadIdx.x == 0) *out = sum;
}

unsigned square_part(std::span<const Tensor> part, double* partial) {
  Squared tensors{};
  Chunks chunks;
  for (const Tensor& x : part) tensors.x[chunks.count] = x.raw(), chunks.append(x.numel());
  dispatch_float(part.front().dtype(), "sum_squares", [&]<class T>() {
    for (const Tensor& x : part) x.data<T>();  // one dtype, contiguous
    launch("sum_squares", {chunks.blocks(), unsigned(kThreads), sizeof(PerWarp<double>)},
           square_chunks<T, kPack<T>>, tensors, chunks, partial);
  });
  return chunks.blocks();
}

// Calls f(part) for runs of at most kTensors neighbours of one dtype.
template <class Item, class F>
void for_parts(std::span<Item> all, const auto& dtype, F f) {
  for (size_t begin = 0, end = 0; begin < all.size(); begin = end) {
    while (end < all.size() && end - begin < kTensors && dtype(all[end]) == dtype(all[begin])) ++end;
    f(all.subspan(begin, end - begin));
  }
}

// ---- AdamW
struct Updated {
  void *w[kTensors], *m[kTensors], *v[kTensors], *p[kTensors];  // p is w where there is no master
  const void* g[kTensors];
  double keep[kTensors];
};

template <class T, int N>
__global__ void adamw_kernel(Updated tensors, Chunks chunks, AdamWRule<acc_t<T>> rule,
                             const double* sum_squares, double clip_grad) {
  using A = acc_t<T>;
  const double total = *sum_squares;
  if (!isfinite(total)) return;
  const Chunk c = chunk_of(chunks, int(blockIdx.x));
  const int k = c.tensor;
  rule.keep = A(tensors.keep[k]);
  const A grad_scale = A(clip_scale(clip_grad, total)), *g = static_cast<const A*>(tensors.g[k]);
  A *m = static_cast<A*>(tensors.m[k]), *v = static_cast<A*>(tensors.v[k]),
    *p = static_cast<A*>(tensors.p[k]);
  T* w = static_cast<T*>(tensors.w[k]);
  for (int64_t at = c.begin + threadIdx.x * N; at < c.end; at += blockDim.x * N) {
    const Pack<A, N> pg = load<N>(g, at, c.end);
    Pack<A, N> pm = load<N>(m, at, c.end), pv = load<N>(v, at, c.end), pp = load<N>(p, at, c.end);
    Pack<T, N> pw;
#pragma unroll
    for (int j = 0; j < N; ++j) {
      rule(pg.at[j] * grad_scale, pm.at[j], pv.at[j], pp.at[j]);
      pw.at[j] = T(pp.at[j]);
    }
    store<N>(m, at, c.end, pm);
    store<N>(v, at, c.end, pv);
    store<N>(p, at, c.end, pp);
    if (static_cast<void*>(w) != static_cast<void*>(p)) store<N>(w, at, c.end, pw);
  }
}

template <class T>
void update_part(std::span<AdamWTensors> part, const Tensor& sum_squares, const AdamWStep& s) {
  using A = acc_t<T>;
  Updated tensors{};
  Chunks chunks;
  for (AdamWTensors& x : part) {
    const int k = chunks.count;
    Tensor& p = x.master.defined() ? x.master : x.w;  // w of bf16 without a master is refused by data<A>()
    tensors.w[k] = x.w.data<T>(), tensors.g[k] = x.g.data<A>(), tensors.m[k] = x.m.data<A>();
    tensors.v[k] = x.v.data<A>(), tensors.p[k] = p.data<A>();
    tensors.keep[k] = 1 - s.lr * x.weight_decay;
    chunks.append(x.w.numel());
  }
  launch("adamw", {chunks.blocks(), unsigned(kThreads)}, adamw_kernel<T, kPack<A>>, tensors, chunks,
         AdamWRule<A>(s, 0), sum_squares.data<double>(), s.clip_grad);
}

}  // namespace

void adamw(std::vector<AdamWTensors>& tensors, const Tensor& sum_squares, const AdamWStep& s) {
  LLATTE_CHECK(s.t >= 1, "adamw: step t is ", s.t, ", but it counts from 1");
  for_parts(
      std::span(tensors), [](const AdamWTensors& x) { return x.w.dtype(); },
      [&](std::span<AdamWTensors> part) {
        dispatch_float(part.front().w.dtype(), "adamw",
                       [&]<class T>() { update_part<T>(part, sum_squares, s); });
      });
}

void sum_squares(const std::vector<Tensor>& x, Tensor& out) {
  int64_t blocks = 0, begin = 0;
  for (const Tensor& t : x) blocks += blocks_for(t.numel(), kChunk);
  Tensor partial = Tensor::empty({blocks}, DType::f64, Device::cuda);
  double* sums = partial.data<double>();
  for_parts(
      std::span(x), [](const Tensor& t) { return t.dtype(); },
      [&](std::span<const Tensor> part) { begin += square_part(part, sums + begin); });
  launch("sum_squares", {1, unsigned(kThreads), sizeof(PerWarp<double>)}, sum_all, sums, blocks,
         out.data<double>());
}

}  // namespace llatte::cuda
