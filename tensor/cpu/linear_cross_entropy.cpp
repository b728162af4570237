// The last layer and the loss in one: the logits of a chunk of rows are made, turned into losses and
// gradients, and overwritten by the next chunk. That chunk is the only [rows, V] tensor there ever is, and
// gradients cost three matrix products instead of four, because the logits need not be made again in the
// backward pass.
#include <algorithm>
#include <cmath>
#include "tensor/cpu/simd_math.h"
#include "tensor/kernels.h"

namespace llatte::cpu {
namespace {

// Rows per chunk: enough for the matrix products to run at full speed, few enough that logits stay small
// (128 rows x 49,152 entries x 4 bytes = 24 MiB).
constexpr int64_t kChunk = 128;

// z_V := exp(z - max), *sum := their sum. Returns -log softmax(z)[target].
template <class A>
A row_loss(A* z, int64_t V, int32_t target, A* sum) {
  A top = z[0], total = 0;
#pragma omp simd reduction(max : top)
  for (int64_t j = 0; j < V; ++j) top = std::max(top, z[j]);
  const A at_target = z[target] - top;
#pragma omp simd reduction(+ : total)
  for (int64_t j = 0; j < V; ++j) {
    z[j] = simd_exp(z[j] - top);
    total += z[j];
  }
  *sum = total;  // a NaN among the logits may slip past max, but not past this sum
  return std::log(total) - at_target;
}

// d(mean loss)/d(logits) = (softmax - onehot(target)) * weight, from e = exp(z - max). g may be e.
template <class A, class T>
void row_gradient(const A* e, A sum, int64_t V, int32_t target, A weight, T* g) {
  const A factor = weight / sum, at_target = e[target] * factor - weight;
#pragma omp simd
  for (int64_t j = 0; j < V; ++j) g[j] = T(e[j] * factor);
  g[target] = T(at_target);
}

template <class T>
struct Loss {
  using A = acc_t<T>;
  const int32_t* target;
  int32_t ignore;
  A weight;  // 1 / rows that count
  int64_t V;

  // Loss of row n, whose logits are z; g is null if no gradient is wanted.
  A row(int64_t n, A* z, T* g) const {
    if (target[n] == ignore) {
      if (g) std::fill(g, g + V, T(0));
      return 0;
    }
    A sum;
    const A loss = row_loss(z, V, target[n], &sum);
    if (g) row_gradient(z, sum, V, target[n], weight, g);
    return loss;
  }
};

void check_targets(const Tensor& targets, int32_t ignore, int64_t V) {
  for (int64_t n = 0; n < targets.numel(); ++n) {
    const int32_t t = targets.data<int32_t>()[n];
    LLATTE_CHECK(t == ignore || (t >= 0 && t < V), "linear_cross_entropy: target ", t, " at row ", n,
                 " is outside the vocabulary of ", V);
  }
}

template <class T>
void run(const Tensor& x, const Tensor& w, const Tensor& targets, int32_t ignore, Tensor& losses, Tensor& dx,
         Tensor& dw) {
  using A = acc_t<T>;
  const int64_t N = x.size(0), V = w.size(0), C = std::min(N, kChunk);
  const int32_t* target = targets.data<int32_t>();
  const int64_t counted = N - std::count(target, target + N, ignore);
  const Loss<T> loss{target, ignore, counted ? A(1) / A(counted) : A(0), V};
  const bool wants_gradient = dx.defined() || dw.defined();

  Tensor logits = Tensor::empty({C, V}, dtype_of<A>());
  Tensor gradient;  // f32 and f64: the same memory as the logits
  if (wants_gradient) gradient = std::is_same_v<A, T> ? logits : Tensor::empty({C, V}, dtype_of<T>());

  for (int64_t r0 = 0; r0 < N; r0 += C) {
    const int64_t rows = std::min(C, N - r0);
    const Tensor xr = x.slice(0, r0, r0 + rows);
    Tensor z = logits.slice(0, 0, rows);
    matmul(xr, w.transpose(0, 1), z, 0);
    A *pz = z.data<A>(), *pl = losses.data<A>() + r0;
    T* pg = wants_gradient ? gradient.data<T>() : nullptr;
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < rows; ++i) pl[i] = loss.row(r0 + i, pz + i * V, pg ? pg + i * V : nullptr);
    if (!wants_gradient) continue;
    const Tensor g = gradient.slice(0, 0, rows);
    if (Tensor d = dx.defined() ? dx.slice(0, r0, r0 + rows) : Tensor(); d.defined()) matmul(g, w, d, 0);
    if (dw.defined()) matmul(g.transpose(0, 1), xr, dw, r0 > 0 ? 1 : 0);
  }
}

}  // namespace

void linear_cross_entropy(const Tensor& x, const Tensor& w, const Tensor& targets, int32_t ignore_index,
                          Tensor& losses, Tensor& dx, Tensor& dw) {
  check_targets(targets, ignore_index, w.size(0));
  dispatch_float(x.dtype(), "linear_cross_entropy",
                 [&]<class T>() { run<T>(x, w, targets, ignore_index, losses, dx, dw); });
}

}  // namespace llatte::cpu
