// llatte-generate: continues a prompt, or talks, streaming the text to stdout. Special tokens are not shown.
//   --prompt          one text
//   --chat --prompt   one question, through the model's chat template, and its answer
//   --chat            a conversation: a line of stdin is a question; Ctrl-C stops an answer, Ctrl-D ends
#include "eval/generate.h"
#include <unistd.h>
#include <csignal>
#include "apps/model_options.h"
#include "data/chat_template.h"
#include "eval/text_stream.h"

namespace llatte {
namespace {

constexpr int64_t kChatReserve = 2048;  // tokens of cache a conversation starts with

struct Options {
  ModelOptions model;
  CacheOption cache;
  std::string prompt, system;
  GenerateOptions generate;
  std::vector<std::string> stop_texts;
  bool prompted = false, chat = false, ignore_eos = false, stats = false;
};

volatile std::sig_atomic_t interrupted = 0;
void on_interrupt(int) { interrupted = 1; }

// As many new tokens as the model has positions for; said when that is fewer than asked.
void fit_length(GenerateOptions& g, int64_t prompt, const LlamaConfig& c) {
  const int64_t room = c.max_position_embeddings - prompt;
  if (room < 1 || g.max_tokens <= room) return;  // no room at all is generate()'s error
  std::cerr << "llatte-generate: --max-tokens " << g.max_tokens << " lowered to " << room << ": " << prompt
            << " prompt tokens and max_position_embeddings " << c.max_position_embeddings << '\n';
  g.max_tokens = room;
}

void print_stats(const Generation& g) {
  std::cerr << "prefill " << g.prefilled << " tokens, " << g.prefill_tokens_per_s() << " tokens/s\n"
            << "decode  " << g.tokens.size() << " tokens, " << g.decode_tokens_per_s() << " tokens/s\n"
            << "cache   " << g.cache_bytes << " bytes, " << g.cache_bytes_per_token << " per token\n";
}

// The model with all that speaking through it takes; the conversation, if it is one.
class Speaker {
 public:
  Speaker(const App& app, const Options& o)
      : app_(app),
        o_(o),
        tokenizer_(o.model.load_tokenizer()),
        chat_template_(o.chat ? find_template(o.model) : ""),
        model_(o.model.load_model(app.device)),
        session_(*model_, o.cache.type(), o.chat && !o.prompted ? kChatReserve : 0) {
    if (!o.system.empty()) talk_.push_back({"system", o.system});
  }

  void complete(const std::string& prompt) {
    std::vector<int32_t> ids = tokenizer_.encode(prompt);
    const auto& bos = config().bos_token_id;
    if (ids.empty() && bos) ids.push_back(static_cast<int32_t>(*bos));
    speak(ids);
  }

  void answer(const std::string& question) {
    talk_.push_back({"user", question});
    const std::string prompt =
        render_chat(chat_template_, talk_, true, text_of(config().bos_token_id),
                    text_of(config().eos_token_id), o_.model.model + ": chat template");
    talk_.push_back({"assistant", speak(tokenizer_.encode(prompt))});
  }

 private:
  static std::string find_template(const ModelOptions& m) {
    const std::string& found = m.checkpoint().chat_template;
    LLATTE_CHECK(!found.empty(), m.model,
                 " has no chat template; --chat needs a model with chat_template.jinja or ",
                 "chat_template in its tokenizer_config.json, --prompt alone works without");
    return found;
  }

  const LlamaConfig& config() const { return model_->config(); }

  std::string text_of(const std::optional<int64_t>& id) const {
    if (!id || *id >= tokenizer_.vocab_size()) return "";
    const int32_t one[] = {static_cast<int32_t>(*id)};
    return tokenizer_.decode(one);
  }

  // This answer's own options. A stop text that is a special token never shows up as text: its id stops.
  GenerateOptions options(int64_t prompt_tokens) {
    GenerateOptions g = o_.generate;
    g.seed += answers_++;
    fit_length(g, prompt_tokens, config());
    if (!o_.ignore_eos) {
      if (config().eos_token_id) g.stop.push_back(*config().eos_token_id);
      for (const int64_t id : config().more_eos_token_ids) g.stop.push_back(id);
    }
    for (const std::string& text : o_.stop_texts)
      if (const auto id = tokenizer_.id_of(text); id && tokenizer_.is_special(*id)) g.stop.push_back(*id);
    return g;
  }

  std::string speak(const std::vector<int32_t>& prompt) {
    const GenerateOptions g = options(static_cast<int64_t>(prompt.size()));
    TextStream stream(tokenizer_, o_.stop_texts);
    std::string text;
    const auto show = [&](const std::string& piece) {
      text += piece;
      if (!app_.json) std::cout << piece << std::flush;
    };
    interrupted = 0;
    const Generation made = session_.generate(prompt, g, [&](int32_t id) {
      show(stream.next(id));
      return !stream.stopped() && !interrupted && std::cout.good();  // | head has gone: enough
    });
    show(stream.finish());
    if (!app_.json) std::cout << std::endl;
    report(made, text);
    return text;
  }

  void report(const Generation& g, const std::string& text) const {
    if (o_.stats) print_stats(g);
    if (!app_.json) return;
    app_.print_json({{"text", text},
                     {"tokens", g.tokens.size()},
                     {"ids", g.tokens},
                     {"prompt_tokens", g.prompt_tokens},
                     {"prefilled_tokens", g.prefilled},
                     {"prefill_tokens_per_s", g.prefill_tokens_per_s()},
                     {"decode_tokens_per_s", g.decode_tokens_per_s()},
                     {"cache_bytes", g.cache_bytes},
                     {"cache_bytes_per_token", g.cache_bytes_per_token}});
    std::cout.flush();
  }

  const App& app_;
  const Options& o_;
  Tokenizer tokenizer_;
  std::string chat_template_;
  std::unique_ptr<Llama> model_;
  Session session_;
  std::vector<ChatMessage> talk_;
  uint64_t answers_ = 0;
};

void converse(Speaker& speaker) {
  std::signal(SIGINT, on_interrupt);  // the C library goes on reading a line that a signal interrupts
  const bool person = isatty(STDIN_FILENO) && isatty(STDOUT_FILENO);
  std::string line;
  while (std::cout << (person ? "> " : "") << std::flush && std::getline(std::cin, line))
    if (!line.empty()) speaker.answer(line);
  if (person) std::cout << '\n';
}

void run(const App& app, Options& o) {
  o.prompted = app.cli.count("--prompt") > 0;  // "" is a prompt too
  if (!o.chat && !o.prompted) throw UsageError("--prompt is required, or --chat");
  if (!o.chat && !o.system.empty()) throw UsageError("--system is for --chat");
  Speaker speaker(app, o);
  if (!o.chat) speaker.complete(o.prompt);
  else if (o.prompted) speaker.answer(o.prompt);
  else converse(speaker);
}

void add_sampling(CLI::App& cli, GenerateOptions& g) {
  cli.add_option("--max-tokens", g.max_tokens, "new tokens at most (of one answer)")
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
  cli.add_option("--repetition-penalty", g.repetition_penalty,
                 "makes tokens already seen less likely; 1: off")
      ->check(CLI::Range(1e-3, 1e3))
      ->capture_default_str();
  cli.add_option("--seed", g.seed, "the same seed gives the same text")->capture_default_str();
}

void add_options(CLI::App& cli, Options& o) {
  o.generate.rule.temperature = 0.8;
  o.model.add_to(cli);
  cli.add_option("--prompt", o.prompt, "text to continue; with --chat: the one question to answer");
  cli.add_flag("--chat", o.chat, "talk through the model's chat template; without --prompt, lines of stdin");
  cli.add_option("--system", o.system, "with --chat: the system message");
  add_sampling(cli, o.generate);
  cli.add_option("--stop", o.stop_texts, "end before this text; may be given again for others")
      ->allow_extra_args(false)
      ->check([](const std::string& s) { return s.empty() ? "a stop text must not be empty" : ""; });
  cli.add_flag("--ignore-eos", o.ignore_eos, "go on after an end-of-text token");
  o.cache.add_to(cli, "numbers of the KV cache (default: --dtype)");
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
