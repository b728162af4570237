// Philox4x32-10, the counter-based random generator of Salmon et al. (SC'11, "Random123"): four random words
// are a function of a 128-bit counter and a 64-bit key, so any element of any stream can be made on its own,
// on any device, in any order. Here key = seed and counter = (block, stream); element i is word i % 4 of
// block i / 4. Included by the CPU and the CUDA kernels, so that both draw the same numbers.
#pragma once
#include <cmath>
#include <cstdint>
#include "tensor/device.h"

namespace llatte {

struct Philox {
  uint32_t word[4];
};

// One block: ten rounds of two 32 x 32 -> 64 bit products, the key stepped by Weyl constants.
LLATTE_HOST_DEVICE inline Philox philox4x32(Philox c, uint32_t k0, uint32_t k1) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t(0xD2511F53u) * c.word[0], p1 = uint64_t(0xCD9E8D57u) * c.word[2];
    c = {{uint32_t(p1 >> 32) ^ c.word[1] ^ k0, uint32_t(p1), uint32_t(p0 >> 32) ^ c.word[3] ^ k1,
          uint32_t(p0)}};
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return c;
}

LLATTE_HOST_DEVICE inline Philox philox_block(uint64_t seed, uint64_t stream, uint64_t block) {
  return philox4x32({{uint32_t(block), uint32_t(block >> 32), uint32_t(stream), uint32_t(stream >> 32)}},
                    uint32_t(seed), uint32_t(seed >> 32));
}

// In [0,1), 24 bits: exact in f32.
LLATTE_HOST_DEVICE inline double uniform_of(uint32_t word) { return (word >> 8) * (1.0 / 16777216.0); }

// Box-Muller: words (2j, 2j+1) of a block give normals 2j and 2j+1. In double, where the last bit of a
// device's log or cos is lost in the rounding to f32. Largest value: sqrt(-2 log 2^-33) = 6.8.
LLATTE_HOST_DEVICE inline void normals_of(const Philox& b, double out[4]) {
  for (int j = 0; j < 4; j += 2) {
    const double u = (b.word[j] + 0.5) * (1.0 / 4294967296.0), v = b.word[j + 1] * (1.0 / 4294967296.0);
    const double radius = sqrt(-2.0 * log(u)), angle = 6.283185307179586476925 * v;
    out[j] = radius * cos(angle);
    out[j + 1] = radius * sin(angle);
  }
}

}  // namespace llatte
