// Generation: greedy equals the full forward pass token by token, seeds repeat, limits are sentences.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>
#include <algorithm>
#include <cmath>
#include <set>
#include "eval/generate.h"
#include "models/hf.h"
#include "test/on_device.h"
#include "test/temp_folder.h"

using namespace llatte;
using namespace llatte::test;

namespace {

const std::vector<int32_t> kPrompt = {5, 17, 300, 2};

std::unique_ptr<Llama> tiny() { return here(load_hf("test/fixtures/tiny-llama/tiny-llama", DType::f32)); }

// After all of `ids`, without a cache.
std::vector<double> next_logits(Llama& model, const std::vector<int32_t>& ids) {
  const NoGrad off;
  const Tensor h = model.hidden(Tensor::from(ids, {1, static_cast<int64_t>(ids.size())})).value;
  const Tensor z = model.logits(constant(h)).value.slice(1, h.size(1) - 1, h.size(1));
  return z.to(DType::f64).to_vector<double>();
}

int32_t most_likely_next(Llama& model, const std::vector<int32_t>& ids) {
  const auto logits = next_logits(model, ids);
  return static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

GenerateOptions greedy(int64_t n) {
  GenerateOptions o;
  o.max_tokens = n;
  o.rule.temperature = 0;
  return o;
}

}  // namespace

TEST_CASE("greedy decoding through the cache equals the full forward pass") {
  const auto model = tiny();
  std::vector<int32_t> heard, ids = kPrompt;
  const Generation g = generate(*model, kPrompt, greedy(20), [&](int32_t id) {
    heard.push_back(id);
    return true;
  });
  CHECK(heard == g.tokens);
  REQUIRE(g.tokens.size() == 20);
  for (const int32_t id : g.tokens) {
    CHECK(id == most_likely_next(*model, ids));
    ids.push_back(id);
  }
  CHECK(g.prompt_tokens == 4);
  CHECK(g.prefilled == 4);
  CHECK(g.decoded == 19);
  CHECK(g.cache_bytes_per_token == 2 * 2 * 2 * 16 * 4);  // k and v, 2 layers, K = 2, E = 16, f32
  CHECK(g.cache_bytes == 24 * g.cache_bytes_per_token);
}

TEST_CASE("an end-of-text token ends the text") {
  const auto model = tiny();
  GenerateOptions o = greedy(20);
  const auto free_running = generate(*model, kPrompt, o).tokens;
  o.stop = {free_running[3]};
  const auto stopped = generate(*model, kPrompt, o).tokens;
  const auto first = std::find(free_running.begin(), free_running.end(), free_running[3]);
  CHECK(stopped == std::vector<int32_t>(free_running.begin(), first + 1));
}

TEST_CASE("sampling: a seed repeats, another differs, top_k 1 is greedy") {
  const auto model = tiny();
  GenerateOptions o = greedy(30);
  const auto best = generate(*model, kPrompt, o).tokens;
  o.rule.temperature = 1;
  o.seed = 1;
  const auto a = generate(*model, kPrompt, o).tokens, again = generate(*model, kPrompt, o).tokens;
  o.seed = 2;
  const auto b = generate(*model, kPrompt, o).tokens;
  CHECK(a == again);
  CHECK(a != b);
  CHECK(a != best);
  o.rule.top_k = 1;
  CHECK(generate(*model, kPrompt, o).tokens == best);
}

TEST_CASE("what cannot be generated is said in a sentence") {
  const auto model = tiny();
  const auto why = [&](std::vector<int32_t> prompt, GenerateOptions o) {
    return error_of([&] { generate(*model, prompt, o); });
  };
  CHECK(has(why({}, greedy(3)), "the prompt has no tokens"));
  CHECK(has(why({1, 384}, greedy(3)), "token id 384, but the model's vocabulary ends at 383"));
  CHECK(has(why({1}, greedy(256)),
            "1 prompt tokens and 256 new ones exceed max_position_embeddings 256; lower max_tokens"));
  CHECK(has(why(std::vector<int32_t>(256, 1), greedy(1)),
            "256 prompt tokens and 1 new ones exceed max_position_embeddings 256; shorten the prompt"));
  CHECK(has(why({1}, greedy(INT64_MAX)), "exceed max_position_embeddings 256"));
  CHECK(has(why({1}, greedy(0)), "max_tokens is 0"));
  GenerateOptions o = greedy(3);
  o.rule.top_p = 0;
  CHECK(has(why({1}, o), "top_p 0 must be in (0,1]"));
  o = greedy(3);
  o.repetition_penalty = 0;
  CHECK(has(why({1}, o), "repetition_penalty 0 must be positive"));
}

TEST_CASE("a listener that says false ends the text") {
  const auto model = tiny();
  const Generation all = generate(*model, kPrompt, greedy(20));
  int heard = 0;
  const Generation g = generate(*model, kPrompt, greedy(20), [&](int32_t) { return ++heard < 5; });
  CHECK(g.tokens == std::vector<int32_t>(all.tokens.begin(), all.tokens.begin() + 5));
  CHECK(g.decoded == 4);
}

TEST_CASE("repetition penalty: every token is the best one after all seen ones are made less likely") {
  const auto model = tiny();
  GenerateOptions o = greedy(200);
  const auto plain = generate(*model, kPrompt, o).tokens;
  o.repetition_penalty = 1.5;
  const auto tokens = generate(*model, kPrompt, o).tokens;
  CHECK(tokens != plain);
  std::vector<int32_t> ids = kPrompt;
  for (const int32_t id : tokens) {
    std::vector<double> z = next_logits(*model, ids);
    for (const int32_t seen : std::set<int32_t>(ids.begin(), ids.end())) {
      double& x = z[static_cast<size_t>(seen)];
      x = x > 0 ? x / 1.5 : x * 1.5;
    }
    CHECK(id == std::max_element(z.begin(), z.end()) - z.begin());
    ids.push_back(id);
  }
}

TEST_CASE("a session runs only what is new, and says what a fresh one would") {
  const auto model = tiny();
  Session session(*model);
  std::vector<int32_t> talk = kPrompt;
  std::vector<int64_t> prefilled;
  for (const std::vector<int32_t>& turn : {std::vector<int32_t>{}, {7, 8, 9}, {10}, {11, 12}}) {
    talk.insert(talk.end(), turn.begin(), turn.end());
    const Generation kept = session.generate(talk, greedy(15)), fresh = generate(*model, talk, greedy(15));
    CHECK(kept.tokens == fresh.tokens);
    CHECK(fresh.prefilled == fresh.prompt_tokens);
    prefilled.push_back(kept.prefilled);
    talk.insert(talk.end(), kept.tokens.begin(), kept.tokens.end());
  }
  // Room for 4 + 15 tokens; then 38 as 37 are needed; then 76: growing runs everything again, the last turn
  // did not grow and ran the answer's last token and the two new ones.
  CHECK(prefilled == std::vector<int64_t>{4, 22, 38, 3});

  Session roomy(*model, std::nullopt, 1000);  // no more than the model has positions for
  CHECK(roomy.generate(kPrompt, greedy(15)).cache_bytes == 256 * 512);
  CHECK(roomy.generate(kPrompt, greedy(15)).prefilled == 1);  // the last token gives the logits
  const std::vector<int32_t> other = {5, 17, 2, 300, 2};
  const Generation g = roomy.generate(other, greedy(15));
  CHECK(g.prefilled == 3);  // 5 17 are common
  CHECK(g.tokens == generate(*model, other, greedy(15)).tokens);
}

TEST_CASE("a bf16 cache is half the size and nearly the same") {
  const auto model = tiny();
  const NoGrad off;
  KvCache f32 = model->make_cache(1, 8), bf16 = model->make_cache(1, 8, CacheType::bf16);
  CHECK(2 * bf16.bytes_per_token() == f32.bytes_per_token());
  const Tensor ids = Tensor::from(kPrompt, {1, 4});
  const auto a = model->hidden(ids, &f32).value.to_vector<float>();
  const auto b = model->hidden(ids, &bf16).value.to_vector<float>();
  CHECK(a != b);
  // Keys and values lose all but 8 bits, an error of 2^-9 each. Attention averages values, scores shift by
  // about 2^-9 of their size, and two layers pass it on to states of size 1: within 2^-5 unless something is
  // wrong.
  for (size_t i = 0; i < a.size(); ++i) CHECK(std::abs(a[i] - b[i]) <= 0.03f);
  Session session(*model, CacheType::bf16);
  CHECK(session.generate(kPrompt, greedy(4)).cache_bytes_per_token == bf16.bytes_per_token());
}
