// Rows into a cache and out of it: cast, or rounded to codes of 8 or 4 bits, the same bits as on the CPU
// (tensor/cpu/cache_rows.h says how they are packed). A block for each row.
#include "tensor/cuda/cache_rows.h"

namespace llatte::cuda {
namespace {

constexpr int kRowThreads = 128, kWarps = kRowThreads / 32;

// The step between codes of x[begin, end), small enough that no number is cut off: the larger of the two
// extremes, -x or x, lies at code -(m+1), so the step takes its sign, and the other one at m or below. NaN
// where some x is not finite, since 0 x is 0 for finite x alone. By one warp.
template <class T>
__device__ bf16 scale_of(const T* x, int begin, int end, float m) {
  float above = 0, below = 0, zero = 0;
  for (int j = begin + int(threadIdx.x) % 32; j < end; j += 32) {
    const float v = float(x[j]);
    above = above < v ? v : above;
    below = below < -v ? -v : below;
    zero += 0 * v;
  }
  above = warp_max(above), below = warp_max(below), zero = warp_sum(zero);
  const float big = fmaxf(above, below), small = fminf(above, below);
  const float step = fmaxf(big / (m + 1), small / m) + zero;
  return bf16(above > below ? -step : step);
}

// The code of x: the nearest multiple of the scale. Where the scale is 0 or NaN all codes are 0.
__device__ inline int code_of(float x, float scale, float m) {
  return fabsf(scale) > 0 ? int(fminf(fmaxf(rintf(x / scale), -m - 1), m)) : 0;
}

template <class T, int Bits>
__global__ void __launch_bounds__(kRowThreads)
    encode_rows(const T* xs, int tokens, int64_t at, int64_t S, CodeRows<Bits> rows, uint8_t* codes,
                bf16* scales) {
  const int64_t row = blockIdx.x / tokens * S + at + blockIdx.x % tokens;
  const int W = rows.width;
  const T* x = xs + int64_t(blockIdx.x) * W;
  bf16* scale = scales + row * rows.G;
  constexpr float m = Bits == 8 ? 127 : 7;
  for (int g = int(threadIdx.x) / 32; g < rows.G; g += kWarps) {
    const bf16 step = scale_of(x, rows.groups[g], rows.groups[g + 1], m);
    if (threadIdx.x % 32 == 0) scale[g] = step;
  }
  __syncthreads();
  const auto code = [&](int j) { return code_of(float(x[j]), float(scale[rows.column(j).group]), m); };
  uint8_t* to = codes + row * rows.row_bytes;
  for (int j = threadIdx.x; j < (Bits == 8 ? W : rows.half); j += kRowThreads) {
    if (Bits == 8) to[j] = uint8_t(code(j));
    else to[j] = uint8_t((code(j) + 8) | (j + rows.half < W ? (code(j + rows.half) + 8) << 4 : 0));
  }
}

template <class T, int Bits>
__global__ void __launch_bounds__(kRowThreads) decode_rows(CodeRows<Bits> all, int n, T* ys) {
  const auto rows = all.of(int(blockIdx.x) / n);
  T* y = ys + int64_t(blockIdx.x) * rows.width;
  for (int j = threadIdx.x; j < rows.width; j += kRowThreads)
    y[j] = T(rows.template at<acc_t<T>>(int(blockIdx.x) % n, rows.column(j)));
}

template <class F>
void dispatch_bits(int bits, F&& f) {
  if (bits == 8) f.template operator()<8>();
  else f.template operator()<4>();
}

}  // namespace

void write_rows(const Tensor& x, int64_t at, CacheRows& rows) {
  const int64_t B = x.size(0), T = x.size(1);
  if (rows.bits == 0) {
    rows.data.slice(1, at, at + T).copy_from(x);
    return;
  }
  dispatch_float(x.dtype(), "write_rows", [&]<class N>() {
    dispatch_bits(rows.bits, [&]<int Bits>() {
      launch("encode_rows", {unsigned(B * T), kRowThreads}, encode_rows<N, Bits>, x.data<N>(), int(T), at,
             rows.data.size(1), code_rows<Bits>(rows, 0, rows.W), static_cast<uint8_t*>(rows.data.raw()),
             rows.scales.data<bf16>());
    });
  });
}

void read_rows(const CacheRows& rows, Tensor& y) {
  const int64_t n = y.size(1);
  if (rows.bits == 0) return y.copy_from(rows.data.slice(1, 0, n));
  dispatch_float(y.dtype(), "read_rows", [&]<class T>() {
    dispatch_bits(rows.bits, [&]<int Bits>() {
      launch("decode_rows", {unsigned(y.size(0) * n), kRowThreads}, decode_rows<T, Bits>,
             code_rows<Bits>(rows, 0, rows.W), int(n), y.data<T>());
    });
  });
}

}  // namespace llatte::cuda
