// Is the checkpoint that was written the model that was read? Both are run on the same tokens, one after the
// other, so that only one is in memory.
#pragma once
#include <optional>
#include "convert/plan.h"

namespace llatte {

struct SelfTest {
  double max_error = 0;  // largest difference between two logits
  double max_logit = 0;  // largest absolute logit of the source
  double tolerance = 0;  // of max_error / max_logit: 0 where no weight was rounded
  bool passed() const { return max_error <= tolerance * max_logit; }  // NaN fails
};

// Runs in f32, or in bf16 where neither holds more than 16 bits a weight.
SelfTest compare_logits(const Checkpoint& source, const Checkpoint& result, Device device = Device::cpu);

constexpr int64_t kLargeModel = 1'000'000'000;
// A conversion proves itself three times, in f32 on the same tokens. Models of more than `large` parameters
// are cut to their first layer: the layers are converted alike.
struct ConversionTest {
  // MLA: RoPE kept on all pairs and no SVD, the source's logits. HLA: mode original at full rank, likewise.
  SelfTest original;
  // MLA: latents that lose nothing, the same as without SVD; not for methods that are exact at no rank, nor
  // for random weights. HLA: mode aligned at full rank, the source's logits.
  std::optional<SelfTest> full_rank;
  SelfTest written;  // the files that were written: the conversion in memory
};
ConversionTest test_conversion(const Checkpoint& source, const ConversionPlan& plan,
                               const Checkpoint& converted, const Checkpoint& written,
                               int64_t large = kLargeModel, Device device = Device::cpu);

}  // namespace llatte
