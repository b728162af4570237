// llatte-generate: continues a prompt, streaming the text to stdout. Special tokens are not shown.
#include "eval/generate.h"
#include "apps/model_options.h"

namespace llatte {
namespace {

struct Options {
  ModelOptions model;
  std::string prompt;
  GenerateOptions generate;
  bool stats = false;
};

std::vector<int32_t> prompt_ids(const Tokenizer& tokenizer, const std::string& prompt, const LlamaConfig& c) {
  std::vector<int32_t> ids = tokenizer.encode(prompt);
  if (ids.empty() && c.bos_token_id) ids.push_back(static_cast<int32_t>(*c.bos_token_id));
  return ids;
}

// As many new tokens as the model has positions for; said when that is fewer than asked.
void fit_length(GenerateOptions& g, int64_t prompt, const LlamaConfig& c) {
  const int64_t room = c.max_position_embeddings - prompt;
  if (room < 1 || g.max_tokens <= room) return;  // no room at all is generate()'s error
  std::cerr << "llatte-generate: --max-tokens " << g.max_tokens << " lowered to " << room << ": " << prompt
            << " prompt tokens and max_position_embeddings " << c.max_position_embeddings << '\n';
  g.max_tokens = room;
}

// Text of the tokens as they come. Ids the tokenizer has no text for (a padded vocabulary) show nothing.
class Printer {
 public:
  Printer(const Tokenizer& t, bool show) : tokenizer_(t), stream_(t), show_(show) {}
  void token(int32_t id) {
    if (id < tokenizer_.vocab_size() && !tokenizer_.is_special(id)) put(stream_.next(id));
  }
  const std::string& finish() {
    put(stream_.finish());
    if (show_) std::cout << '\n';
    return text_;
  }

 private:
  void put(const std::string& piece) {
    text_ += piece;
    if (show_) std::cout << piece << std::flush;
  }
  const Tokenizer& tokenizer_;
  Tokenizer::Stream stream_;
  bool show_;
  std::string text_;
};

void print_stats(const Generation& g) {
  std::cerr << "prefill " << g.prompt_tokens << " tokens, " << g.prefill_tokens_per_s() << " tokens/s\n"
            << "decode  " << g.tokens.size() << " tokens, " << g.decode_tokens_per_s() << " tokens/s\n"
            << "cache   " << g.cache_bytes << " bytes, " << g.cache_bytes_per_token << " per token\n";
}

void run(const App& app, Options& o) {
  const Tokenizer tokenizer = o.model.load_tokenizer();
  const auto model = o.model.load_model();
  const LlamaConfig& c = model->config();
  const std::vector<int32_t> prompt = prompt_ids(tokenizer, o.prompt, c);
  fit_length(o.generate, static_cast<int64_t>(prompt.size()), c);
  if (c.eos_token_id) o.generate.stop.push_back(*c.eos_token_id);
  for (const int64_t id : c.more_eos_token_ids) o.generate.stop.push_back(id);

  Printer printer(tokenizer, !app.json);
  const Generation g = generate(*model, prompt, o.generate, [&](int32_t id) { printer.token(id); });
  const std::string& text = printer.finish();
  if (o.stats) print_stats(g);
  if (app.json)
    app.print_json({{"text", text},
                    {"tokens", g.tokens.size()},
                    {"ids", g.tokens},
                    {"prompt_tokens", g.prompt_tokens},
                    {"prefill_tokens_per_s", g.prefill_tokens_per_s()},
                    {"decode_tokens_per_s", g.decode_tokens_per_s()},
                    {"cache_bytes", g.cache_bytes},
                    {"cache_bytes_per_token", g.cache_bytes_per_token}});
}

void add_options(CLI::App& cli, Options& o) {
  GenerateOptions& g = o.generate;
  g.rule.temperature = 0.8;
  o.model.add_to(cli);
  cli.add_option("--prompt", o.prompt, "text to continue")->required();
  cli.add_option("--max-tokens", g.max_tokens, "new tokens at most")
      ->check(CLI::Range(1, 1 << 30))
      ->capture_default_str();
  cli.add_option("--temperature", g.rule.temperature, "0: always the most likely token")
      ->check(CLI::Range(0.0, 1e6))
      ->capture_default_str();
  cli.add_option("--top-k", g.rule.top_k, "keep the k most likely; 0: all")->check(CLI::Range(0, 1 << 30));
  cli.add_option("--top-p", g.rule.top_p, "keep the smallest set with this probability")
      ->check(CLI::Range(1e-9, 1.0));
  cli.add_option("--min-p", g.rule.min_p, "drop tokens below this share of the best one's probability")
      ->check(CLI::Range(0.0, 1.0));
  cli.add_option("--seed", g.seed, "the same seed gives the same text")->capture_default_str();
  cli.add_flag("--stats", o.stats, "speed and cache size, on stderr");
}

}  // namespace
}  // namespace llatte

int main(int argc, char** argv) {
  using namespace llatte;
  App app("generate", "Continues a prompt.",
          "generate MODEL --prompt 'Once upon a time' --temperature 0.8 --seed 1");
  Options o;
  add_options(app.cli, o);
  return app.run(argc, argv, [&] { run(app, o); });
}
