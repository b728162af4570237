// Rows into a cache and out of it: cast, or rounded to codes of 8 or 4 bits (tensor/cpu/cache_rows.h).
#include "tensor/cpu/cache_rows.h"
#include <algorithm>
#include <cmath>
#include <vector>
#include "tensor/cpu/parallel.h"

namespace llatte::cpu {
namespace {

// The step between codes, small enough that no number is cut off: the larger of the two extremes, -x or x,
// lies at code -(m+1), so the step takes its sign, and the other one at m or below. NaN where some x is not
// finite, since 0 x is 0 for finite x alone.
template <class T>
bf16 scale_of(const T* x, int64_t n, float m) {
  float above = 0, below = 0, zero = 0;
#pragma omp simd reduction(max : above, below) reduction(+ : zero)
  for (int64_t j = 0; j < n; ++j) {
    const float v = float(x[j]);
    above = above < v ? v : above;
    below = below < -v ? -v : below;
    zero += 0 * v;
  }
  const float big = std::max(above, below), small = std::min(above, below);
  const float step = std::max(big / (m + 1), small / m) + zero;
  return bf16(above > below ? -step : step);
}

// The code of x: the nearest multiple of the scale. Where the scale is 0 or NaN all codes are 0.
template <class T>
int32_t code_of(T x, float scale, float m) {
  return std::abs(scale) > 0 ? static_cast<int32_t>(std::clamp(std::nearbyint(float(x) / scale), -m - 1, m))
                             : 0;
}

template <class T>
void encode(const T* x, const CacheRows& rows, uint8_t* to, bf16* scales) {
  const int64_t half = (rows.W + 1) / 2;
  const float m = rows.bits == 8 ? 127 : 7;
  const int32_t* groups = rows.groups.data<int32_t>();
  if (rows.bits == 4) std::fill_n(to, half, uint8_t(0));
  for (int64_t g = 0; g < rows.groups.numel() - 1; ++g) {
    scales[g] = scale_of(x + groups[g], groups[g + 1] - groups[g], m);
    for (int64_t j = groups[g]; j < groups[g + 1]; ++j) {
      const int32_t code = code_of(x[j], scales[g], m);
      if (rows.bits == 8) to[j] = static_cast<uint8_t>(code);
      else to[j < half ? j : j - half] |= static_cast<uint8_t>((code + 8) << (j < half ? 0 : 4));
    }
  }
}

}  // namespace

void write_rows(const Tensor& x, int64_t at, CacheRows& rows) {
  const int64_t B = x.size(0), T = x.size(1), W = x.size(2);
  if (rows.bits == 0) {
    rows.data.slice(1, at, at + T).copy_from(x);
    return;
  }
  const int64_t S = rows.data.size(1), G = rows.scales.size(2), words = rows.data.size(2);
  dispatch_float(x.dtype(), "write_rows", [&]<class N>() {
    const N* px = x.data<N>();
    int32_t* code = rows.data.data<int32_t>();
    bf16* scale = rows.scales.data<bf16>();
    for_rows(B * T, W * 8, [=, &rows](int64_t bt) {
      const int64_t row = bt / T * S + at + bt % T;
      encode(px + bt * W, rows, reinterpret_cast<uint8_t*>(code + row * words), scale + row * G);
    });
  });
}

void read_rows(const CacheRows& rows, Tensor& y) {
  const int64_t n = y.size(1), W = rows.W;
  if (rows.bits == 0) return y.copy_from(rows.data.slice(1, 0, n));
  dispatch_float(y.dtype(), "read_rows", [&]<class T>() {
    using A = acc_t<T>;
    T* py = y.data<T>();
    for_rows(y.size(0) * n, W, [=, &rows](int64_t bn) {
      thread_local std::vector<A> row;
      row.resize(static_cast<size_t>(W));
      load_rows(rows, bn / n, bn % n, 1, row.data(), W);
      widen(row.data(), W, py + bn * W);
    });
  });
}

}  // namespace llatte::cpu
