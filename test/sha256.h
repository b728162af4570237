// SHA-256 (FIPS 180-4), for comparing tensors with the hashes in fixtures. Not for secrets, not fast.
#pragma once
#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <string>
#include <string_view>

namespace llatte::test {

// The first 32 bits of the fractional part of the square (or cube) roots of the first primes: the standard's
// "nothing up my sleeve" constants.
template <size_t N>
std::array<uint32_t, N> root_fractions(long double (*root)(long double)) {
  std::array<uint32_t, N> bits{};
  size_t found = 0;
  for (int p = 2; found < N; ++p) {
    bool prime = true;
    for (int d = 2; d * d <= p; ++d) prime = prime && p % d != 0;
    if (!prime) continue;
    const long double r = root(p);
    bits[found++] = static_cast<uint32_t>((r - std::floor(r)) * 4294967296.0L);
  }
  return bits;
}

inline void sha256_block(std::array<uint32_t, 8>& h, const unsigned char* block) {
  static const auto k = root_fractions<64>([](long double x) { return std::cbrt(x); });
  uint32_t w[64];
  for (int i = 0; i < 16; ++i)
    w[i] = uint32_t(block[4 * i]) << 24 | block[4 * i + 1] << 16 | block[4 * i + 2] << 8 | block[4 * i + 3];
  const auto r = [](uint32_t x, int n) { return std::rotr(x, n); };
  for (int i = 16; i < 64; ++i)
    w[i] = w[i - 16] + (r(w[i - 15], 7) ^ r(w[i - 15], 18) ^ w[i - 15] >> 3) + w[i - 7] +
           (r(w[i - 2], 17) ^ r(w[i - 2], 19) ^ w[i - 2] >> 10);
  auto s = h;
  for (int i = 0; i < 64; ++i) {
    const uint32_t t1 =
        s[7] + (r(s[4], 6) ^ r(s[4], 11) ^ r(s[4], 25)) + ((s[4] & s[5]) ^ (~s[4] & s[6])) + k[i] + w[i];
    const uint32_t t2 =
        (r(s[0], 2) ^ r(s[0], 13) ^ r(s[0], 22)) + ((s[0] & s[1]) ^ (s[0] & s[2]) ^ (s[1] & s[2]));
    s = {t1 + t2, s[0], s[1], s[2], s[3] + t1, s[4], s[5], s[6]};
  }
  for (int i = 0; i < 8; ++i) h[i] += s[i];
}

inline std::string sha256(std::string_view bytes) {
  auto h = root_fractions<8>([](long double x) { return std::sqrt(x); });
  std::string m(bytes);
  m += '\x80';
  while (m.size() % 64 != 56) m += '\0';
  for (int i = 7; i >= 0; --i) m += static_cast<char>(uint64_t(bytes.size()) * 8 >> 8 * i);
  for (size_t i = 0; i < m.size(); i += 64)
    sha256_block(h, reinterpret_cast<const unsigned char*>(m.data() + i));
  std::string hex;
  for (uint32_t v : h)
    for (int i = 28; i >= 0; i -= 4) hex += "0123456789abcdef"[v >> i & 15];
  return hex;
}

}  // namespace llatte::test
