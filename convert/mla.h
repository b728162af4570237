// A trained grouped-query attention becomes latent attention (MHA2MLA, arXiv 2502.14837): a plan in, a
// Checkpoint out whose weights are computed layer by layer as they are read. All in f64; whoever reads
// rounds.
//   q = x W_q stays; W_k is split into the rows that keep RoPE (W_k_r) and the others (k_n), and k_n is
//   factored together with, or beside, W_v (low_rank.h). Row order: kv heads, the dims of each ascending.
#pragma once
#include <memory>
#include <vector>
#include "convert/plan.h"

namespace llatte {

// What factoring lost in a layer, in the plan's metric: `error` of `total`.
struct LayerError {
  double error = 0, total = 0;
};

// `errors`, where given, is sized [L] and filled as layers are made. With refit_o, o_proj is fitted here and
// now.
Checkpoint convert_to_mla(const Checkpoint& source, const ConversionPlan& plan,
                          std::shared_ptr<std::vector<LayerError>> errors = nullptr);

// The same function as ordinary attention with partial RoPE: W_k put together from W_k_r and up_k down_k, W_v
// = up_v down_v. It needs no latent kernel, and no latent cache profits from it.
Checkpoint lifted(const Checkpoint& mla);

// `plan` without SVD: what its factors are factors of.
ConversionPlan without_svd(const ConversionPlan& plan);
// `plan` with latents so wide that nothing is lost.
ConversionPlan at_full_rank(const ConversionPlan& plan);

// Rows of a layer's W_k whose dims keep, or lost, RoPE; kept [K] -> pairs, pair j being dims j and j + E/2.
std::vector<int64_t> kept_rows(const std::vector<std::vector<int32_t>>& kept, int64_t E);
std::vector<int64_t> lost_rows(const std::vector<std::vector<int32_t>>& kept, int64_t E);

}  // namespace llatte
