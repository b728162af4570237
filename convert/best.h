// The best conversion for a given cache: how many pairs or planes keep RoPE and how wide the latents are is
// played off against each other by what the loss is expected to pay.
#pragma once
#include "convert/plan.h"

namespace llatte {

// By how much the loss of a token is expected to rise when `plan` is carried out (refit_o aside), to second
// order in what becomes of k and v:
//   1/2 sum over layers of tr(Y^T G Y C),  Y = [rotated keys - W_k; unrotated keys; v - W_v]  [3n,D]
// with G the gradients' second moments, C the weighted covariance of the inputs (convert/fisher.h). For MLA,
// and HLA's mode unified; of other modes an Error.
double predicted_loss(const Checkpoint& source, const ConversionPlan& plan);

// Settings for `cache_values` numbers per token and layer, in the published layout: pairs chosen by the loss,
// joint latent, W_o fitted. `calibration`: a file from `calibrate --covariance`. Fewer values than two and a
// rank for every kv head, or no fewer than 2 K E: an Error.
ConversionSettings best_mla(const Checkpoint& source, int64_t cache_values, const std::string& calibration);
// The same for HLA: mode unified, whose planes all heads share and whose layers differ in size.
ConversionSettings best_hla(int64_t cache_values, const std::string& calibration);
// Of these two the plan whose predicted loss is smaller. `which`: mla, hla or any.
struct BestPlan {
  ConversionPlan plan;
  double predicted_loss = 0;
};
BestPlan best_plan(const Checkpoint& source, const std::string& which, int64_t cache_values,
                   const std::string& calibration);

}  // namespace llatte
