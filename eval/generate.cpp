// Sampling is a kernel; here is the loop around it.
#include "eval/generate.h"
#include <algorithm>
#include <chrono>
#include "autograd/ops.h"
#include "tensor/kernels.h"  // random_uniform, repetition_penalty, sample

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
               " new ones exceed max_position_embeddings ", c.max_position_embeddings,
               n < c.max_position_embeddings ? "; lower max_tokens"
                                             : "; shorten the prompt or begin a new conversation");
  LLATTE_CHECK(o.rule.temperature >= 0 && o.rule.top_k >= 0, "generate: temperature ", o.rule.temperature,
               " and top_k ", o.rule.top_k, " must not be negative");
  LLATTE_CHECK(o.rule.top_p > 0 && o.rule.top_p <= 1 && o.rule.min_p >= 0 && o.rule.min_p <= 1,
               "generate: top_p ", o.rule.top_p, " must be in (0,1] and min_p ", o.rule.min_p, " in [0,1]");
  LLATTE_CHECK(o.repetition_penalty > 0, "generate: repetition_penalty ", o.repetition_penalty,
               " must be positive (1: none)");
}

// The tokens of prompt and text so far, each once.
class Seen {
 public:
  explicit Seen(int64_t vocab_size) : is_(static_cast<size_t>(vocab_size)) {}
  void add(int32_t id) {
    if (!is_[static_cast<size_t>(id)]) ids_.push_back(id);
    is_[static_cast<size_t>(id)] = true;
  }
  void penalize(double penalty, Tensor& logits_1V) const {
    if (penalty == 1) return;
    const Tensor ids_N = Tensor::from(ids_, {static_cast<int64_t>(ids_.size())}).to(logits_1V.device());
    kernels::repetition_penalty(ids_N, penalty, logits_1V);
  }

 private:
  std::vector<bool> is_;
  std::vector<int32_t> ids_;
};

int32_t pick(const Tensor& logits_1V, const GenerateOptions& o, uint64_t n) {
  const Device d = logits_1V.device();
  Tensor u = Tensor::empty({1}, logits_1V.dtype(), d), id = Tensor::empty({1}, DType::i32, d);
  kernels::random_uniform(o.seed, n, u);
  kernels::sample(logits_1V, u, o.rule, id);
  return static_cast<int32_t>(id.item());
}

bool stops(const GenerateOptions& o, int32_t id) {
  return std::find(o.stop.begin(), o.stop.end(), id) != o.stop.end();
}

}  // namespace

double Generation::prefill_tokens_per_s() const {
  return prefill_seconds > 0 ? static_cast<double>(prefilled) / prefill_seconds : 0;
}
double Generation::decode_tokens_per_s() const {
  return decode_seconds > 0 ? static_cast<double>(decoded) / decode_seconds : 0;
}

Session::Session(Llama& model, std::optional<CacheType> cache_type, int64_t reserve)
    : model_(model),
      cache_type_(cache_type),
      reserve_(std::min(reserve, model.config().max_position_embeddings)) {}

// Doubling keeps what is run again below what is run anyway.
void Session::make_room(int64_t tokens) {
  if (cache_.capacity() >= tokens) return;
  const int64_t doubled = std::min(2 * cache_.capacity(), model_.config().max_position_embeddings);
  held_.clear();
  cache_ = KvCache();  // the old one is freed first
  cache_ = model_.make_cache(1, std::max({tokens, doubled, reserve_}), cache_type_);
}

// Forgets what the prompt does not begin with, and always its last token: the next logits come from running
// it.
int64_t Session::keep_common(std::span<const int32_t> prompt) {
  const size_t most = std::min(held_.size(), prompt.size() - 1);
  const auto differs =
      std::mismatch(held_.begin(), held_.begin() + static_cast<int64_t>(most), prompt.begin());
  const auto kept = differs.first - held_.begin();
  held_.resize(static_cast<size_t>(kept));
  for (const auto& layer : cache_.layers) layer->truncate(kept);
  return kept;
}

// The logits after the last of `ids`, which come after what is held: acc [1,V].
Tensor Session::run(std::span<const int32_t> ids) {
  const auto T = static_cast<int64_t>(ids.size());
  const Var last_11D = slice(model_.hidden(Tensor::from(ids, {1, T}), &cache_), 1, T - 1, T);
  held_.insert(held_.end(), ids.begin(), ids.end());
  const Tensor logits = model_.logits(last_11D).value;
  return logits.reshape({1, logits.numel()}).to(acc_dtype(logits.dtype()));
}

Generation Session::generate(std::span<const int32_t> prompt, const GenerateOptions& o,
                             const TokenListener& each) {
  check(model_.config(), prompt, o);
  const NoGrad off;
  Generation g;
  g.prompt_tokens = static_cast<int64_t>(prompt.size());
  make_room(g.prompt_tokens + o.max_tokens);
  g.cache_bytes_per_token = cache_.bytes_per_token();
  g.cache_bytes = g.cache_bytes_per_token * cache_.capacity();
  Seen seen(model_.config().vocab_size);
  for (const int32_t id : prompt) seen.add(id);

  const Stopwatch prefill;
  const int64_t kept = keep_common(prompt);
  g.prefilled = g.prompt_tokens - kept;
  Tensor logits_1V = run(prompt.subspan(static_cast<size_t>(kept)));
  g.prefill_seconds = prefill.seconds();
  const Stopwatch decode;
  while (true) {
    seen.penalize(o.repetition_penalty, logits_1V);
    const int32_t id = pick(logits_1V, o, g.tokens.size());
    g.tokens.push_back(id);
    const bool go_on = !each || each(id);
    if (!go_on || stops(o, id) || static_cast<int64_t>(g.tokens.size()) == o.max_tokens) break;
    seen.add(id);
    logits_1V = run({&id, 1});
    ++g.decoded;
  }
  g.decode_seconds = decode.seconds();
  return g;
}

Generation generate(Llama& model, std::span<const int32_t> prompt, const GenerateOptions& o,
                    const TokenListener& each) {
  return Session(model).generate(prompt, o, each);
}

}  // namespace llatte
