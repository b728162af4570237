// The 2-norm score of MHA2MLA (arXiv 2502.14837, section 3.1): how much each RoPE pair of each kv head
// contributes to attention, from q and k before RoPE, over a calibration set.
//   score[l][k][j] = sum over the G query heads g of kv head k of  mean ||q_(g,j)|| * mean ||k_(k,j)||
// The norm is over the two dims (j, j + E/2) of pair j, the mean over tokens, then over windows; windows are
// of one length, so that is the mean over all tokens, and sums of norms are all that is kept.
//   L layers  H query heads  K kv heads  G = H/K  E head width  P = E/2 pairs
#pragma once
#include <string>
#include "tensor/tensor.h"

namespace llatte {

enum class ScoreKind { product, sum };  // sum: q's mean + k's, as the nanotron-era program had it

// sum_HP (f64) += ||x_(h,j)|| of every token of x_BTHE, in the order of the tokens, on the host.
void add_pair_norms(const Tensor& x_BTHE, Tensor& sum_HP);

// f32 [L,K,P] from the sums [L,H,P] and [L,K,P] over `tokens` tokens. Not finite: an Error naming the layer.
Tensor two_norm_scores(const Tensor& q_LHP, const Tensor& k_LKP, int64_t tokens, ScoreKind kind);

// One byte per score: its place among the pairs of its head, 0 the highest; of equal ones the lower pair.
std::string descending_ranks(const Tensor& scores_LKP);

}  // namespace llatte
