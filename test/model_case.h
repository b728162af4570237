// Logits of a checkpoint's model, and how far two of them are apart.
#pragma once
#include "models/checkpoint.h"
#include "test/near.h"

namespace llatte::test {

inline Vec logits(const Checkpoint& c, const Tensor& tokens, DType t = DType::f64) {
  const NoGrad off;
  const auto model = load_model(c, t);
  model->to(test_device());
  return to_vec(model->logits(model->hidden(tokens)).value);
}

// Largest difference as a share of the largest number wanted; NaN stays.
inline double difference(const Vec& got, const Vec& want) {
  REQUIRE(got.size() == want.size());
  double worst = 0, largest = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    const double d = std::abs(got[i] - want[i]);
    if (!(d <= worst)) worst = d;
    largest = std::max(largest, std::abs(want[i]));
  }
  return worst / largest;
}

}  // namespace llatte::test
