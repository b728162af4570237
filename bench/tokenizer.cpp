// Tokenizer speed on real text, one thread: bytes_per_second. SmolLM2's tokenizer on WikiText-2 (test, raw).
#include "data/tokenizer.h"
#include <benchmark/benchmark.h>
#include <map>
#include "data/files.h"

namespace {

const llatte::Tokenizer& tokenizer(const char* path) {
  static std::map<std::string, llatte::Tokenizer> loaded;
  const auto it = loaded.find(path);
  return it != loaded.end() ? it->second : loaded.emplace(path, llatte::Tokenizer::load(path)).first->second;
}

const std::string& text() {
  static const std::string t = llatte::read_file("assets/wikitext-2/test.raw");
  return t;
}

void encode(benchmark::State& state, const char* path) {
  const auto& t = tokenizer(path);
  for (auto _ : state) benchmark::DoNotOptimize(t.encode(text()));
  state.SetBytesProcessed(state.iterations() * text().size());
}
BENCHMARK_CAPTURE(encode, smollm2, "assets/tokenizer")->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(encode, llama3_style, "test/fixtures/tokenizers/llama3_pairs_plain")
    ->Unit(benchmark::kMillisecond);

void decode(benchmark::State& state) {
  const auto& t = tokenizer("assets/tokenizer");
  const auto ids = t.encode(text());
  for (auto _ : state) benchmark::DoNotOptimize(t.decode(ids));
  state.SetBytesProcessed(state.iterations() * text().size());
}
BENCHMARK(decode)->Unit(benchmark::kMillisecond);

void load(benchmark::State& state) {
  for (auto _ : state) benchmark::DoNotOptimize(llatte::Tokenizer::load("assets/tokenizer"));
}
BENCHMARK(load)->Unit(benchmark::kMillisecond);

}  // namespace

BENCHMARK_MAIN();
