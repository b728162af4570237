// Text from a model, token by token: the prompt in one pass, then one token at a time from the cache.
#pragma once
#include <functional>
#include <span>
#include <vector>
#include "models/llama.h"
#include "tensor/kernels.h"  // SampleRule

namespace llatte {

struct GenerateOptions {
  int64_t max_tokens = 128;
  SampleRule rule;            // temperature 0: the most likely token
  uint64_t seed = 0;          // token n is a pure function of (seed, n) and the logits
  std::vector<int64_t> stop;  // end-of-text ids: reaching one ends the text; it is kept in `tokens`
};

struct Generation {
  std::vector<int32_t> tokens;  // without the prompt
  int64_t prompt_tokens = 0;
  double prefill_seconds = 0, decode_seconds = 0;
  int64_t decoded = 0;  // tokens run through the model one at a time: all generated but the last
  int64_t cache_bytes = 0, cache_bytes_per_token = 0;  // as allocated
  double prefill_tokens_per_s() const;
  double decode_tokens_per_s() const;  // 0 when nothing was decoded
};

// `each` hears of every token as soon as it is known. The prompt must not be empty, its ids must be in the
// vocabulary, and prompt + max_tokens must fit max_position_embeddings.
Generation generate(Llama& model, std::span<const int32_t> prompt, const GenerateOptions& options,
                    const std::function<void(int32_t)>& each = nullptr);

}  // namespace llatte
