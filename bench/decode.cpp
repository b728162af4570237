// Prefill and decoding speed of a model as llama-bench measures them: a prompt of N tokens in one pass into
// an empty cache, and M tokens one at a time from an empty cache. The best of several rounds, in tokens per
// second.
//   bench/decode MODEL [--prompt 512] [--tokens 128] [--dtype f32|bf16] [--context 0] [--cache T] [--rounds
//   5]
// With --context N, decoding starts after N tokens; --cache f32|bf16|int8|int4: how the cache keeps its
// numbers.
#include <algorithm>
#include <chrono>
#include "apps/model_options.h"
#include "autograd/ops.h"
#include "bench/wait.h"

namespace llatte {
namespace {

struct Options {
  ModelOptions model;
  CacheOption cache;
  int64_t prompt = 512, tokens = 128, context = 0, rounds = 5;
};

// Ids spread over the vocabulary: speed does not depend on them, but each must be a token.
Tensor some_ids(int64_t n, int64_t vocab) {
  std::vector<int32_t> ids(static_cast<size_t>(n));
  for (size_t i = 0; i < ids.size(); ++i)
    ids[i] = static_cast<int32_t>((i * 7919 + 13) % static_cast<size_t>(vocab));
  return Tensor::from(ids, {1, n});
}

void run_tokens(Llama& model, const Tensor& ids_1T, KvCache& cache) {
  const int64_t T = ids_1T.size(1);
  model.logits(slice(model.hidden(ids_1T, &cache), 1, T - 1, T));
}

template <class F>
double tokens_per_s(Device device, int64_t rounds, int64_t tokens, F f) {
  double best = 0;
  for (int64_t i = 0; i < rounds; ++i) {
    const auto start = std::chrono::steady_clock::now();
    f();
    wait(device);
    const std::chrono::duration<double> s = std::chrono::steady_clock::now() - start;
    best = std::max(best, static_cast<double>(tokens) / s.count());
  }
  return best;
}

void run(const App& app, const Options& o) {
  const NoGrad off;
  const auto model = o.model.load_model(app.device);
  const int64_t V = model->config().vocab_size;
  const Tensor prompt = some_ids(o.prompt, V), one = some_ids(1, V);
  const double prefill = tokens_per_s(app.device, o.rounds, o.prompt, [&] {
    KvCache cache = model->make_cache(1, o.prompt, o.cache.type());
    run_tokens(*model, prompt, cache);
  });
  KvCache cache = model->make_cache(1, o.context + o.tokens, o.cache.type());
  if (o.context > 0) run_tokens(*model, some_ids(o.context, V), cache);
  const double decode = tokens_per_s(app.device, o.rounds, o.tokens, [&] {
    for (auto& layer : cache.layers) layer->truncate(o.context);
    for (int64_t i = 0; i < o.tokens; ++i) run_tokens(*model, one, cache);
  });
  const int64_t bytes = cache.bytes_per_token();
  if (app.json)
    return app.print_json({{"prefill_tokens_per_s", prefill},
                           {"decode_tokens_per_s", decode},
                           {"cache_bytes_per_token", bytes}});
  std::cout << "prefill " << o.prompt << ": " << prefill << " tokens/s   decode " << o.tokens;
  if (o.context > 0) std::cout << " after " << o.context;
  std::cout << ": " << decode << " tokens/s   cache " << bytes << " bytes a token\n";
}

}  // namespace
}  // namespace llatte

int main(int argc, char** argv) {
  using namespace llatte;
  App app("bench-decode", "How fast a model reads a prompt and writes tokens.", "decode MODEL --dtype bf16");
  Options o;
  o.model.add_to(app.cli);
  app.cli.add_option("--prompt", o.prompt, "tokens of the prompt")->check(CLI::Range(1, 1 << 20));
  app.cli.add_option("--tokens", o.tokens, "tokens written")->check(CLI::Range(1, 1 << 20));
  app.cli.add_option("--context", o.context, "tokens already in the cache")->check(CLI::Range(0, 1 << 20));
  o.cache.add_to(app.cli, "numbers of the cache (default: --dtype)");
  app.cli.add_option("--rounds", o.rounds, "the best of this many")->check(CLI::Range(1, 1000));
  return app.run(argc, argv, [&] { run(app, o); });
}
