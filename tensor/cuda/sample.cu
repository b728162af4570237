// Draws one id per row of logits, a block for a row. With w_i = exp((z_i - max z) / temperature), in double:
//   top_k   the k largest w stay (of equal ones, the lowest ids)
//   top_p   the shortest prefix of them, by falling w, whose sum reaches top_p of what is left
//   min_p   those with w >= min_p * max w
// and the id is the first, in ascending order, whose running sum exceeds u times the total.
// Nothing is sorted: the smallest w that stays is found by bisection between weights that occur, each step
// one pass over the row, about 20 for 50,000 different ones, over numbers that are in the L2 cache. Before
// that, repetition_penalty makes tokens that have been seen less likely (arXiv 1909.05858).
#include <cmath>
#include <limits>
#include "tensor/cuda/error.h"
#include "tensor/cuda/pack.h"

namespace llatte::cuda {
namespace {

constexpr int kMaxThreads = 1024;

// Weights split at a point p.
struct Split {
  double sum;        // of those >= p (or their number)
  double low, high;  // the smallest of them, the largest of the others
  __device__ void take(const Split& o) {
    sum += o.sum, low = o.low < low ? o.low : low, high = o.high > high ? o.high : high;
  }
};

struct Shared {
  PerWarp<Split> split;
  PerWarp<double> top;
  PerWarp<int64_t> id;
  PerWarp<int> count;
  double chunk[kMaxThreads];
  int64_t last;
};

struct Complaints {
  Report too_large, all_lowest;
};

// ---- the largest logit
template <class A>
struct Best {
  A z;
  int64_t id;
  __device__ void take(A other, int64_t other_id) {
    if (other > z || (other == z && other_id < id)) z = other, id = other_id;
  }
};

// Of the first of equal ones; every thread gets it. What is NaN or +inf is reported, and `bad` for all.
template <class A>
__device__ Best<A> argmax(const A* z, int64_t V, Shared& s, const Complaints& complaints, bool& bad) {
  Best<A> best{-std::numeric_limits<A>::infinity(), std::numeric_limits<int64_t>::max()};
  bool seen = false;
  for (int64_t i = threadIdx.x; i < V; i += blockDim.x) {
    if (!(z[i] < std::numeric_limits<A>::infinity())) {
      if (!seen) complaints.too_large(i, blockIdx.x, z[i]);
      seen = true;
    }
    best.take(z[i], i);
  }
  for (int step = kWarp / 2; step > 0; step /= 2)
    best.take(__shfl_xor_sync(0xffffffffu, best.z, step), __shfl_xor_sync(0xffffffffu, best.id, step));
  if (threadIdx.x % kWarp == 0)
    s.top.at[threadIdx.x / kWarp] = best.z, s.id.at[threadIdx.x / kWarp] = best.id;
  bad = __syncthreads_or(seen);
  for (unsigned w = 0; w < blockDim.x / kWarp; ++w) best.take(A(s.top.at[w]), s.id.at[w]);
  return best;
}

// ---- what stays: larger weights than the edge, and those equal to it up to the id `last`
struct Cut {
  double edge;
  int64_t last;
  __device__ bool keeps(double w, int64_t i) const { return w > edge || (w == edge && i <= last); }
};

// Of what stays. Every thread gets it; the warps are added in their order.
__device__ inline Split split(const double* w, int64_t V, const Cut& cut, double p, bool weighted,
                              Shared& s) {
  Split r{0, 2, -1};  // weights are in [0,1]
  for (int64_t i = threadIdx.x; i < V; i += blockDim.x)
    if (cut.keeps(w[i], i)) r.take(w[i] >= p ? Split{weighted ? w[i] : 1.0, w[i], -1} : Split{0, 2, w[i]});
  for (int step = kWarp / 2; step > 0; step /= 2)
    r.take({__shfl_xor_sync(0xffffffffu, r.sum, step), __shfl_xor_sync(0xffffffffu, r.low, step),
            __shfl_xor_sync(0xffffffffu, r.high, step)});
  if (threadIdx.x % kWarp == 0) s.split.at[threadIdx.x / kWarp] = r;
  __syncthreads();
  r = {0, 2, -1};
  for (unsigned v = 0; v < blockDim.x / kWarp; ++v) r.take(s.split.at[v]);
  __syncthreads();
  return r;
}

// Id of the n-th of those that stay with weight `edge`, n from 1.
__device__ inline int64_t nth_equal(const double* w, int64_t V, const Cut& cut, double edge, double n,
                                    Shared& s) {
  double before = 0;
  if (threadIdx.x == 0) s.last = V;
  for (int64_t begin = 0; begin < V; begin += blockDim.x) {
    const int64_t i = begin + threadIdx.x;
    const bool equal = i < V && w[i] == edge && cut.keeps(w[i], i);
    const unsigned lanes = __ballot_sync(0xffffffffu, equal), warp = threadIdx.x / kWarp;
    if (threadIdx.x % kWarp == 0) s.count.at[warp] = __popc(lanes);
    __syncthreads();
    double place = before + __popc(lanes & ((2u << threadIdx.x % kWarp) - 1));
    for (unsigned v = 0; v < blockDim.x / kWarp; ++v) {
      before += s.count.at[v];
      if (v < warp) place += s.count.at[v];
    }
    if (equal && place == n) s.last = i;
    __syncthreads();
    if (before >= n) break;
  }
  return s.last;
}

// Of two weights, the one in the middle as bits go, above the lower one.
__device__ inline double between(double low, double high) {
  const long long l = __double_as_longlong(low), h = __double_as_longlong(high);
  return __longlong_as_double(l + (h - l + 1) / 2);
}

// The shortest prefix by falling weight whose sum (or number) reaches `enough`, as a cut. Its last weight is
// in [low, edge], where edge occurs.
__device__ inline Cut prefix(const double* w, int64_t V, const Cut& cut, double enough, bool weighted,
                             Shared& s) {
  double low = 0, edge = 1;
  while (low < edge) {
    const Split r = split(w, V, cut, between(low, edge), weighted, s);
    if (r.sum >= enough) low = r.low;
    else edge = r.high;
  }
  const double next = __longlong_as_double(__double_as_longlong(edge) + 1);
  const double above = split(w, V, cut, next, weighted, s).sum, each = weighted ? edge : 1.0;
  const double n = each > 0 ? ceil((enough - above) / each) : double(V);
  return {edge, nth_equal(w, V, cut, edge, n < 1 ? 1 : n, s)};
}

// ---- the draw
struct Chosen {
  const double* w;
  Cut cut;
  double least;
  __device__ double at(int64_t i) const { return w[i] >= least && cut.keeps(w[i], i) ? w[i] : 0.0; }
};

// Thread t sums ids [t per, (t+1) per); the first thread finds the chunk and then the id.
__device__ inline void pick(const Chosen& chosen, int64_t V, double u, Shared& s, int32_t* out) {
  const int64_t per = (V + blockDim.x - 1) / blockDim.x;
  double sum = 0;
  for (int64_t i = threadIdx.x * per; i < (threadIdx.x + 1) * per && i < V; ++i) sum += chosen.at(i);
  s.chunk[threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.x > 0) return;
  double total = 0, before = 0;
  for (unsigned t = 0; t < blockDim.x; ++t) total += s.chunk[t];
  const double target = u * total;
  unsigned t = 0;
  int64_t last = 0;  // of those with any weight: the answer if rounding leaves the sum at target
  while (t + 1 < blockDim.x && before + s.chunk[t] <= target) before += s.chunk[t++];
  while (t > 0 && s.chunk[t] == 0) before -= s.chunk[--t];
  for (int64_t i = t * per; i < (t + 1) * per && i < V; ++i) {
    const double w = chosen.at(i);
    if (w > 0) last = i;
    if ((before += w) > target) break;
  }
  *out = static_cast<int32_t>(last);
}

template <class A>
__global__ void __launch_bounds__(kMaxThreads)
    sample_kernel(const A* z, const A* u, int64_t V, SampleRule rule, double* weights, int32_t* ids,
                  Complaints complaints) {
  auto& s = block_shared<Shared>();
  const int64_t row = blockIdx.x;
  z += row * V, weights += row * V;
  bool bad = false;
  const Best<A> best = argmax(z, V, s, complaints, bad);
  const bool lowest = !(best.z > -std::numeric_limits<A>::infinity());
  if (lowest && !bad && threadIdx.x == 0) complaints.all_lowest(row);
  if (bad || lowest || rule.temperature == 0) {  // the same for all threads
    if (threadIdx.x == 0) ids[row] = bad || lowest ? 0 : static_cast<int32_t>(best.id);
    return;
  }
  for (int64_t i = threadIdx.x; i < V; i += blockDim.x)
    weights[i] = exp((double(z[i]) - double(best.z)) / rule.temperature);
  __syncthreads();
  Cut cut{-1, 0};
  if (rule.top_k > 0 && rule.top_k < V) cut = prefix(weights, V, cut, double(rule.top_k), false, s);
  if (rule.top_p < 1)
    cut = prefix(weights, V, cut, rule.top_p * split(weights, V, cut, 0, true, s).sum, true, s);
  pick({weights, cut, rule.min_p}, V, double(u[row]), s, ids + row);  // max w is 1
}

void check_rule(const SampleRule& r) {
  LLATTE_CHECK(r.temperature >= 0 && std::isfinite(r.temperature), "sample: temperature ", r.temperature,
               " must be 0 (the most likely id) or positive");
  LLATTE_CHECK(r.top_k >= 0, "sample: top_k ", r.top_k, " must be 0 (all ids) or positive");
  LLATTE_CHECK(r.top_p > 0 && r.top_p <= 1, "sample: top_p ", r.top_p, " must be in (0,1]");
  LLATTE_CHECK(r.min_p >= 0 && r.min_p <= 1, "sample: min_p ", r.min_p, " must be in [0,1]");
}

template <class A>
__global__ void penalty_kernel(const int32_t* ids, int64_t N, double penalty, A* z, int64_t V,
                               Report outside) {
  const int64_t n = global_thread();
  if (n >= N) return;
  const int32_t id = ids[n];
  if (id < 0 || id >= V) return outside(id, V);
  const double old = static_cast<double>(z[id]);
  z[id] = static_cast<A>(old > 0 ? old / penalty : old * penalty);
}

template <class F>
void dispatch_acc(DType t, const char* op, F&& f) {
  LLATTE_CHECK(t != DType::bf16, op, ": logits are bf16; give them as f32 or f64");
  if (t == DType::f64) return f.template operator()<double>();
  f.template operator()<float>();
}

}  // namespace

void sample(const Tensor& logits, const Tensor& u, const SampleRule& rule, Tensor& ids) {
  check_rule(rule);
  const int64_t V = logits.size(-1), N = ids.numel();
  LLATTE_CHECK(V > 0 || N == 0, "sample: row 0 has no logits");
  const int64_t threads = std::clamp<int64_t>((V / 16 + kWarp - 1) / kWarp * kWarp, kWarp, kMaxThreads);
  Tensor weights = Tensor::empty({rule.temperature > 0 ? N : 0, V}, DType::f64, Device::cuda);
  const Complaints complaints{
      report("sample: logit of id {} in row {} is {}; the model has diverged or its weights "
             "are damaged"),
      report("sample: every logit of row {} is -inf")};
  dispatch_acc(logits.dtype(), "sample", [&]<class A>() {
    launch("sample", {blocks_for(N, 1), unsigned(threads), sizeof(Shared)}, sample_kernel<A>,
           logits.data<A>(), u.data<A>(), V, rule, weights.data<double>(), ids.data<int32_t>(), complaints);
  });
}

void repetition_penalty(const Tensor& ids, double penalty, Tensor& logits) {
  LLATTE_CHECK(penalty > 0 && std::isfinite(penalty), "repetition_penalty: ", penalty, " must be positive");
  const int64_t V = logits.numel(), N = ids.numel();
  const Report outside = report("repetition_penalty: id {} is not in [0,{})");
  dispatch_acc(logits.dtype(), "repetition_penalty", [&]<class A>() {
    launch("repetition_penalty", {blocks_for(N, kThreads), unsigned(kThreads)}, penalty_kernel<A>,
           ids.data<int32_t>(), N, penalty, logits.data<A>(), V, outside);
  });
}

}  // namespace llatte::cuda
