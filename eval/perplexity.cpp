// Windows are plain intervals; eval/score.h scores them.
#include "eval/perplexity.h"
#include <algorithm>
#include <chrono>
#include <cmath>

namespace llatte {
namespace {

void check_window(int64_t window) {
  LLATTE_CHECK(window >= 2, "perplexity: a window of ", window, " tokens predicts nothing; use 2 or more");
}

bool full(const std::vector<EvalWindow>& w, int64_t max_windows) {
  return max_windows > 0 && static_cast<int64_t>(w.size()) == max_windows;
}

}  // namespace

std::vector<EvalWindow> non_overlapping_windows(int64_t tokens, int64_t window, int64_t max_windows) {
  check_window(window);
  LLATTE_CHECK(tokens >= window, "perplexity: ", tokens, " tokens do not fill one window of ", window,
               "; use a shorter window");
  std::vector<EvalWindow> w;
  for (int64_t begin = 0; begin + window <= tokens && !full(w, max_windows); begin += window)
    w.push_back({begin, begin + 1, begin + window});
  return w;
}

std::vector<EvalWindow> sliding_windows(int64_t tokens, int64_t window, int64_t stride, int64_t max_windows) {
  check_window(window);
  LLATTE_CHECK(1 <= stride && stride < window, "perplexity: stride ", stride, " must be in [1,", window,
               "), less than the window");
  LLATTE_CHECK(tokens >= 2, "perplexity: ", tokens, " tokens predict nothing; give 2 or more");
  std::vector<EvalWindow> w{{0, 1, std::min(window, tokens)}};
  while (w.back().end < tokens && !full(w, max_windows)) {
    const int64_t scored = w.back().end, end = std::min(scored + stride, tokens);
    w.push_back({end - window, scored, end});
  }
  return w;
}

std::vector<ScoreRequest> requests_of(std::span<const int32_t> tokens,
                                      const std::vector<EvalWindow>& windows) {
  std::vector<ScoreRequest> requests;
  for (const EvalWindow& w : windows)
    requests.push_back({tokens.subspan(static_cast<size_t>(w.begin), static_cast<size_t>(w.end - w.begin)),
                        w.scored - w.begin});
  return requests;
}

Perplexity perplexity(Llama& model, std::span<const int32_t> tokens, const std::vector<EvalWindow>& windows,
                      const ScoreSettings& s) {
  const auto start = std::chrono::steady_clock::now();
  Perplexity p;
  const auto lls = log_likelihoods(model, requests_of(tokens, windows), s);
  for (size_t i = 0; i < windows.size(); ++i) {
    const int64_t scored = windows[i].end - windows[i].scored;
    p.nll -= lls[i], p.tokens += scored;
    p.window_nlls.push_back(-lls[i] / static_cast<double>(scored));
  }
  p.windows = static_cast<int64_t>(windows.size());
  p.nll /= static_cast<double>(p.tokens);
  p.ppl = std::exp(p.nll);
  p.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return p;
}

}  // namespace llatte
