#include "data/blend.h"
#include <algorithm>
#include <bit>
#include <numeric>
#include <random>
#include <utility>
#include "tensor/check.h"

namespace llatte {

Blend blend(const std::vector<int64_t>& sizes, std::vector<double> weights) {
  if (weights.empty()) weights.assign(sizes.begin(), sizes.end());
  const double sum = std::accumulate(weights.begin(), weights.end(), 0.0);
  for (double& w : weights) w /= sum;
  const int64_t total = std::accumulate(sizes.begin(), sizes.end(), int64_t(0));
  LLATTE_CHECK(total < (int64_t(1) << 32) && sizes.size() < 65536, "blend: ", sizes.size(), " sources of ",
               total, " samples are more than 65535 or 2^32; raise sequence_length");
  Blend b;
  b.taken.assign(sizes.size(), 0);
  b.source.reserve(total);
  b.sample.reserve(total);
  for (int64_t i = 0; i < total; ++i) {
    size_t best = 0;
    double most = 0;
    for (size_t f = 0; f < sizes.size(); ++f) {
      // volatile: rounded before the subtraction, as numpy has it; a fused multiply-add breaks ties otherwise
      const volatile double share = weights[f] * static_cast<double>(std::max<int64_t>(i, 1));
      const double behind = share - static_cast<double>(b.taken[f]);
      if (f == 0 || behind > most) best = f, most = behind;
    }
    b.source.push_back(static_cast<uint16_t>(best));
    b.sample.push_back(static_cast<uint32_t>(b.taken[best]++ % sizes[best]));
  }
  return b;
}

namespace {

// numpy's legacy bounded integer in [0, max]: mask to the next power of two, draw until it fits.
template <class Next32>
uint32_t bounded(Next32& next, uint32_t max) {
  const uint32_t mask = max == 0 ? 0 : ~uint32_t(0) >> std::countl_zero(max);
  uint32_t v = next() & mask;
  while (v > max) v = next() & mask;
  return v;
}

// Fisher-Yates from the end, as numpy does it.
template <class Next32, class T>
void shuffle(Next32& next, std::vector<T>& a) {
  for (size_t i = a.size(); i-- > 1;) std::swap(a[i], a[bounded(next, static_cast<uint32_t>(i))]);
}

// PCG64 (XSL-RR, pcg-random.org) in the state that numpy's SeedSequence(42) puts it in. A 32-bit draw is half
// of a 64-bit one, the low half first.
class Pcg64Seed42 {
 public:
  uint32_t operator()() {
    if (std::exchange(has_high_, !has_high_)) return high_;
    const uint64_t v = next64();
    high_ = static_cast<uint32_t>(v >> 32);
    return static_cast<uint32_t>(v);
  }

 private:
  using U128 = unsigned __int128;
  static constexpr U128 wide(uint64_t high, uint64_t low) { return U128(high) << 64 | low; }
  uint64_t next64() {
    state_ =
        state_ * wide(0x2360ed051fc65da4, 0x4385df649fccf645) + wide(0xfa505436c9a8416e, 0x66caf2e28d25abff);
    const uint64_t folded = static_cast<uint64_t>(state_ >> 64) ^ static_cast<uint64_t>(state_);
    return std::rotr(folded, static_cast<int>(state_ >> 122));
  }
  U128 state_ = wide(0xcea44f6798798f2a, 0xacbc7c9d68860ac8);
  uint32_t high_ = 0;
  bool has_high_ = false;
};

}  // namespace

void random_state_shuffle(uint32_t seed, std::vector<uint32_t>& order, int64_t n) {
  std::mt19937 generator(seed);  // the very MT19937 and seeding of numpy's RandomState
  const auto next = [&] { return static_cast<uint32_t>(generator()); };
  order.resize(static_cast<size_t>(n));
  std::iota(order.begin(), order.end(), 0u);
  shuffle(next, order);
}

std::vector<int64_t> default_rng_42_permutation(int64_t n) {
  Pcg64Seed42 next;
  std::vector<int64_t> order(static_cast<size_t>(n));
  std::iota(order.begin(), order.end(), int64_t(0));
  shuffle(next, order);
  return order;
}

}  // namespace llatte
