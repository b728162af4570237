// Text from a model, token by token: the prompt in one pass, then one token at a time from the cache.
#pragma once
#include <functional>
#include <optional>
#include <span>
#include <vector>
#include "models/llama.h"
#include "tensor/kernel_args.h"  // SampleRule

namespace llatte {

struct GenerateOptions {
  int64_t max_tokens = 128;
  SampleRule rule;  // temperature 0: the most likely token
  double repetition_penalty =
      1;                      // of tokens in the prompt or the text so far, before everything else; 1: none
  uint64_t seed = 0;          // token n is a pure function of (seed, n) and the logits
  std::vector<int64_t> stop;  // end-of-text ids: reaching one ends the text; it is kept in `tokens`
};

struct Generation {
  std::vector<int32_t> tokens;  // without the prompt
  int64_t prompt_tokens = 0;
  int64_t prefilled = 0;  // prompt tokens run through the model: those that were not in the cache yet
  double prefill_seconds = 0, decode_seconds = 0;
  int64_t decoded = 0;  // tokens run through the model one at a time: all generated but the last
  int64_t cache_bytes = 0, cache_bytes_per_token = 0;  // as allocated
  double prefill_tokens_per_s() const;
  double decode_tokens_per_s() const;  // 0 when nothing was decoded
};

// Hears of every token as soon as it is known; false ends the text there.
using TokenListener = std::function<bool(int32_t)>;

// Keys and values that outlive one text. A prompt that begins like what was run before, as the next turn of a
// conversation does, is run only from where it differs.
class Session {
 public:
  // The cache holds numbers of `cache_type` (none: the model's) and grows as needed; it starts with room for
  // `reserve` tokens, because growing means running everything again.
  explicit Session(Llama& model, std::optional<CacheType> cache_type = std::nullopt, int64_t reserve = 0);
  // The prompt must not be empty, its ids must be in the vocabulary, and prompt + max_tokens must fit
  // max_position_embeddings.
  Generation generate(std::span<const int32_t> prompt, const GenerateOptions& options,
                      const TokenListener& each = nullptr);

 private:
  void make_room(int64_t tokens);
  int64_t keep_common(std::span<const int32_t> prompt);
  Tensor run(std::span<const int32_t> ids);

  Llama& model_;
  std::optional<CacheType> cache_type_;
  int64_t reserve_;
  KvCache cache_;
  std::vector<int32_t> held_;  // the tokens whose keys and values the cache holds
};

// One text, with a cache of exactly its size.
Generation generate(Llama& model, std::span<const int32_t> prompt, const GenerateOptions& options,
                    const TokenListener& each = nullptr);

}  // namespace llatte
