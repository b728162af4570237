// How a number of cached values is shared out: among the pairs of a layer, k and v, or all layers.
#pragma once
#include <cstdint>
#include <vector>

namespace llatte {

// What can be had of one kind: planes of a pair, dims of a latent. Each takes `cost` values, 1 or 2, and the
// n-th saves gains[n] of error; gains never rise. The first `needed` must be taken.
struct Spectrum {
  std::vector<double> gains;
  int64_t cost = 1;
  int64_t needed = 0;
};

// How many to take of each, so that the gains sum up to the most that `budget` values can buy. Of equal gains
// the earlier list's is taken first. A budget that does not suffice for what is needed: an Error.
std::vector<int64_t> allocate(const std::vector<Spectrum>& spectra, int64_t budget);

}  // namespace llatte
