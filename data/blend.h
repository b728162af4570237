// The order in which samples are served, as nanotron's Nanoset has it, so that a run here sees the samples a
// run there would. numpy's generators are restated from their definitions: MT19937 with masked rejection for
// RandomState(seed).shuffle, PCG64 for default_rng(42).permutation.
#pragma once
#include <cstdint>
#include <vector>

namespace llatte {

// One epoch of the blend, before shuffling: position i is sample[i] of source[i].
struct Blend {
  std::vector<uint16_t> source;
  std::vector<uint32_t> sample;
  std::vector<int64_t> taken;  // by source, in one epoch
};
// An epoch is as long as all sources together. At position i the source with the largest
// w * max(i, 1) - taken serves its next sample (the first such source on a tie; back to sample 0 after its
// last). Weights are normalised to 1; empty: by size, and then every sample is served exactly once.
Blend blend(const std::vector<int64_t>& sizes, std::vector<double> weights);

// order := numpy.random.RandomState(seed).shuffle(arange(n))
void random_state_shuffle(uint32_t seed, std::vector<uint32_t>& order, int64_t n);
// numpy.random.default_rng(42).permutation(n): the order of the files of a folder.
std::vector<int64_t> default_rng_42_permutation(int64_t n);

}  // namespace llatte
