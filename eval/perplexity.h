// Perplexity of a token stream: exp of the mean negative log-likelihood over the predicted tokens. Positions
// restart at 0 in every window.
//   non-overlapping  whole windows of W tokens, each predicting its last W-1
//   sliding          windows `stride` apart; every token but the first is scored once, and those after the
//                    first window have at least W - stride tokens before them
#pragma once
#include "eval/score.h"

namespace llatte {

// The model reads tokens [begin, end) and is scored on [scored, end).
struct EvalWindow {
  int64_t begin = 0, scored = 0, end = 0;
};

// Whole windows only; an Error if there is none. max_windows 0: all.
std::vector<EvalWindow> non_overlapping_windows(int64_t tokens, int64_t window, int64_t max_windows = 0);
// 1 <= stride < window; the last window is moved back to end with the stream.
std::vector<EvalWindow> sliding_windows(int64_t tokens, int64_t window, int64_t stride,
                                        int64_t max_windows = 0);

struct Perplexity {
  double nll = 0, ppl = 0;  // mean over `tokens`; exp(nll)
  int64_t tokens = 0, windows = 0;
  std::vector<double> window_nlls;  // each window's mean over its own tokens
  double seconds = 0;
};

// The windows' tokens and where scoring begins in each.
std::vector<ScoreRequest> requests_of(std::span<const int32_t> tokens,
                                      const std::vector<EvalWindow>& windows);
Perplexity perplexity(Llama& model, std::span<const int32_t> tokens, const std::vector<EvalWindow>& windows,
                      const ScoreSettings& s = {});

}  // namespace llatte
