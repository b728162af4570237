// Log-likelihoods of many token sequences, the one piece under perplexity, wikitext and choices.
//   1. Positions restart at 0 in every request.
//   2. Requests of similar length run together, padded on the right; attention is causal, so no token sees
//      the padding, and batching changes results by rounding only.
//   3. Through a cache, tokens are fed a few at a time, as in decoding: each sees the earlier ones, and
//      itself, as the cache holds them.
//   4. Log-softmax in f32 (f64 for f64 models), sums in f64, in the order of the tokens.
#pragma once
#include <functional>
#include <optional>
#include <span>
#include <vector>
#include "models/llama.h"
#include "tensor/comm.h"

namespace llatte {

// Asks for log p(tokens[scored..end) | tokens before), 1 <= scored < number of tokens. The model reads all
// tokens but the last.
struct ScoreRequest {
  std::span<const int32_t> tokens;
  int64_t scored = 1;
};

using ScoreProgress = std::function<void(int64_t done, int64_t total)>;  // tokens read so far, and in all

struct ScoreSettings {
  int64_t batch_tokens = 4096;                    // that a batch reads at most, unless it is one request
  std::optional<CacheType> cache = std::nullopt;  // score by decoding through such a one
  Comm* comm = nullptr;                           // ranks that take batches in turn; each gets all results
  ScoreProgress progress = nullptr;
};

// In the order of the requests. An id outside the vocabulary, and a result that is not finite, are Errors.
std::vector<double> log_likelihoods(Llama& model, const std::vector<ScoreRequest>& requests,
                                    const ScoreSettings& s = {});

}  // namespace llatte
