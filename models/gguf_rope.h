// GGUF files hold RoPE's llama3 scaling as its effect, one factor for each pair (rope_freqs.weight): the
// frequency of pair j is divided by factor j. Here the rule is found again from the factors.
#pragma once
#include <optional>
#include <string>
#include <vector>
#include "models/llama.h"

namespace llatte {

// base frequency / scaled frequency, for each pair.
std::vector<double> rope_factors(const LlamaConfig& c);

// A scaling that gives these factors (to 1e-6); c has rope_theta and head_dim. None if all are 1. Factors
// that no llama3 rule gives are an Error. Where rules of several settings give the same factors, the
// published setting (low_freq_factor 1, high_freq_factor 4) is preferred.
std::optional<RopeScaling> scaling_of(const std::vector<double>& factors, const LlamaConfig& c,
                                      const std::string& where);

}  // namespace llatte
