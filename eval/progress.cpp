#include "eval/progress.h"
#include <unistd.h>
#include <cstdio>

namespace llatte {

EvalProgress::EvalProgress(const std::string& what)
    : what_(what), terminal_(isatty(STDERR_FILENO)), start_(Clock::now()), shown_(start_) {}

EvalProgress::~EvalProgress() { clear_line(); }  // an error's sentence gets a line of its own

void EvalProgress::clear_line() {
  if (line_open_) std::fputs("\r\033[K", stderr);
  line_open_ = false;
}

void EvalProgress::operator()(int64_t done, int64_t total) {
  if (done == total) return clear_line();
  const auto now = Clock::now();
  const std::chrono::duration<double> since_line = now - shown_, since_start = now - start_;
  if (since_line.count() < (terminal_ ? 0.2 : 10.0)) return;
  shown_ = now;
  const double left = since_start.count() * static_cast<double>(total - done) / static_cast<double>(done);
  const auto s = static_cast<long long>(left + 0.5);
  std::fprintf(stderr, "%s%s: %lld/%lld tokens, left %lldm%02llds%s", terminal_ ? "\r\033[K" : "",
               what_.c_str(), static_cast<long long>(done), static_cast<long long>(total), s / 60, s % 60,
               terminal_ ? "" : "\n");
  std::fflush(stderr);
  line_open_ = terminal_;
}

}  // namespace llatte
