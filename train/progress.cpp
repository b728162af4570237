#include "train/progress.h"
#include <unistd.h>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>
#include "data/files.h"
#include "tensor/check.h"

namespace llatte {
namespace {

using json = nlohmann::ordered_json;

// Bytes of the leading whole lines whose step is at most `last_step`; a torn last line ends them as well.
size_t bytes_to_keep(const std::string& text, int64_t last_step) {
  size_t begin = 0;
  while (begin < text.size()) {
    const size_t end = text.find('\n', begin);
    if (end == std::string::npos) break;
    const json line = json::parse(text.begin() + begin, text.begin() + end, nullptr, false);
    if (!line.is_object() || !line.contains("step") || !line["step"].is_number_integer()) break;
    if (line["step"].get<int64_t>() > last_step) break;
    begin = end + 1;
  }
  return begin;
}

std::string duration(double seconds) {
  const auto s = static_cast<int64_t>(seconds + 0.5);
  char text[40];
  if (s >= 3600)
    std::snprintf(text, sizeof text, "%lldh%02lldm", (long long)(s / 3600), (long long)(s / 60 % 60));
  else std::snprintf(text, sizeof text, "%lldm%02llds", (long long)(s / 60), (long long)(s % 60));
  return text;
}

}  // namespace

int64_t resident_bytes() {
  std::ifstream statm("/proc/self/statm");
  int64_t pages = 0, resident = 0;
  return statm >> pages >> resident ? resident * sysconf(_SC_PAGESIZE) : 0;
}

MetricsFile::MetricsFile(const std::filesystem::path& file, int64_t last_step) : path_(file) {
  if (std::filesystem::exists(file))
    std::filesystem::resize_file(file, bytes_to_keep(read_file(file), last_step));
  file_ = std::fopen(file.c_str(), "ab");
  LLATTE_CHECK(file_, file.string(), ": can't be written: ", std::strerror(errno));
}

MetricsFile::~MetricsFile() { std::fclose(file_); }

void MetricsFile::append(const StepRecord& r) {
  json line = {{"step", r.step},           {"loss", r.loss},          {"lr", r.lr},
               {"grad_norm", r.grad_norm}, {"tokens", r.tokens},      {"tokens_per_s", r.tokens_per_s},
               {"step_ms", r.step_ms},     {"rss_bytes", r.rss_bytes}};
  if (r.kl) line["kl"] = *r.kl;
  if (r.ce) line["ce"] = *r.ce;
  if (r.val_loss) line["val_loss"] = *r.val_loss;
  if (r.val_ppl) line["val_ppl"] = *r.val_ppl;
  const std::string text = line.dump() + "\n";
  const bool ok = std::fwrite(text.data(), 1, text.size(), file_) == text.size() && std::fflush(file_) == 0;
  LLATTE_CHECK(ok, path_.string(), ": step ", r.step, " could not be recorded: ", std::strerror(errno),
               "; the last checkpoint is whole: make room and resume");
}

void MetricsFile::sync() { fsync_path(path_); }

Progress::Progress(int64_t total_steps, int64_t interval, bool quiet)
    : total_(total_steps), interval_(interval), quiet_(quiet), terminal_(isatty(STDERR_FILENO)) {}

Progress::~Progress() {
  if (line_open_) std::fputc('\n', stderr);
}

void Progress::step(const StepRecord& r) {
  // The first steps warm caches up, so the mean forgets quickly.
  mean_ms_ = seen_++ == 0 ? r.step_ms : 0.9 * mean_ms_ + 0.1 * r.step_ms;
  if (quiet_ || (!terminal_ && r.step % interval_ != 0 && r.step != total_ && !r.val_loss)) return;
  char text[200];
  int n = std::snprintf(text, sizeof text,
                        "step %lld/%lld  loss %.4f  lr %.3g  grad %.3g  %.0f tokens/s  left %s",
                        (long long)r.step, (long long)total_, r.loss, r.lr, r.grad_norm, r.tokens_per_s,
                        duration(mean_ms_ / 1000 * double(total_ - r.step)).c_str());
  if (r.val_loss && n > 0 && n < 150)
    std::snprintf(text + n, sizeof text - n, "  val loss %.4f  ppl %.3f", *r.val_loss, *r.val_ppl);
  std::fprintf(stderr, terminal_ ? "\r\033[K%s" : "%s\n", text);
  std::fflush(stderr);
  line_open_ = terminal_;
}

void Progress::note(const std::string& sentence) {
  if (quiet_) return;
  std::fprintf(stderr, "%s%s\n", line_open_ ? "\n" : "", sentence.c_str());
  line_open_ = false;
}

}  // namespace llatte
