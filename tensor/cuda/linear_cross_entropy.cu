// The last layer and the loss in one: the logits of a chunk of rows are made, turned into losses and
// gradients where they lie, and overwritten by the next chunk. That chunk is the only [rows, V] tensor there
// ever is. How many rows count is found on the device: the host waits for nothing.
#include <limits>
#include "tensor/cuda/row_losses.h"

namespace llatte::cuda {
namespace {

template <class A>
struct RowShared {
  PerWarp<A> warps;
};

// The highest entry of a row and the sum of exp(z - top), in one sweep: each thread keeps both for what it
// has read, relative to its own top (the online softmax of arXiv 1805.02867). NaN shows in the sum.
template <class A>
__device__ void sum_exponentials(const A* z, int64_t V, RowShared<A>& s, A& top, A& sum) {
  constexpr int N = kPack<A>;
  A own_top = std::numeric_limits<A>::lowest(), own = 0;
  for_packs<N>(z, V, [&](int64_t at, const Pack<A, N>& pack) {
    A high = own_top;
#pragma unroll
    for (int j = 0; j < N; ++j) high = at + j < V && pack.at[j] > high ? pack.at[j] : high;
    own *= exp_of(own_top - high);
    own_top = high;
#pragma unroll
    for (int j = 0; j < N; ++j) own += at + j < V ? exp_of(pack.at[j] - high) : A(0);
  });
  top = block_max(own_top, s.warps);
  sum = block_sum(own * exp_of(own_top - top), s.warps);
}

// loss = log sum_v exp z - z_target; d(mean loss)/dz = (softmax - onehot(target)) / rows that count. g may be
// z, or null. A block for each row; `first`: the chunk's first row.
template <class T, class A>
__global__ void __launch_bounds__(kRowThreads, 1)
    cross_entropy_rows(const A* logits, Targets targets, int64_t first, const A* per_row, A* losses,
                       T* gradient) {
  auto& s = block_shared<RowShared<A>>();
  constexpr int N = kPack<A, T>;
  const int64_t V = targets.V, n = first + blockIdx.x;
  const A* z = logits + int64_t(blockIdx.x) * V;
  T* g = gradient ? gradient + int64_t(blockIdx.x) * V : nullptr;
  if (!targets.counts(n)) {  // the whole block
    if (g) clear_row<N>(g, V);
    if (threadIdx.x == 0) losses[n] = 0;
    return;
  }
  A top, sum;
  const int64_t target = targets.target[n];
  const A z_target = z[target], weight = *per_row;  // read before g overwrites it: sums wait for all threads
  sum_exponentials(z, V, s, top, sum);
  if (threadIdx.x == 0) losses[n] = log_of(sum) - (z_target - top);
  if (!g) return;
  const A factor = weight / sum;
  for_packs<N>(z, V, [&](int64_t at, const Pack<A, N>& pack) {
    Pack<T, N> to;
#pragma unroll
    for (int j = 0; j < N; ++j)
      to.at[j] = T(exp_of(pack.at[j] - top) * factor - (at + j == target ? weight : A(0)));
    store(g, at, V, to);
  });
}

template <class T>
void run(const Tensor& x, const Tensor& w, const Targets& targets, Tensor& losses, Tensor& dx, Tensor& dw) {
  using A = acc_t<T>;
  const int64_t N = x.size(0), V = w.size(0), C = std::min(N, kChunk);
  const bool wants_gradient = dx.defined() || dw.defined();
  const Tensor per_row = one_per_counted_row<A>(
      "count_targets", targets, "linear_cross_entropy: target {} at row {} is outside the vocabulary of {}");
  Tensor logits = Tensor::empty({C, V}, dtype_of<A>(), Device::cuda);
  Tensor gradient;  // f32 and f64: the same memory as the logits
  if (wants_gradient)
    gradient = std::is_same_v<A, T> ? logits : Tensor::empty({C, V}, dtype_of<T>(), Device::cuda);

  for (int64_t r0 = 0; r0 < N; r0 += C) {
    const int64_t rows = std::min(C, N - r0);
    const Tensor xr = x.slice(0, r0, r0 + rows);
    Tensor z = logits.slice(0, 0, rows);
    matmul(xr, w.transpose(0, 1), z, 0);
    launch("cross_entropy_rows", {unsigned(rows), kRowThreads, sizeof(RowShared<A>)},
           cross_entropy_rows<T, A>, z.data<A>(), targets, r0, per_row.data<A>(), losses.data<A>(),
           wants_gradient ? gradient.data<T>() : nullptr);
    if (!wants_gradient) continue;
    const Tensor g = gradient.slice(0, 0, rows);
    if (Tensor d = dx.defined() ? dx.slice(0, r0, r0 + rows) : Tensor(); d.defined()) matmul(g, w, d, 0);
    if (dw.defined()) matmul(g.transpose(0, 1), xr, dw, r0 > 0 ? 1 : 0);
  }
}

}  // namespace

void linear_cross_entropy(const Tensor& x, const Tensor& w, const Tensor& targets, int32_t ignore_index,
                          Tensor& losses, Tensor& dx, Tensor& dw) {
  const Targets t{targets.data<int32_t>(), ignore_index, x.size(0), w.size(0)};
  dispatch_float(x.dtype(), "linear_cross_entropy", [&]<class T>() { run<T>(x, w, t, losses, dx, dw); });
}

}  // namespace llatte::cuda
