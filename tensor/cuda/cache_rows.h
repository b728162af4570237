// Rows of a cache kept as codes, as kernels see them (tensor/cpu/cache_rows.h says how they are packed).
// Private to tensor/cuda.
#pragma once
#include "tensor/cuda/launch.h"

namespace llatte::cuda {

// Columns [begin, begin + width) of rows of codes (tensor/cpu/cache_rows.h says how they are packed).
template <int Bits>
struct CodeRows {
  const uint8_t* codes;
  const bf16* scales;
  const int32_t* groups;
  int64_t batch_bytes, row_bytes, batch_scales;
  int G, half, begin, width;  // half: columns in the low halves of the bytes of 4-bit codes

  struct Column {
    int byte, shift, group;
  };
  __device__ CodeRows of(int stream) const {
    CodeRows r = *this;
    r.codes += stream * batch_bytes;
    r.scales += stream * batch_scales;
    return r;
  }
  __device__ Column column(int c) const {
    const int j = begin + c;
    int g = 0;
    while (g + 1 < G && groups[g + 1] <= j) ++g;
    if (Bits == 8) return {j, 0, g};
    return j < half ? Column{j, 0, g} : Column{j - half, 4, g};
  }
  template <class A>
  __device__ A at(int m, const Column& c) const {
    const uint8_t byte = codes[m * row_bytes + c.byte];
    const int code = Bits == 8 ? int(int8_t(byte)) : int(byte >> c.shift & 15) - 8;
    return A(code) * A(float(scales[int64_t(m) * G + c.group]));
  }
};

// On the host: columns [begin, begin + width) of all rows.
template <int Bits>
CodeRows<Bits> code_rows(const CacheRows& rows, int64_t begin, int64_t width) {
  const int64_t G = rows.scales.size(2);
  return {static_cast<const uint8_t*>(rows.data.raw()),
          rows.scales.ptr<bf16>(),
          rows.groups.data<int32_t>(),
          rows.data.stride(0) * 4,
          rows.data.stride(1) * 4,
          rows.scales.stride(0),
          int(G),
          int((rows.W + 1) / 2),
          int(begin),
          int(width)};
}

}  // namespace llatte::cuda
