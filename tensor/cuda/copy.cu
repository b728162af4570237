// Copies between any two layouts and types, and fills. The two views are merged into as few loops as their
// strides allow (tensor/strided.h); then, by what is found,
//   dense both sides           packs of 16 bytes, or the copy engine if nothing is converted
//   dense innermost loop       the same with the outer loops unrolled from the index of the pack
//   innermost loops differ     tiles turned in shared memory, so that reads and writes both run along rows
//   anything else              number by number
#include <algorithm>
#include <cmath>
#include "tensor/cuda/pack.h"
#include "tensor/strided.h"

namespace llatte::cuda {
namespace {

template <class Y, class X, int N>
__device__ Pack<Y, N> convert_pack(const Pack<X, N>& x) {
  Pack<Y, N> y;
#pragma unroll
  for (int j = 0; j < N; ++j) y.at[j] = convert<Y>(x.at[j]);
  return y;
}

template <class X, class Y, int N>
__global__ void copy_dense(const X* x, Y* y, int64_t n) {
  const int64_t at = global_thread() * N;
  if (at < n) store<N>(y, at, n, convert_pack<Y>(load<N>(x, at, n)));
}

struct Offsets {
  int64_t x = 0, y = 0;
};

// Where number `index` of the first `count` loops lies on either side.
__device__ inline Offsets offsets_of(const Loops& loops, int count, int64_t index) {
  Offsets o;
  for (int d = count - 1; d >= 0; --d) {
    const Loop& l = loops.at[size_t(d)];
    const int64_t i = index % l.n;
    o.x += i * l.sx, o.y += i * l.sy, index /= l.n;
  }
  return o;
}

// N neighbours each; the innermost loop is dense on both sides and a multiple of N, unless N is 1.
template <class X, class Y, int N>
__global__ void copy_strided(const X* x, Y* y, Loops loops, int64_t n) {
  const int64_t at = global_thread() * N;
  if (at >= n) return;
  const Offsets o = offsets_of(loops, loops.count, at);
  if constexpr (N == 1) y[o.y] = convert<Y>(x[o.x]);
  else store<N>(y + o.y, 0, N, convert_pack<Y>(load<N>(x + o.x, 0, N)));
}

constexpr int kTile = 32, kTileRows = 8;  // a block of 32 x 8 threads turns a tile of 32 x 32

template <class Y>
struct Turned {
  Y at[kTile][kTile + 1];  // one more: a column's numbers lie in different banks
};

// The last two loops: `a` dense in x, `b` dense in y. Tiles of a x b for every index of the loops before.
template <class X, class Y>
__global__ void copy_turned(const X* x, Y* y, Loops loops, Loop a, Loop b) {
  auto& s = block_shared<Turned<Y>>();
  const int64_t tiles_a = (a.n + kTile - 1) / kTile, tiles_b = (b.n + kTile - 1) / kTile, tile = blockIdx.x;
  const Offsets o = offsets_of(loops, loops.count - 2, tile / tiles_b / tiles_a);
  const int64_t a0 = tile / tiles_b % tiles_a * kTile, b0 = tile % tiles_b * kTile;
  const int i = int(threadIdx.x);
  for (int r = int(threadIdx.y); r < kTile; r += kTileRows)
    if (a0 + i < a.n && b0 + r < b.n) s.at[r][i] = convert<Y>(x[o.x + (a0 + i) * a.sx + (b0 + r) * b.sx]);
  __syncthreads();
  for (int r = int(threadIdx.y); r < kTile; r += kTileRows)
    if (a0 + r < a.n && b0 + i < b.n) y[o.y + (a0 + r) * a.sy + (b0 + i) * b.sy] = s.at[i][r];
}

// The loop that is dense in x comes last, the one dense in y before it.
bool is_turned(Loops& l) {
  const auto end = l.at.begin() + l.count;
  const auto in_x = std::find_if(l.at.begin(), end, [](const Loop& k) { return k.sx == 1; });
  const auto in_y = std::find_if(l.at.begin(), end, [](const Loop& k) { return k.sy == 1; });
  if (in_x == end || in_y == end || in_x == in_y || std::min(in_x->n, in_y->n) < kTile / 4) return false;
  const Loop a = *in_x, b = *in_y;
  const auto rest = std::remove_if(l.at.begin(), end, [](const Loop& k) { return k.sx == 1 || k.sy == 1; });
  rest[0] = b, rest[1] = a;
  return true;
}

// The innermost loop, the pointers and all steps allow whole packs of N.
template <int N, class X, class Y>
bool fits_packs(const X* x, const Y* y, const Loops& l) {
  const Loop inner = l.at[size_t(l.count - 1)];
  bool fits = inner.sx == 1 && inner.sy == 1 && inner.n % N == 0 && is_aligned<N>(x) && is_aligned<N>(y);
  for (int d = 0; d + 1 < l.count; ++d)
    fits = fits && l.at[size_t(d)].sx % N == 0 && l.at[size_t(d)].sy % N == 0;
  return fits;
}

template <class X, class Y>
void run(const X* x, Y* y, Loops loops, int64_t n) {
  constexpr int N = kPack<X, Y>;
  const Loop inner = loops.at[size_t(loops.count - 1)];
  const Grid by_pack{blocks_for(n, kThreads * N), unsigned(kThreads)},
      by_number{blocks_for(n, kThreads), unsigned(kThreads)};
  if (loops.count == 1 && inner.sx == 1 && inner.sy == 1) {
    if constexpr (std::is_same_v<X, Y>)
      LLATTE_CUDA_CHECK("copy",
                        cudaMemcpyAsync(y, x, size_t(n) * sizeof(X), cudaMemcpyDeviceToDevice, stream()));
    else launch("copy_dense", by_pack, copy_dense<X, Y, N>, x, y, n);
  } else if (fits_packs<N>(x, y, loops)) {
    launch("copy_strided", by_pack, copy_strided<X, Y, N>, x, y, loops, n);
  } else if (is_turned(loops)) {
    const Loop a = loops.at[size_t(loops.count - 1)], b = loops.at[size_t(loops.count - 2)];
    const unsigned each = blocks_for(a.n, kTile) * blocks_for(b.n, kTile);
    launch("copy_turned", {unsigned(n / (a.n * b.n)) * each, dim3(kTile, kTileRows), sizeof(Turned<Y>)},
           copy_turned<X, Y>, x, y, loops, a, b);
  } else {
    launch("copy_strided", by_number, copy_strided<X, Y, 1>, x, y, loops, n);
  }
}

template <class T, int N>
__global__ void fill_kernel(T* y, int64_t n, T value) {
  const int64_t at = global_thread() * N;
  Pack<T, N> pack;
#pragma unroll
  for (int j = 0; j < N; ++j) pack.at[j] = value;
  if (at < n) store<N>(y, at, n, pack);
}

}  // namespace

void copy(const Tensor& x, Tensor& y) {
  const Loops loops = loops_over("copy", x, y);
  if (x.numel() == 0) return;
  dispatch_any(x.dtype(), "copy", [&]<class X>() {
    dispatch_any(y.dtype(), "copy", [&]<class Y>() { run(x.ptr<X>(), y.ptr<Y>(), loops, x.numel()); });
  });
}

void fill(Tensor& y, double value) {
  const int64_t n = y.numel();
  if (value == 0 && !std::signbit(value) && n > 0) {
    LLATTE_CHECK(y.is_contiguous(), "fill: strides ", y.strides(), " do not match shape ", y.shape());
    LLATTE_CUDA_CHECK("fill", cudaMemsetAsync(y.raw(), 0, y.bytes(), stream()));
    return;
  }
  dispatch_any(y.dtype(), "fill", [&]<class T>() {
    constexpr int N = kPack<T>;
    launch("fill", {blocks_for(n, kThreads * N), unsigned(kThreads)}, fill_kernel<T, N>, y.data<T>(), n,
           convert<T>(value));
  });
}

}  // namespace llatte::cuda
