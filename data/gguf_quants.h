// The element types of GGUF files: blocks of `block` values in `bytes` bytes, and both ways between them and
// floats. Results are those of the gguf package (quants.py) bit for bit.
//   F32 F16 BF16                 read and written
//   Q8_0                         read and written: d*q, d = max|x| / 127 as f16
//   Q4_0 Q5_0  Q4_1 Q5_1         read: d*(q - 8 or 16), d*q + m; blocks of 32
//   Q4_K Q5_K Q6_K               read: 8 or 16 sub-blocks with 6 or 8 bit scales; blocks of 256
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>

namespace llatte {

// The numbers are those of the files.
enum class GgufType : uint32_t {
  F32 = 0,
  F16 = 1,
  Q4_0 = 2,
  Q4_1 = 3,
  Q5_0 = 6,
  Q5_1 = 7,
  Q8_0 = 8,
  Q4_K = 12,
  Q5_K = 13,
  Q6_K = 14,
  BF16 = 30
};

struct GgufTypeInfo {
  GgufType type;
  const char* name;
  int64_t block, bytes;
};

// Null if `id` is none of the above.
const GgufTypeInfo* find_gguf_type(uint32_t id);
const GgufTypeInfo& info_of(GgufType t);
// What a file's number means, also for types that are not read: "Q2_K", or "999" if nobody knows.
std::string gguf_type_name(uint32_t id);

// n values (a multiple of the block) from their bytes, which may be unaligned.
void dequantize(GgufType t, const std::byte* from, int64_t n, float* to);
// The other way, for F32, F16, BF16 and Q8_0; others are refused. A value that the type cannot hold is an
// Error: a finite one that F16 would make infinite, and in Q8_0, whose values share a scale, any that is not
// finite.
void quantize(GgufType t, const float* from, int64_t n, std::byte* to);

}  // namespace llatte
