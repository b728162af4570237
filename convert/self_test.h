// Is the checkpoint that was written the model that was read? Both are run on the same tokens, one after the
// other, so that only one is in memory.
#pragma once
#include "models/checkpoint.h"

namespace llatte {

struct SelfTest {
  double max_error = 0;  // largest difference between two logits
  double max_logit = 0;  // largest absolute logit of the source
  double tolerance = 0;  // of max_error / max_logit: 0 where no weight was rounded
  bool passed() const { return max_error <= tolerance * max_logit; }  // NaN fails
};

// Runs in f32, or in bf16 where neither holds more than 16 bits a weight.
SelfTest compare_logits(const Checkpoint& source, const Checkpoint& result);

}  // namespace llatte
