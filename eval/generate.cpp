// Sampling is a kernel; here is the loop around it.
#include "eval/generate.h"
#include <algorithm>
#include <chrono>
#include "autograd/ops.h"

namespace llatte {
namespace {

class Stopwatch {
 public:
  double seconds() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

void check(const LlamaConfig& c, std::span<const int32_t> prompt, const GenerateOptions& o) {
  LLATTE_CHECK(!prompt.empty(),
               "generate: the prompt has no tokens; give some text or a model with a "
               "bos_token_id");
  for (const int32_t id : prompt)
    LLATTE_CHECK(0 <= id && id < c.vocab_size, "generate: the prompt has token id ", id, ", but the model's ",
                 "vocabulary ends at ", c.vocab_size - 1, "; is this the model's tokenizer?");
  LLATTE_CHECK(o.max_tokens >= 1, "generate: max_tokens is ", o.max_tokens, ", it must be positive");
  const auto n = static_cast<int64_t>(prompt.size());
  LLATTE_CHECK(n <= c.max_position_embeddings && o.max_tokens <= c.max_position_embeddings - n,
               "generate: ", n, " prompt tokens and ", o.max_tokens,
               " new ones exceed max_position_embeddings ", c.max_position_embeddings, "; lower max_tokens");
  LLATTE_CHECK(o.rule.temperature >= 0 && o.rule.top_k >= 0, "generate: temperature ", o.rule.temperature,
               " and top_k ", o.rule.top_k, " must not be negative");
  LLATTE_CHECK(o.rule.top_p > 0 && o.rule.top_p <= 1 && o.rule.min_p >= 0 && o.rule.min_p <= 1,
               "generate: top_p ", o.rule.top_p, " must be in (0,1] and min_p ", o.rule.min_p, " in [0,1]");
}

// The logits after the last of `ids`, acc [1,V].
Tensor next_logits(Llama& model, const Tensor& ids_1T, KvCache& cache) {
  const int64_t T = ids_1T.size(1);
  const Var last_11D = slice(model.hidden(ids_1T, &cache), 1, T - 1, T);
  const Tensor logits = model.logits(last_11D).value;
  return logits.reshape({1, logits.numel()}).to(acc_dtype(logits.dtype()));
}

int32_t pick(const Tensor& logits_1V, const GenerateOptions& o, uint64_t n) {
  Tensor u = Tensor::empty({1}, logits_1V.dtype()), id = Tensor::empty({1}, DType::i32);
  kernels::random_uniform(o.seed, n, u);
  kernels::sample(logits_1V, u, o.rule, id);
  return *id.data<int32_t>();
}

bool stops(const GenerateOptions& o, int32_t id) {
  return std::find(o.stop.begin(), o.stop.end(), id) != o.stop.end();
}

}  // namespace

double Generation::prefill_tokens_per_s() const {
  return prefill_seconds > 0 ? static_cast<double>(prompt_tokens) / prefill_seconds : 0;
}
double Generation::decode_tokens_per_s() const {
  return decode_seconds > 0 ? static_cast<double>(decoded) / decode_seconds : 0;
}

Generation generate(Llama& model, std::span<const int32_t> prompt, const GenerateOptions& o,
                    const std::function<void(int32_t)>& each) {
  check(model.config(), prompt, o);
  const NoGrad off;
  Generation g;
  g.prompt_tokens = static_cast<int64_t>(prompt.size());
  KvCache cache = model.make_cache(1, g.prompt_tokens + o.max_tokens);
  g.cache_bytes_per_token = cache.bytes_per_token();
  g.cache_bytes = g.cache_bytes_per_token * cache.capacity();

  const Stopwatch prefill;
  Tensor logits_1V = next_logits(model, Tensor::from(prompt, {1, g.prompt_tokens}), cache);
  g.prefill_seconds = prefill.seconds();
  const Stopwatch decode;
  while (true) {
    const int32_t id = pick(logits_1V, o, g.tokens.size());
    g.tokens.push_back(id);
    if (each) each(id);
    if (stops(o, id) || static_cast<int64_t>(g.tokens.size()) == o.max_tokens) break;
    logits_1V = next_logits(model, Tensor::full({1, 1}, id, DType::i32), cache);
    ++g.decoded;
  }
  g.decode_seconds = decode.seconds();
  return g;
}

}  // namespace llatte
