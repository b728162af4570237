// Windows are plain intervals; scoring them is one loss over the targets that count.
#include "eval/perplexity.h"
#include <algorithm>
#include <chrono>
#include <cmath>

namespace llatte {
namespace {

constexpr int32_t kIgnored = -100;

void check_window(int64_t window) {
  LLATTE_CHECK(window >= 2, "perplexity: a window of ", window, " tokens predicts nothing; use 2 or more");
}

bool full(const std::vector<EvalWindow>& w, int64_t max_windows) {
  return max_windows > 0 && static_cast<int64_t>(w.size()) == max_windows;
}

// Inputs [begin, end-1) and targets one later, of windows that are equally long.
struct Rows {
  Tensor inputs_BT, targets_BT;
  int64_t scored = 0;
};

Rows rows_of(std::span<const int32_t> tokens, std::span<const EvalWindow> windows) {
  const auto B = static_cast<int64_t>(windows.size()), T = windows[0].end - windows[0].begin - 1;
  Rows r{Tensor::empty({B, T}, DType::i32), Tensor::full({B, T}, kIgnored, DType::i32), 0};
  for (int64_t b = 0; b < B; ++b) {
    const EvalWindow& w = windows[static_cast<size_t>(b)];
    const auto* first = tokens.data() + w.begin;
    std::copy(first, first + T, r.inputs_BT.data<int32_t>() + b * T);
    std::copy(tokens.data() + w.scored, tokens.data() + w.end,
              r.targets_BT.data<int32_t>() + b * T + (w.scored - w.begin - 1));
    r.scored += w.end - w.scored;
  }
  return r;
}

// How many windows from `i` on fit one batch.
size_t batch_size(const std::vector<EvalWindow>& w, size_t i, int64_t batch_tokens) {
  const int64_t T = w[i].end - w[i].begin;
  size_t n = 1;
  while (i + n < w.size() && w[i + n].end - w[i + n].begin == T &&
         static_cast<int64_t>(n + 1) * T <= batch_tokens)
    ++n;
  return n;
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

Perplexity perplexity(Llama& model, std::span<const int32_t> tokens, const std::vector<EvalWindow>& windows,
                      int64_t batch_tokens) {
  const NoGrad off;
  const auto start = std::chrono::steady_clock::now();
  Perplexity p;
  double sum = 0;
  for (size_t i = 0; i < windows.size();) {
    const size_t n = batch_size(windows, i, batch_tokens);
    const Rows r = rows_of(tokens, std::span(windows).subspan(i, n));
    sum += model.loss(r.inputs_BT, r.targets_BT).value.item() * static_cast<double>(r.scored);
    p.tokens += r.scored;
    i += n;
  }
  p.windows = static_cast<int64_t>(windows.size());
  p.nll = sum / static_cast<double>(p.tokens);
  LLATTE_CHECK(std::isfinite(p.nll), "perplexity: the mean loss is ", p.nll,
               "; the model's weights or activations are not finite");
  p.ppl = std::exp(p.nll);
  p.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return p;
}

}  // namespace llatte
