// llatte-eval: what a model is worth. ppl: perplexity of a text or token file. wikitext and choices:
// lm-eval's metrics. logits and grads: raw numbers, for comparison with other programs.
#include "apps/model_options.h"
#include "data/files.h"
#include "data/safetensors.h"
#include "data/token_file.h"
#include "eval/choices.h"
#include "eval/lm_eval.h"
#include "eval/progress.h"
#include "eval/wikitext.h"

namespace llatte {
namespace {

struct Options {
  ModelOptions model;
  CacheOption cache;
  std::string text, data, items, out;
  int64_t window = 2048, stride = 0, max_windows = 0, max_pages = 0;
  int64_t read_at_most = 0;  // wikitext and choices; 0: as the model has positions
};

// Ids of a text or token file, of the latter the first `at_most` (0: all).
std::vector<int32_t> read_ids(const Options& o, const LlamaConfig& c) {
  if (!o.text.empty()) return o.model.load_tokenizer().encode(read_file(o.text));
  const TokenFile file = TokenFile::open(o.data, c.vocab_size);
  const int64_t n = o.max_windows && !o.stride && o.window < file.size() / o.max_windows
                        ? o.max_windows * o.window
                        : file.size();
  std::vector<int32_t> ids(static_cast<size_t>(n));
  file.copy(0, n, ids.data());
  return ids;
}

ScoreSettings score_settings(App& app, EvalProgress& progress,
                             std::optional<CacheType> cache = std::nullopt) {
  ScoreSettings s{.cache = cache, .comm = &app.comm()};
  if (app.comm().rank() == 0) s.progress = std::ref(progress);
  return s;
}

void ppl(App& app, const Options& o) {
  const auto model = o.model.load_model(app.device);
  const std::vector<int32_t> ids = read_ids(o, model->config());
  const auto n = static_cast<int64_t>(ids.size());
  const auto windows = o.stride ? sliding_windows(n, o.window, o.stride, o.max_windows)
                                : non_overlapping_windows(n, o.window, o.max_windows);
  EvalProgress progress("ppl");
  const Perplexity p = perplexity(*model, ids, windows, score_settings(app, progress, o.cache.type()));
  const double rate = p.seconds > 0 ? static_cast<double>(p.tokens) / p.seconds : 0;
  const std::string kind = o.stride ? "sliding" : "non-overlapping";
  if (app.json) {
    nlohmann::ordered_json j{
        {"nll", p.nll},         {"ppl", p.ppl},         {"tokens", p.tokens},
        {"windows", p.windows}, {"seconds", p.seconds}, {"tokens_per_s", rate},
        {"kind", kind},         {"window", o.window},   {"stride", o.stride ? o.stride : o.window}};
    if (!o.cache.word.empty()) j["cache"] = o.cache.word;
    j["window_nlls"] = p.window_nlls;
    return app.print_json(j);
  }
  std::cout << "perplexity " << p.ppl << "  nll " << p.nll << "  (" << p.tokens << " tokens in " << p.windows
            << ' ' << kind << " windows of " << o.window;
  if (o.stride) std::cout << ", stride " << o.stride;
  if (!o.cache.word.empty()) std::cout << ", decoded through a cache of " << o.cache.word;
  std::cout << "; " << rate << " tokens/s)\n";
}

// What both of lm-eval's tasks need. MODEL's config says what --window is where it isn't given.
struct LmEval {
  LmEval(const App& app, const Options& o)
      : tokenizer(o.model.load_tokenizer()),
        model(o.model.load_model(app.device)),
        prefix(prefix_token(tokenizer, o.model.tokenizer_config(), model->config())),
        positions(model->config().max_position_embeddings) {}
  Tokenizer tokenizer;
  std::unique_ptr<Llama> model;
  int32_t prefix;
  int64_t positions;
};

void wikitext_metric(App& app, const Options& o) {
  std::vector<std::string> pages = wikitext_pages(read_file(o.text));
  LLATTE_CHECK(!pages.empty(), o.text, " has no pages; give a wiki.*.raw file");
  if (o.max_pages && o.max_pages < static_cast<int64_t>(pages.size()))
    pages.resize(static_cast<size_t>(o.max_pages));
  const LmEval e(app, o);
  const int64_t window = o.read_at_most ? o.read_at_most : std::min<int64_t>(2048, e.positions);
  EvalProgress progress("wikitext");
  const Wikitext w = wikitext(*e.model, e.tokenizer, e.prefix, pages, window, score_settings(app, progress));
  if (app.json)
    return app.print_json({{"word_perplexity", w.word_perplexity},
                           {"byte_perplexity", w.byte_perplexity},
                           {"bits_per_byte", w.bits_per_byte},
                           {"tokens", w.sum.tokens},
                           {"pages", w.pages.size()},
                           {"words", w.sum.words},
                           {"bytes", w.sum.bytes},
                           {"window", window},
                           {"seconds", w.seconds}});
  std::cout << "word perplexity " << w.word_perplexity << "  byte perplexity " << w.byte_perplexity
            << "  bits per byte " << w.bits_per_byte << "  (" << w.pages.size() << " pages, " << w.sum.tokens
            << " tokens in windows of " << window << ")\n";
}

void choices(App& app, const Options& o) {
  const std::vector<ChoiceItem> items = read_choice_items(o.items);
  const LmEval e(app, o);
  EvalProgress progress("choices");
  const Choices c =
      score_choices(*e.model, e.tokenizer, e.prefix, items, o.read_at_most ? o.read_at_most : e.positions,
                    score_settings(app, progress));
  if (!app.json) {
    std::cout << "acc " << c.acc << "  acc_norm " << c.acc_norm << "  (" << items.size() << " items)\n";
    return;
  }
  nlohmann::ordered_json lines = nlohmann::ordered_json::array();
  for (const ChoiceScore& s : c.items) lines.push_back({{"loglikelihoods", s.loglikelihoods}});
  app.print_json({{"acc", c.acc}, {"acc_norm", c.acc_norm}, {"items", lines}, {"seconds", c.seconds}});
}

// i32 [N,T]: the whole windows of a token file.
Tensor whole_windows(const Options& o, const LlamaConfig& c) {
  const std::vector<int32_t> ids = read_ids(o, c);
  LLATTE_CHECK(o.window >= 2, "--window ", o.window, " predicts nothing; use 2 or more");
  const int64_t N = static_cast<int64_t>(ids.size()) / o.window;
  LLATTE_CHECK(N > 0, o.data, " holds ", ids.size(), " tokens, less than one window of ", o.window);
  return Tensor::from(std::span(ids).first(static_cast<size_t>(N * o.window)), {N, o.window});
}

void logits(const App& app, const Options& o) {
  const NoGrad off;
  const auto model = o.model.load_model(app.device);
  const Tensor tokens_NT = whole_windows(o, model->config());
  const int64_t N = tokens_NT.size(0), T = tokens_NT.size(1), V = model->config().vocab_size;
  Tensor all_NTV = Tensor::empty({N, T, V}, DType::f32);
  for (int64_t n = 0; n < N; ++n)
    all_NTV.slice(0, n, n + 1).copy_from(model->logits(model->hidden(tokens_NT.slice(0, n, n + 1))).value);
  write_safetensors(o.out, {{"logits", all_NTV}});
  if (app.json) return app.print_json({{"windows", N}, {"tokens", N * T}, {"out", o.out}});
  std::cout << o.out << ": logits of " << N << " windows of " << T << " tokens\n";
}

// One window at a time, each backward scaled by 1/N, so that gradients add up to those of the mean.
double mean_loss_and_gradients(Llama& model, const Tensor& tokens_NT) {
  const int64_t N = tokens_NT.size(0), T = tokens_NT.size(1);
  double sum = 0;
  for (int64_t n = 0; n < N; ++n) {
    const Tensor row_1T = tokens_NT.slice(0, n, n + 1);
    const Var loss = model.loss(row_1T.slice(1, 0, T - 1).contiguous(), row_1T.slice(1, 1, T).contiguous());
    sum += loss.value.item();
    backward(loss, Tensor::full(loss.shape(), 1.0 / static_cast<double>(N), loss.value.dtype(),
                                loss.value.device()));
  }
  return sum / static_cast<double>(N);
}

void grads(const App& app, const Options& o) {
  const auto model = o.model.load_model(app.device);
  const Tensor tokens_NT = whole_windows(o, model->config());
  const double loss = mean_loss_and_gradients(*model, tokens_NT);
  std::vector<std::pair<std::string, Tensor>> out{
      {"loss", Tensor::full({}, loss, acc_dtype(model->dtype()))}};
  model->params("", [&](const std::string& name, Var& p) { out.emplace_back(name, p.grad()); });
  write_safetensors(o.out, out);
  if (app.json) return app.print_json({{"loss", loss}, {"windows", tokens_NT.size(0)}, {"out", o.out}});
  std::cout << o.out << ": loss " << loss << " and its gradient for " << out.size() - 1 << " parameters\n";
}

CLI::App* add_ppl(App& app, Options& o) {
  CLI::App* sub = app.cli.add_subcommand("ppl", "perplexity over windows");
  o.model.add_to(*sub);
  auto* input = sub->add_option_group("input")->require_option(1);
  input->add_option("--text", o.text, "UTF-8 text file");
  input->add_option("--data", o.data, "token file (.ds)");
  sub->add_option("--window", o.window, "tokens per window")
      ->check(CLI::Range(2, 1 << 30))
      ->capture_default_str();
  sub->add_option("--stride", o.stride, "sliding windows this far apart (default: non-overlapping)")
      ->check(CLI::Range(1, 1 << 30));
  sub->add_option("--max-windows", o.max_windows, "stop after this many")->check(CLI::Range(1, 1 << 30));
  o.cache.add_to(*sub, "score by decoding through a cache of such numbers (default: without a cache)");
  return sub;
}

CLI::App* add_lm_eval(App& app, Options& o, const char* name, const char* what, const char* window) {
  CLI::App* sub = app.cli.add_subcommand(name, what);
  o.model.add_to(*sub);
  sub->add_option("--window", o.read_at_most, std::string("tokens read at once (default: ") + window + ")")
      ->check(CLI::Range(1, 1 << 30));
  return sub;
}

CLI::App* add_wikitext(App& app, Options& o) {
  CLI::App* sub =
      add_lm_eval(app, o, "wikitext", "lm-eval's wikitext: perplexity per word and byte, bits per byte",
                  "2048, or the model's positions where fewer");
  sub->add_option("--text", o.text, "wiki.test.raw")->required();
  sub->add_option("--max-pages", o.max_pages, "stop after this many")->check(CLI::Range(1, 1 << 30));
  return sub;
}

CLI::App* add_choices(App& app, Options& o) {
  CLI::App* sub = add_lm_eval(app, o, "choices", "zero-shot multiple choice: lm-eval's acc and acc_norm",
                              "the model's positions");
  sub->add_option("--items", o.items, "jsonl file of {context, choices, label}")->required();
  return sub;
}

CLI::App* add_raw(App& app, Options& o, const char* name, const char* what) {
  CLI::App* sub = app.cli.add_subcommand(name, what);
  o.model.add_to(*sub);
  sub->add_option("--data", o.data, "token file (.ds)")->required();
  sub->add_option("--window", o.window, "tokens per window")->check(CLI::Range(2, 1 << 30))->required();
  sub->add_option("--out", o.out, "safetensors file to write")->required();
  return sub;
}

}  // namespace
}  // namespace llatte

int main(int argc, char** argv) {
  using namespace llatte;
  App app("eval", "Perplexity, lm-eval's metrics, logits and gradients of a model.",
          "eval ppl MODEL --text wiki.test.raw --window 2048");
  Options o;
  app.over_ranks();
  app.cli.require_subcommand(1);
  const CLI::App* sub_ppl = add_ppl(app, o);
  const CLI::App* sub_wikitext = add_wikitext(app, o);
  const CLI::App* sub_choices = add_choices(app, o);
  const CLI::App* sub_logits = add_raw(app, o, "logits", "`logits` f32 [N,T,V] of the N whole windows");
  add_raw(app, o, "grads", "`loss`, the mean over all windows, and its gradient for every parameter");
  return app.run(argc, argv, [&] {
    if (sub_ppl->parsed()) ppl(app, o);
    else if (sub_wikitext->parsed()) wikitext_metric(app, o);
    else if (sub_choices->parsed()) choices(app, o);
    else if (app.comm().size() > 1)
      throw UsageError("logits and grads are work for one process; leave mpirun out");
    else if (sub_logits->parsed()) logits(app, o);
    else grads(app, o);
  });
}
