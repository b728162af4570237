// Longest requests first: if memory does not suffice, that shows at once, and time left is never guessed low.
#include "eval/score.h"
#include <algorithm>
#include <cmath>
#include <numeric>

namespace llatte {
namespace {

constexpr int32_t kIgnored = -100;

using Batch = std::span<const ScoreRequest* const>;

int64_t inputs_of(const ScoreRequest& r) { return static_cast<int64_t>(r.tokens.size()) - 1; }
int64_t targets_of(const ScoreRequest& r) { return inputs_of(r) + 1 - r.scored; }

void check_request(const ScoreRequest& r, int64_t V) {
  LLATTE_CHECK(1 <= r.scored && r.scored <= inputs_of(r), "score: of ", r.tokens.size(),
               " tokens those from ", r.scored, " on cannot be scored; give a token before and one to score");
  for (const int32_t id : r.tokens)
    LLATTE_CHECK(0 <= id && id < V, "score: token id ", id, " is outside the model's vocabulary of ", V,
                 "; the tokenizer or token file is another model's: name the right one");
}

// How many requests from the front run together: a quarter of a row is padding at most.
size_t batch_size(Batch longest_first, int64_t batch_tokens) {
  const int64_t T = inputs_of(*longest_first[0]);
  size_t n = 1;
  while (n < longest_first.size() && static_cast<int64_t>(n + 1) * T <= batch_tokens &&
         4 * inputs_of(*longest_first[n]) >= 3 * T)
    ++n;
  return n;
}

std::vector<double> numbers(const Tensor& t) { return t.to(Device::cpu).to(DType::f64).to_vector<double>(); }

// Few enough that latents are read in the absorbed form (nn/latent_attention.h), as a decoder does.
constexpr int64_t kChunk = 16;

// The same losses in the same order, but each chunk of tokens is run after the cache's contents.
std::vector<double> losses_through(KvCache cache, Llama& model, const Tensor& inputs_BT,
                                   const Tensor& targets_BT) {
  const int64_t B = inputs_BT.size(0), T = inputs_BT.size(1);
  std::vector<std::vector<double>> of_row(static_cast<size_t>(B));
  for (int64_t begin = 0; begin < T; begin += kChunk) {
    const int64_t end = std::min(T, begin + kChunk), n = end - begin;
    const Tensor targets = targets_BT.slice(1, begin, end).contiguous();
    const auto losses = numbers(model.losses(inputs_BT.slice(1, begin, end).contiguous(), targets, &cache));
    const int32_t* target = targets.data<int32_t>();
    for (size_t i = 0, at = 0; i < static_cast<size_t>(B * n); ++i)
      if (target[i] != kIgnored) of_row[i / static_cast<size_t>(n)].push_back(losses[at++]);
  }
  std::vector<double> all;
  for (const auto& row : of_row) all.insert(all.end(), row.begin(), row.end());
  return all;
}

// Losses of the batch's targets, request after request, as f64 numbers.
std::vector<double> losses_of(Llama& model, Batch batch, std::optional<CacheType> cache) {
  const auto B = static_cast<int64_t>(batch.size()), T = inputs_of(*batch[0]);
  Tensor inputs_BT = Tensor::zeros({B, T}, DType::i32);  // padding: any id will do
  Tensor targets_BT = Tensor::full({B, T}, kIgnored, DType::i32);
  for (int64_t b = 0; b < B; ++b) {
    const ScoreRequest& r = *batch[static_cast<size_t>(b)];
    std::copy(r.tokens.begin(), r.tokens.end() - 1, inputs_BT.data<int32_t>() + b * T);
    std::copy(r.tokens.begin() + r.scored, r.tokens.end(), targets_BT.data<int32_t>() + b * T + r.scored - 1);
  }
  if (cache) return losses_through(model.make_cache(B, T, cache), model, inputs_BT, targets_BT);
  return numbers(model.losses(inputs_BT, targets_BT));
}

// Of the batch's requests, at their places behind `first`.
void add_log_likelihoods(Llama& model, Batch batch, std::optional<CacheType> cache, const ScoreRequest* first,
                         double* result) {
  const std::vector<double> losses = losses_of(model, batch, cache);
  auto at = losses.begin();
  for (const ScoreRequest* r : batch) {
    const double sum = std::accumulate(at, at + targets_of(*r), 0.0);
    LLATTE_CHECK(std::isfinite(sum), "score: the loss of ", targets_of(*r), " tokens is ", sum,
                 "; the model's weights or activations are not finite");
    result[r - first] = -sum;
    at += targets_of(*r);
  }
}

std::vector<const ScoreRequest*> longest_first(const std::vector<ScoreRequest>& requests) {
  std::vector<const ScoreRequest*> order;
  for (const ScoreRequest& r : requests) order.push_back(&r);
  std::stable_sort(order.begin(), order.end(),
                   [](const auto* a, const auto* b) { return a->tokens.size() > b->tokens.size(); });
  return order;
}

}  // namespace

std::vector<double> log_likelihoods(Llama& model, const std::vector<ScoreRequest>& requests,
                                    const ScoreSettings& s) {
  int64_t done = 0, total = 0;
  for (const ScoreRequest& r : requests) {
    check_request(r, model.config().vocab_size);
    total += inputs_of(r);
  }
  const auto order = longest_first(requests);
  const int64_t ranks = s.comm ? s.comm->size() : 1, rank = s.comm ? s.comm->rank() : 0;
  Tensor result = Tensor::zeros({static_cast<int64_t>(requests.size())}, DType::f64);
  int64_t turn = 0;
  for (Batch left(order); !left.empty(); ++turn) {
    const Batch batch = left.first(batch_size(left, s.batch_tokens));
    left = left.subspan(batch.size());
    for (const ScoreRequest* r : batch) done += inputs_of(*r);
    if (turn % ranks != rank) continue;
    add_log_likelihoods(model, batch, s.cache, requests.data(), result.data<double>());
    if (s.progress) s.progress(done, total);
  }
  if (s.comm && !requests.empty()) s.comm->all_reduce_sum(result);  // zeros but for one rank: exact
  return result.to_vector<double>();
}

}  // namespace llatte
