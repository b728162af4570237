// What "near" means for each part of a layer that becomes HLA (Metric, convert/settings.h), as the covariance
// C of its inputs and the metric Gam of its rows that low_rank.h and planes.h take:
//   white    C = S                  Gam = I
//   output   C = S                  v: sum over the query heads of W_o,h^T W_o,h
//   omega    as output, and k: the score error |q_(h,j)|^2 |dk_(kappa,j)|^2 / 2 of a pair at any distance,
//            summed over the query heads; q: the same with k. Dims without RoPE: sum_h E[q_h q_h^T]
//   fisher   C of fisher.h          Gam = G: of rotated k G_kk, of unrotated k G_22, of v G_vv, of q G_q
// plain is neither. Planes hold biases, so their inputs are [x; 1] where the model has some.
#pragma once
#include <optional>
#include "convert/fisher.h"
#include "convert/low_rank.h"
#include "convert/plan.h"

namespace llatte {

class HlaMetric {
 public:
  HlaMetric(const Checkpoint& source, const ConversionSettings& settings, int64_t layer);

  // Of planes; `rows` of W_k.
  FactorMetric rotated_keys(const std::vector<int64_t>& rows) const;
  // Of latents: all of k, to be rotated; rows that are not; v.
  FactorMetric dense_keys() const;
  FactorMetric unrotated_keys(const std::vector<int64_t>& rows) const;
  FactorMetric values() const;
  FactorMetric queries(bool planes) const;

 private:
  Tensor covariance(bool planes) const;
  Tensor rotated_metric() const;
  Tensor moments(const char* projection) const;

  const Checkpoint& source_;
  Metric metric_;
  int64_t layer_;
  std::optional<CalibrationFile> statistics_;
};

// f64 [W | b] of a projection, or W where it has no bias.
Tensor weight_and_bias(const Checkpoint& source, int64_t layer, const std::string& projection);
Tensor with_bias(const Tensor& w_ND, const Tensor& bias_N);  // W where bias is undefined

}  // namespace llatte
