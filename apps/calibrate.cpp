// llatte-calibrate: what a model does on calibration text, for the conversions to read: scores of RoPE pairs
// and, with --covariance, second moments of inputs and gradients. Can be interrupted at any time.
#include "convert/calibrate.h"
#include <atomic>
#include <chrono>
#include <csignal>
#include "apps/model_options.h"
#include "data/files.h"
#include "data/token_file.h"

namespace llatte {
namespace {

using Clock = std::chrono::steady_clock;

constexpr double kSaveEvery = 60, kSayEvery = 5;  // seconds

std::atomic<bool> stop_requested{false};

// The first signal ends the run after the window in hand; a second one ends the process at once.
void on_signal(int signal) {
  stop_requested = true;
  std::signal(signal, SIG_DFL);
}

struct Options {
  ModelOptions model;
  CalibrationSettings settings;
  std::string text, data, out, score = "product";
  int64_t samples = 1024, seq = 2048;
};

double seconds_since(Clock::time_point t) { return std::chrono::duration<double>(Clock::now() - t).count(); }

// The first `samples` whole windows, i32 [N,T]; fewer where the data ends before.
Tensor read_windows(const Options& o, const LlamaConfig& c) {
  std::vector<int32_t> ids;
  if (!o.text.empty()) ids = o.model.load_tokenizer().encode(read_file(o.text));
  const std::string source = o.text.empty() ? o.data : o.text;
  const auto read = [&](int64_t tokens) {
    LLATTE_CHECK(tokens >= o.seq, source, " holds ", tokens, " tokens, less than one window of --seq ", o.seq,
                 "; give more text or shorter windows");
    return std::min(o.samples, tokens / o.seq);
  };
  if (!o.text.empty()) {
    const int64_t N = read(static_cast<int64_t>(ids.size()));
    return Tensor::from(std::span<const int32_t>(ids).first(static_cast<size_t>(N * o.seq)), {N, o.seq});
  }
  const TokenFile file = TokenFile::open(o.data, c.vocab_size);
  Tensor tokens_NT = Tensor::empty({read(file.size()), o.seq}, DType::i32);
  file.copy(0, tokens_NT.numel(), tokens_NT.data<int32_t>());
  return tokens_NT;
}

// "calibrate: 12/64 windows, 1234 tokens/s, left 1m05s"; `first` windows were done before this run.
void say_progress(const Calibration& c, int64_t first, int64_t seq, Clock::time_point start) {
  const double per_window = seconds_since(start) / static_cast<double>(c.done() - first);
  const auto left = static_cast<int64_t>(per_window * static_cast<double>(c.windows() - c.done()) + 0.5);
  const auto rate = static_cast<int64_t>(static_cast<double>(seq) / per_window + 0.5);
  std::cerr << "calibrate: " << c.done() << '/' << c.windows() << " windows, " << rate << " tokens/s, left "
            << left / 60 << 'm' << left % 60 / 10 << left % 10 << 's' << std::endl;
}

// Windows until none is left or a signal came.
void run_windows(Calibration& c, const Options& o, const std::string& partial, Comm& comm) {
  const int64_t first = c.done();
  const Clock::time_point start = Clock::now();
  Clock::time_point said = start, saved = start;
  while (c.done() < c.windows() && !any_rank(stop_requested, comm)) {
    c.add_window();
    if (seconds_since(said) > kSayEvery && comm.rank() == 0)
      say_progress(c, first, o.seq, start), said = Clock::now();
    if (any_rank(seconds_since(saved) > kSaveEvery, comm)) c.save_partial(partial), saved = Clock::now();
  }
}

// Before hours of work, not after.
void check_target(const std::filesystem::path& out) {
  const auto folder = std::filesystem::absolute(out).parent_path();
  LLATTE_CHECK(std::filesystem::is_directory(folder) && !std::filesystem::is_directory(out), "--out ",
               out.string(), " is no file that could be written; name one in a folder that exists");
}

void run(App& app, const Options& o) {
  check_target(o.out);
  const std::string partial = o.out + ".partial";
  const auto model = o.model.load_model(app.device);
  const Tensor tokens_NT = read_windows(o, model->config());
  const int64_t N = tokens_NT.size(0);
  const bool speaks = app.comm().rank() == 0;
  if (speaks && N < o.samples)
    std::cerr << "calibrate: the data has " << N << " whole windows, all are used\n";
  Calibration c(*model, tokens_NT, o.settings, &app.comm());
  const bool resumed = std::filesystem::exists(partial);
  if (resumed) c.resume(partial);
  std::signal(SIGINT, on_signal);
  std::signal(SIGTERM, on_signal);
  if (speaks)
    std::cerr << "calibrate: " << N << " windows of " << o.seq << " tokens"
              << (resumed ? str(", going on after window ", c.done()) : "") << std::endl;
  run_windows(c, o, partial, app.comm());
  if (c.done() < N) {
    c.save_partial(partial);
    LLATTE_FAIL("interrupted after window ", c.done(), " of ", N, ", sums saved in ", partial,
                "; the same command goes on from there");
  }
  c.write(o.out, o.score == "sum" ? ScoreKind::sum : ScoreKind::product);
  if (speaks) std::filesystem::remove(partial);
  if (app.json) return app.print_json({{"windows", N}, {"tokens", N * o.seq}, {"out", o.out}});
  std::cout << o.out << ": scores" << (o.settings.covariance ? " and covariances" : "") << " of " << N
            << " windows of " << o.seq << " tokens\n";
}

void add_options(CLI::App& cli, Options& o) {
  o.model.add_to(cli);
  auto* input = cli.add_option_group("input")->require_option(1);
  input->add_option("--text", o.text, "UTF-8 text file");
  input->add_option("--data", o.data, "token file (.ds)");
  cli.add_option("--samples", o.samples, "windows to read, or as many as there are")
      ->check(CLI::Range(1, 1 << 30))
      ->capture_default_str();
  cli.add_option("--seq", o.seq, "tokens per window")->check(CLI::Range(1, 1 << 30))->capture_default_str();
  cli.add_option("--out", o.out, "safetensors file to write; until it is done, sums are in FILE.partial")
      ->required();
  cli.add_option("--score", o.score, "how the 2-norms of q and k are combined; sum: as older programs did")
      ->check(CLI::IsMember({"product", "sum"}))
      ->capture_default_str();
  cli.add_flag("--covariance", o.settings.covariance, "also second moments of inputs and gradients");
  cli.add_option("--windows-for-gradients", o.settings.gradient_windows,
                 "with --covariance: windows that are run backward too")
      ->check(CLI::Range(1, 1 << 30))
      ->capture_default_str();
  cli.add_option("--seed", o.settings.seed, "of the labels drawn for the gradients")->capture_default_str();
}

}  // namespace
}  // namespace llatte

int main(int argc, char** argv) {
  using namespace llatte;
  App app(
      "calibrate", "Measures a model on calibration text, for convert.",
      "calibrate model-hf --text book.txt --samples 64 --seq 512 --covariance --out calibration.safetensors");
  Options o;
  add_options(app.cli, o);
  app.over_ranks();
  return app.run(argc, argv, [&] { run(app, o); });
}
