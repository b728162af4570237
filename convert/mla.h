// MHA2MLA (arXiv 2502.14837): what a layer of grouped-query attention becomes.
//   q = x W_q stays; W_k is split into the rows that keep RoPE (W_k_r) and the others (k_n), and k_n is
//   factored together with, or beside, W_v (low_rank.h). Row order: kv heads, the dims of each ascending.
#pragma once
#include <vector>
#include "convert/attention.h"

namespace llatte {

LayerWeights mla_weights(const Checkpoint& source, const ConversionPlan& plan, int64_t layer,
                         LayerError& error);

// The same function as ordinary attention with partial RoPE: W_k put together from W_k_r and up_k down_k, W_v
// = up_v down_v. It needs no latent kernel, and no latent cache profits from it.
Checkpoint lifted(const Checkpoint& mla);

// `plan` without SVD: what its factors are factors of.
ConversionPlan without_svd(const ConversionPlan& plan);
// `plan` with latents so wide that nothing is lost.
ConversionPlan at_full_rank(const ConversionPlan& plan);

using KeptHeads = std::vector<std::vector<int32_t>>;  // [K] -> pairs, pair j being dims j and j + E/2
// Rows of a layer's W_k whose dims keep, or lose, RoPE.
std::vector<int64_t> kept_rows(const KeptHeads& kept, int64_t E);
std::vector<int64_t> lost_rows(const KeptHeads& kept, int64_t E);

// k and v of a layer before anything is factored: the rows that keep RoPE, and the others. metric fisher:
// what the others lose is made up for in both (fold, fisher.h).
struct KeyRows {
  Tensor k_r, k_n, v;                 // f64 [.., D]
  Tensor k_r_bias, k_n_bias, v_bias;  // undefined: there are none
};
KeyRows split_rows(const Checkpoint& source, const ConversionPlan& plan, int64_t layer,
                   const KeptHeads& kept);

// Gam of v for the metrics output and omega, f64 [KE,KE]: block diagonal over kv heads of the sum over their
// query heads of W_o,h^T W_o,h, scaled to a mean diagonal of 1 so that v keeps its weight beside k.
Tensor output_metric(const Checkpoint& source, int64_t layer);

}  // namespace llatte
