// IEEE binary16, as it stands in files: read only, widened exactly to float.
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

}  // namespace llatte
