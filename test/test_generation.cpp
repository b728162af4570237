// Generation: greedy equals the full forward pass token by token, seeds repeat, limits are sentences.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>
#include <algorithm>
#include "eval/generate.h"
#include "models/hf.h"
#include "test/temp_folder.h"

using namespace llatte;
using namespace llatte::test;

namespace {

const std::vector<int32_t> kPrompt = {5, 17, 300, 2};

std::unique_ptr<Llama> tiny() { return load_hf("test/fixtures/tiny-llama/tiny-llama", DType::f32); }

int32_t most_likely_next(Llama& model, const std::vector<int32_t>& ids) {
  const NoGrad off;
  const Tensor h = model.hidden(Tensor::from(ids, {1, static_cast<int64_t>(ids.size())})).value;
  const auto logits = model.logits(constant(h)).value.slice(1, h.size(1) - 1, h.size(1)).to_vector<float>();
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
  const Generation g = generate(*model, kPrompt, greedy(20), [&](int32_t id) { heard.push_back(id); });
  CHECK(heard == g.tokens);
  REQUIRE(g.tokens.size() == 20);
  for (const int32_t id : g.tokens) {
    CHECK(id == most_likely_next(*model, ids));
    ids.push_back(id);
  }
  CHECK(g.prompt_tokens == 4);
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
  CHECK(has(why({1}, greedy(256)), "1 prompt tokens and 256 new ones exceed max_position_embeddings 256"));
  CHECK(has(why({1}, greedy(INT64_MAX)), "exceed max_position_embeddings 256"));
  CHECK(has(why({1}, greedy(0)), "max_tokens is 0"));
  GenerateOptions o = greedy(3);
  o.rule.top_p = 0;
  CHECK(has(why({1}, o), "top_p 0 must be in (0,1]"));
}
