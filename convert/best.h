// The best conversion to MLA for a given cache: how many pairs keep RoPE and how wide the latent is are
// played off against each other by what the loss is expected to pay.
#pragma once
#include "convert/plan.h"

namespace llatte {

// By how much the loss of a token is expected to rise when `plan` is carried out (refit_o aside), to second
// order in what becomes of k and v:
//   1/2 sum over layers of tr(Y^T G Y C),  Y = [rotated keys - W_k; unrotated keys; v - W_v]  [3n,D]
// with G the gradients' second moments, C the weighted covariance of the inputs (convert/fisher.h).
double predicted_loss(const Checkpoint& source, const ConversionPlan& plan);

// Settings for `cache_values` numbers per token and layer, in the published layout: pairs chosen by the loss,
// joint latent, W_o fitted. `calibration`: a file from `calibrate --covariance`. Fewer values than two and a
// rank for every kv head, or no fewer than 2 K E: an Error.
ConversionSettings best_mla(const Checkpoint& source, int64_t cache_values, const std::string& calibration);

}  // namespace llatte
