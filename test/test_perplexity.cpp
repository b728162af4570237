// The two kinds of windows as intervals, and their scores against the loss written out from full logits.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>
#include <cmath>
#include "eval/perplexity.h"
#include "models/hf.h"
#include "test/on_device.h"
#include "test/temp_folder.h"

using namespace llatte;
using namespace llatte::test;

namespace {

std::vector<int32_t> stream(int64_t n) {
  std::vector<int32_t> ids;
  for (int64_t i = 0; i < n; ++i) ids.push_back(static_cast<int32_t>((i * i * 7 + 3 * i) % 384));
  return ids;
}

// -log p of tokens [w.scored, w.end) given [w.begin, ..), one window at a time, in f64.
double reference_nll(Llama& model, const std::vector<int32_t>& ids, const EvalWindow& w) {
  const NoGrad off;
  const std::vector<int32_t> part(ids.begin() + w.begin, ids.begin() + w.end);
  const Tensor tokens = Tensor::from(part, {1, w.end - w.begin});
  const Tensor logits = model.logits(model.hidden(tokens)).value;
  const auto x = logits.to_vector<double>();
  const auto V = static_cast<size_t>(logits.size(2));
  double nll = 0;
  for (int64_t i = w.scored; i < w.end; ++i) {
    const double* row = x.data() + static_cast<size_t>(i - 1 - w.begin) * V;
    double sum = 0;
    for (size_t v = 0; v < V; ++v) sum += std::exp(row[v]);
    nll += std::log(sum) - row[ids[static_cast<size_t>(i)]];
  }
  return nll;
}

std::vector<int64_t> flat(const std::vector<EvalWindow>& ws) {
  std::vector<int64_t> r;
  for (const auto& w : ws) r.insert(r.end(), {w.begin, w.scored, w.end});
  return r;
}

}  // namespace

TEST_CASE("non-overlapping: whole windows, each predicts its last W-1") {
  CHECK(flat(non_overlapping_windows(11, 4)) == std::vector<int64_t>{0, 1, 4, 4, 5, 8});
  CHECK(flat(non_overlapping_windows(12, 4, 2)) == std::vector<int64_t>{0, 1, 4, 4, 5, 8});
  CHECK(non_overlapping_windows(12, 4).size() == 3);
  CHECK(has(error_of([] { non_overlapping_windows(3, 4); }), "3 tokens do not fill one window of 4"));
  CHECK(has(error_of([] { non_overlapping_windows(3, 1); }), "a window of 1 tokens predicts nothing"));
}

TEST_CASE("sliding: each token once, with at least W - stride before it") {
  for (int64_t n : {2, 3, 7, 8, 9, 23, 64})
    for (int64_t W : {2, 3, 8, 31})
      for (int64_t stride = 1; stride < W; ++stride) {
        int64_t next = 1;
        for (const auto& w : sliding_windows(n, W, stride)) {
          REQUIRE(w.scored == next);
          REQUIRE(w.begin >= 0);
          REQUIRE(w.end - w.begin <= W);
          REQUIRE(w.end > w.scored);
          if (next > 1) REQUIRE(w.scored - w.begin >= W - stride);
          next = w.end;
        }
        REQUIRE(next == n);
      }
  CHECK(sliding_windows(64, 8, 4, 3).size() == 3);
  CHECK(has(error_of([] { sliding_windows(9, 4, 4); }), "stride 4 must be in [1,4)"));
  CHECK(has(error_of([] { sliding_windows(1, 4, 2); }), "1 tokens predict nothing"));
}

// In f64 both sides are the same formula: 1e-9 is far above rounding and far below any misplaced token.
TEST_CASE("scores are those of the logits, batched or not") {
  const auto model = here(load_hf("test/fixtures/tiny-llama/tiny-llama", DType::f64));
  const auto ids = stream(61);
  for (const auto& windows :
       {non_overlapping_windows(61, 9), sliding_windows(61, 16, 5), sliding_windows(7, 16, 5)}) {
    double want = 0;
    for (const auto& w : windows) want += reference_nll(*model, ids, w);
    for (const int64_t batch : {1, 40, 4096}) {
      const Perplexity p = perplexity(*model, ids, windows, {.batch_tokens = batch});
      CHECK(std::abs(p.nll - want / static_cast<double>(p.tokens)) <= 1e-9);
      CHECK(p.ppl == std::exp(p.nll));
      CHECK(p.windows == static_cast<int64_t>(windows.size()));
      REQUIRE(p.window_nlls.size() == windows.size());
      for (size_t i = 0; i < windows.size(); ++i) {
        const auto scored = static_cast<double>(windows[i].end - windows[i].scored);
        CHECK(std::abs(p.window_nlls[i] - reference_nll(*model, ids, windows[i]) / scored) <= 1e-9);
      }
    }
  }
  CHECK(perplexity(*model, ids, non_overlapping_windows(61, 9)).tokens == 6 * 8);
  CHECK(perplexity(*model, ids, sliding_windows(61, 16, 5)).tokens == 60);
}

// More tokens than one chunk, rows of unlike length, targets that begin late. In f64 a cache of f64 changes
// nothing but the order of sums; the others are of their rounding's size, about 2^-9, 1/254 and 1/14 of the
// numbers that attention reads, whose share in a loss of about 6 is far below that.
TEST_CASE("through a cache: the same losses, and those of the rounding") {
  for (const char* folder : {"tiny-llama/tiny-llama", "tiny-mla/nanotron-era/hf_v4_m7"}) {
    CAPTURE(folder);
    const auto model = here(load_hf(std::string("test/fixtures/") + folder, DType::f64));
    auto ids = stream(150);
    for (int32_t& id : ids) id %= static_cast<int32_t>(model->config().vocab_size);
    const std::vector<ScoreRequest> requests{{std::span(ids).first(40), 1},
                                             {std::span(ids).subspan(40, 35), 20},
                                             {std::span(ids).subspan(75), 60},
                                             {std::span(ids).first(2), 1}};
    const auto plain = log_likelihoods(*model, requests);
    const auto worst = [&](CacheType t) {
      const auto got = log_likelihoods(*model, requests, {.cache = t});
      double d = 0;
      for (size_t i = 0; i < got.size(); ++i) d = std::max(d, std::abs(got[i] - plain[i]));
      return d;
    };
    CHECK(worst(CacheType::f64) <= 1e-9);
    const double bf16 = worst(CacheType::bf16), int8 = worst(CacheType::int8), int4 = worst(CacheType::int4);
    CHECK((1e-4 < bf16 && bf16 < 0.5));  // of sums over up to 39 tokens
    CHECK((1e-4 < int8 && int8 < 0.5));
    CHECK((1e-3 < int4 && int4 < 5));
    CHECK(int8 < int4);
  }
}
