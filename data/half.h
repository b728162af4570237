// IEEE binary16, as it stands in files: widened exactly to float, and rounded from it to nearest even.
#pragma once
#include <bit>
#include <cstdint>

namespace llatte {

// Moving the 15 value bits up by 13 puts exponent and mantissa in a float's places with a bias of 15 instead
// of 127; multiplying by 2^112 mends that, exactly, for normal and subnormal numbers alike.
inline float f16_to_f32(uint16_t h) {
  const uint32_t sign = uint32_t(h & 0x8000u) << 16, value = uint32_t(h & 0x7fffu) << 13;
  if (value >= 0x0f800000u) return std::bit_cast<float>(sign | value | 0x7f800000u);  // infinity, NaN
  const float scaled = std::bit_cast<float>(value) * 0x1p112f;
  return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(scaled));
}

// Too large becomes infinity, NaN stays NaN. Small numbers are rounded by an addition: next to 0.5 a float's
// last bit is worth 2^-24, as that of a subnormal half.
inline uint16_t f32_to_f16(float f) {
  const uint32_t u = std::bit_cast<uint32_t>(f), sign = u >> 16 & 0x8000u, value = u & 0x7fffffffu;
  uint32_t half;
  if (value > 0x7f800000u) half = 0x7e00u | (value >> 13 & 0x3ffu);
  else if (value >= 0x477ff000u) half = 0x7c00u;  // 65520 and above
  else if (value < 0x38800000u)
    half = std::bit_cast<uint32_t>(std::bit_cast<float>(value) + 0.5f) - 0x3f000000u;  // below 2^-14
  else half = (value - 0x38000000u + 0xfffu + (value >> 13 & 1u)) >> 13;
  return static_cast<uint16_t>(sign | half);
}

}  // namespace llatte
