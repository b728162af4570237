// How a cache keeps a row of W numbers in few bits, and how it is read. Codes are whole numbers in
// [-m-1, m], m = 127 or 7, packed into the bytes of the row:
//   8 bits  byte j is number j, as a signed byte
//   4 bits  byte j is number j (low half) and number j + ceil(W/2) (high half), each plus 8
// so that reading is one straight loop each, and then one multiplication by the scale of the group.
#pragma once
#include "tensor/cpu/simd_math.h"
#include "tensor/kernels.h"

namespace llatte::cpu {

template <class A>
void decode_bytes(const int8_t* code, int64_t W, A* y) {
#pragma omp simd
  for (int64_t j = 0; j < W; ++j) y[j] = A(code[j]);
}

template <class A>
void decode_nibbles(const uint8_t* code, int64_t W, A* y) {
  const int64_t half = (W + 1) / 2;
#pragma omp simd
  for (int64_t j = 0; j < half; ++j) y[j] = A(int32_t(code[j] & 15) - 8);
#pragma omp simd
  for (int64_t j = half; j < W; ++j) y[j] = A(int32_t(code[j - half] >> 4) - 8);
}

template <class A>
void scale_groups(const bf16* scale, const int32_t* groups, int64_t G, A* y) {
  for (int64_t g = 0; g < G; ++g) {
    const A s = A(float(scale[g]));
#pragma omp simd
    for (int32_t j = groups[g]; j < groups[g + 1]; ++j) y[j] *= s;
  }
}

template <class T, class A>
void widen(const T* x, int64_t W, A* y) {
#pragma omp simd
  for (int64_t j = 0; j < W; ++j) y[j] = A(x[j]);
}

// n rows of sequence b, from row `first` on, as numbers, `ld` apart.
template <class A>
void load_rows(const CacheRows& rows, int64_t b, int64_t first, int64_t n, A* y, int64_t ld) {
  const Tensor& data = rows.data;
  const int64_t start = b * data.stride(0) + first * data.stride(1), step = data.stride(1);
  if (rows.bits == 0)
    return dispatch_float(data.dtype(), "cache rows", [&]<class T>() {
      const T* x = data.ptr<T>() + start;
      for (int64_t i = 0; i < n; ++i) widen(x + i * step, rows.W, y + i * ld);
    });
  const int64_t G = rows.scales.size(2);
  const int32_t* groups = rows.groups.data<int32_t>();
  const bf16* scale = rows.scales.ptr<bf16>() + b * rows.scales.stride(0) + first * G;
  for (int64_t i = 0; i < n; ++i) {
    const int32_t* words = data.ptr<int32_t>() + start + i * step;
    A* to = y + i * ld;
    if (rows.bits == 8) decode_bytes(reinterpret_cast<const int8_t*>(words), rows.W, to);
    else decode_nibbles(reinterpret_cast<const uint8_t*>(words), rows.W, to);
    scale_groups(scale + i * G, groups, G, to);
  }
}

}  // namespace llatte::cpu
