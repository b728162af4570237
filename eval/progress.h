// How far an evaluation is and how long it will take, on stderr: one line redrawn on a terminal, which goes
// when it is done; elsewhere a plain line every ten seconds. Called with tokens done and in all.
#pragma once
#include <chrono>
#include <cstdint>
#include <string>

namespace llatte {

class EvalProgress {
 public:
  explicit EvalProgress(const std::string& what);
  ~EvalProgress();
  EvalProgress(const EvalProgress&) = delete;
  void operator()(int64_t done, int64_t total);

 private:
  using Clock = std::chrono::steady_clock;
  void clear_line();
  std::string what_;
  bool terminal_, line_open_ = false;
  Clock::time_point start_, shown_;
};

}  // namespace llatte
