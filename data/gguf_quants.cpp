// See gguf_quants.h. One reader per block type, each the formula of its type.
// Sums are not at the compiler's mercy (it may fuse d*q + m into one rounding): a scale of 11 bits (f16)
// times a sub-scale of at most 8 and a value of at most 6 fits the 24 bits of a float, so d*q is exact and
// fusing changes nothing.
#include "data/gguf_quants.h"
#include <algorithm>
#include <cmath>
#include <cstring>
#include "data/half.h"
#include "tensor/dtype.h"

namespace llatte {
namespace {

constexpr GgufTypeInfo kTypes[] = {{GgufType::F32, "F32", 1, 4},       {GgufType::F16, "F16", 1, 2},
                                   {GgufType::Q4_0, "Q4_0", 32, 18},   {GgufType::Q4_1, "Q4_1", 32, 20},
                                   {GgufType::Q5_0, "Q5_0", 32, 22},   {GgufType::Q5_1, "Q5_1", 32, 24},
                                   {GgufType::Q8_0, "Q8_0", 32, 34},   {GgufType::Q4_K, "Q4_K", 256, 144},
                                   {GgufType::Q5_K, "Q5_K", 256, 176}, {GgufType::Q6_K, "Q6_K", 256, 210},
                                   {GgufType::BF16, "BF16", 1, 2}};

struct NamedId {
  uint32_t id;
  const char* name;
};
constexpr NamedId kNotRead[] = {
    {9, "Q8_1"},     {10, "Q2_K"},  {11, "Q3_K"},   {15, "Q8_K"},  {16, "IQ2_XXS"}, {17, "IQ2_XS"},
    {18, "IQ3_XXS"}, {19, "IQ1_S"}, {20, "IQ4_NL"}, {21, "IQ3_S"}, {22, "IQ2_S"},   {23, "IQ4_XS"},
    {24, "I8"},      {25, "I16"},   {26, "I32"},    {27, "I64"},   {28, "F64"},     {29, "IQ1_M"},
    {34, "TQ1_0"},   {35, "TQ2_0"}, {39, "MXFP4"}};

using Bytes = const uint8_t*;

float f16_at(Bytes p) { return f16_to_f32(static_cast<uint16_t>(p[0] | p[1] << 8)); }

// ---- one block each: to[0, block) ------------------------------------------------------------------------

void read_f32(Bytes b, float* to) { std::memcpy(to, b, sizeof *to); }
void read_f16(Bytes b, float* to) { *to = f16_at(b); }
void read_bf16(Bytes b, float* to) {
  bf16 v;
  std::memcpy(&v.bits, b, sizeof v.bits);
  *to = v;
}

void read_q8_0(Bytes b, float* to) {
  const float d = f16_at(b);
  for (int i = 0; i < 32; ++i) to[i] = d * static_cast<float>(static_cast<int8_t>(b[2 + i]));
}

// Value i is the low half of byte i, value 16 + i its high half.
int nibble(Bytes qs, int i) { return i < 16 ? qs[i] & 15 : qs[i - 16] >> 4; }
// The same with a fifth bit from the 32 bits at qh.
int nibble_and_bit(Bytes qs, Bytes qh, int i) { return nibble(qs, i) | (qh[i / 8] >> i % 8 & 1) << 4; }

void read_q4_0(Bytes b, float* to) {
  const float d = f16_at(b);
  for (int i = 0; i < 32; ++i) to[i] = d * static_cast<float>(nibble(b + 2, i) - 8);
}

void read_q4_1(Bytes b, float* to) {
  const float d = f16_at(b), m = f16_at(b + 2);
  for (int i = 0; i < 32; ++i) to[i] = d * static_cast<float>(nibble(b + 4, i)) + m;
}

void read_q5_0(Bytes b, float* to) {
  const float d = f16_at(b);
  for (int i = 0; i < 32; ++i) to[i] = d * static_cast<float>(nibble_and_bit(b + 6, b + 2, i) - 16);
}

void read_q5_1(Bytes b, float* to) {
  const float d = f16_at(b), m = f16_at(b + 2);
  for (int i = 0; i < 32; ++i) to[i] = d * static_cast<float>(nibble_and_bit(b + 8, b + 4, i)) + m;
}

// Scale and minimum of sub-block s in [0,8): 6 bits each, packed in 12 bytes. The upper two bits of the last
// four pairs sit above the first four's six.
void scale_and_min(Bytes p, int s, float& scale, float& min) {
  const int i = s % 4;
  const int sc = s < 4 ? p[i] & 63 : (p[8 + i] & 15) | (p[i] >> 6) << 4;
  const int m = s < 4 ? p[4 + i] & 63 : p[8 + i] >> 4 | (p[4 + i] >> 6) << 4;
  scale = static_cast<float>(sc), min = static_cast<float>(m);
}

// Q4_K and, with a fifth bit per value at qh, Q5_K: sub-block s is the low (s even) or high halves of 32
// bytes.
void read_k(Bytes b, Bytes qh, Bytes qs, float* to) {
  const float d = f16_at(b), dmin = f16_at(b + 2);
  for (int s = 0; s < 8; ++s) {
    float scale, min;
    scale_and_min(b + 4, s, scale, min);
    for (int i = 0; i < 32; ++i) {
      const int low = qs[s / 2 * 32 + i] >> s % 2 * 4 & 15, high = qh ? (qh[i] >> s & 1) << 4 : 0;
      to[s * 32 + i] = d * scale * static_cast<float>(low | high) - dmin * min;
    }
  }
}
void read_q4_k(Bytes b, float* to) { read_k(b, nullptr, b + 16, to); }
void read_q5_k(Bytes b, float* to) { read_k(b, b + 16, b + 48, to); }

// Two halves of 128 values; in each, 64 bytes of low halves, 32 bytes of upper pairs of bits, 8 scales.
void read_q6_k(Bytes b, float* to) {
  const Bytes ql = b, qh = b + 128, scales = b + 192;
  const float d = f16_at(b + 208);
  for (int i = 0; i < 256; ++i) {
    const int half = i / 128, quarter = i % 128 / 32, at = i % 32;
    const int low = ql[half * 64 + quarter % 2 * 32 + at] >> quarter / 2 * 4 & 15;
    const int high = qh[half * 32 + at] >> quarter * 2 & 3;
    const float scale = d * static_cast<float>(static_cast<int8_t>(scales[i / 16]));
    to[i] = scale * static_cast<float>((low | high << 4) - 32);
  }
}

using ReadBlock = void (*)(Bytes, float*);

ReadBlock reader_of(GgufType t) {
  switch (t) {
    case GgufType::F32: return read_f32;
    case GgufType::F16: return read_f16;
    case GgufType::BF16: return read_bf16;
    case GgufType::Q8_0: return read_q8_0;
    case GgufType::Q4_0: return read_q4_0;
    case GgufType::Q4_1: return read_q4_1;
    case GgufType::Q5_0: return read_q5_0;
    case GgufType::Q5_1: return read_q5_1;
    case GgufType::Q4_K: return read_q4_k;
    case GgufType::Q5_K: return read_q5_k;
    case GgufType::Q6_K: break;
  }
  return read_q6_k;
}

// ---- floats to blocks ------------------------------------------------------------------------------------

void put16(std::byte* to, uint16_t v) { std::memcpy(to, &v, sizeof v); }

void write_f16(const float* x, std::byte* to) {
  const uint16_t h = f32_to_f16(*x);
  LLATTE_CHECK(!std::isfinite(*x) || std::isfinite(f16_to_f32(h)), "F16 cannot hold ", *x,
               ", its largest number is 65504; choose BF16 or F32");
  put16(to, h);
}

void write_q8_0(const float* x, std::byte* to) {
  float most = 0;
  for (int i = 0; i < 32; ++i) {
    LLATTE_CHECK(std::isfinite(x[i]), "Q8_0 cannot hold ", x[i], "; choose F32, F16 or BF16");
    most = std::max(most, std::abs(x[i]));
  }
  const float d = most / 127;
  const uint16_t scale = f32_to_f16(d);
  LLATTE_CHECK(std::isfinite(f16_to_f32(scale)), "Q8_0 cannot hold ", most,
               ", its largest number is 8319008; choose BF16 or F32");
  // Zeros, and numbers so small that 1/d overflows: their scale is 0 as f16.
  const float inverse = std::isfinite(1 / d) ? 1 / d : 0;
  put16(to, scale);
  for (int i = 0; i < 32; ++i)
    to[2 + i] = static_cast<std::byte>(static_cast<int8_t>(std::round(x[i] * inverse)));
}

}  // namespace

const GgufTypeInfo* find_gguf_type(uint32_t id) {
  for (const GgufTypeInfo& i : kTypes)
    if (static_cast<uint32_t>(i.type) == id) return &i;
  return nullptr;
}

const GgufTypeInfo& info_of(GgufType t) { return *find_gguf_type(static_cast<uint32_t>(t)); }

std::string gguf_type_name(uint32_t id) {
  if (const GgufTypeInfo* i = find_gguf_type(id)) return i->name;
  for (const NamedId& n : kNotRead)
    if (n.id == id) return n.name;
  return std::to_string(id);
}

void dequantize(GgufType t, const std::byte* from, int64_t n, float* to) {
  const GgufTypeInfo& i = info_of(t);
  LLATTE_CHECK(n % i.block == 0, "dequantize: ", n, " values are no whole number of ", i.name, " blocks of ",
               i.block);
  if (t == GgufType::F32) {
    std::memcpy(to, from, static_cast<size_t>(n) * sizeof *to);
    return;
  }
  const ReadBlock read = reader_of(t);
  for (int64_t b = 0; b < n / i.block; ++b)
    read(reinterpret_cast<Bytes>(from) + b * i.bytes, to + b * i.block);
}

void quantize(GgufType t, const float* from, int64_t n, std::byte* to) {
  const GgufTypeInfo& i = info_of(t);
  LLATTE_CHECK(n % i.block == 0, "quantize: ", n, " values are no whole number of ", i.name, " blocks of ",
               i.block);
  switch (t) {
    case GgufType::F32: std::memcpy(to, from, static_cast<size_t>(n) * sizeof *from); return;
    case GgufType::F16:
      for (int64_t k = 0; k < n; ++k) write_f16(from + k, to + 2 * k);
      return;
    case GgufType::BF16:
      for (int64_t k = 0; k < n; ++k) put16(to + 2 * k, bf16(from[k]).bits);
      return;
    case GgufType::Q8_0:
      for (int64_t k = 0; k < n / 32; ++k) write_q8_0(from + 32 * k, to + 34 * k);
      return;
    default: LLATTE_FAIL("quantize: ", i.name, " is not written; have F32, F16, BF16, Q8_0");
  }
}

}  // namespace llatte
