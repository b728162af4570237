// Latent attention with RoPE inside the latents (docs/latent-rope.md): what a layer of grouped-query
// attention becomes under every HlaRope but unified (unified.h).
//   aligned   k in planes (planes.h), v in a latent (low_rank.h)
//   hybrid    aligned for the pairs below rope_pairs; the dims of the others lose RoPE, as in MLA, and are
//             one more latent
//   original  k and v in a latent each, unrotated
//   latent    planes = pairs of consecutive rows of k's truncated SVD, dealt out to the heads, each turning
//             with the frequency of one pair of its head: a new start, whose lift is one-hot
//   latent_literal   the same planes, lifted by the dense up projection of the SVD
// q is factored as k is, or not at all. Everything is f64.
#pragma once
#include "convert/attention.h"
#include "convert/low_rank.h"

namespace llatte {

// config.hla of what the settings ask for. Ranks are dealt out by what the source's weights say.
HlaConfig hla_config(const Checkpoint& source, const ConversionSettings& settings);
// The same without weights, for a model that begins at random: every layer alike, planes dealt out evenly
// over the pairs. `c`: of the model, without hla. Settings that need weights: an Error.
HlaConfig new_hla_config(const LlamaConfig& c, const ConversionSettings& settings);

LayerWeights hla_weights(const Checkpoint& source, const ConversionPlan& plan, int64_t layer,
                         LayerError& error);

// `plan` as `rope` (original or aligned) with everything kept: the source's own function.
ConversionPlan at_full_rank(const Checkpoint& source, const ConversionPlan& plan, HlaRope rope);

// For latent_literal: latent values (2i, 2i+1) are plane i, of frequency pair[i]. Rows of down and columns of
// up in the order of the planes sorted by pair, first all real parts, then all imaginary ones.
Factors half_split(const Factors& f, const std::vector<int32_t>& pair);

}  // namespace llatte
