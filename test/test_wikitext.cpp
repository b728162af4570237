// lm-eval's wikitext task against lm_eval itself: detokenised text byte for byte, pages by hash, windows, and
// the metric of a tiny model. assets/wikitext-2/test.raw is the file the fixtures were made from.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>
#include <cmath>
#include <fstream>
#include "data/files.h"
#include "data/json.h"
#include "eval/lm_eval.h"
#include "eval/wikitext.h"
#include "models/hf.h"
#include "test/on_device.h"
#include "test/sha256.h"
#include "test/temp_folder.h"

using namespace llatte;
using namespace llatte::test;
using nlohmann::json;

namespace {

const std::string kFolder = "test/fixtures/lm-eval/", kTiny = "test/fixtures/tiny-llama/tiny-llama";
const std::string kTest = "assets/wikitext-2/test.raw";

std::string text(const json& j) { return j.get<std::string>(); }

// The first n code points.
std::string first_characters(const std::string& s, size_t n) {
  size_t i = 0;
  while (i < s.size() && n > 0)
    if (++i == s.size() || (s[i] & 0xC0) != 0x80) --n;
  return s.substr(0, i);
}

bool near(double got, double want, double relative) {
  return std::abs(got - want) <= relative * std::abs(want);  // NaN fails
}

double weighted_perplexity(double ll, int64_t n) { return std::exp(-ll / static_cast<double>(n)); }

}  // namespace

TEST_CASE("detokenised text, words and bytes, byte for byte") {
  std::ifstream lines(kFolder + "detokenizer.jsonl");
  int n = 0;
  for (std::string line; std::getline(lines, line); ++n) {
    const json c = parse_json(line, "detokenizer.jsonl");
    const std::string page = text(c["page"]);
    CAPTURE(page);
    CHECK(wikitext_detokenize(page) == text(c["text"]));
    CHECK(wikitext_words(page) == c["words"]);
    CHECK(page.size() == c["bytes"]);
  }
  CHECK(n == 263);
}

TEST_CASE("pages: small cases") {
  const json cases = read_json(kFolder + "page_split_cases.json")["cases"];
  CHECK(cases.size() == 18);
  for (const json& c : cases) {
    const std::string raw = text(c["raw"]);
    CAPTURE(raw);
    CHECK(wikitext_pages(raw) == c["pages"].get<std::vector<std::string>>());
  }
}

TEST_CASE("pages of the test set: 62, with their words, bytes and detokenised text") {
  const json want = read_json(kFolder + "pages.json");
  const std::string raw = read_file(kTest);
  REQUIRE(sha256(raw) == text(want["file_sha256"]));
  const std::vector<std::string> pages = wikitext_pages(raw);
  REQUIRE(pages.size() == want["n_pages"]);
  int64_t words = 0, bytes = 0;
  for (size_t i = 0; i < pages.size(); ++i) {
    const json& w = want["pages"][i];
    CAPTURE(w["title"].dump());
    CHECK(sha256(pages[i]) == text(w["sha256_page"]));
    CHECK(sha256(wikitext_detokenize(pages[i])) == text(w["sha256_detokenized"]));
    CHECK(wikitext_words(pages[i]) == w["words"]);
    CHECK(pages[i].size() == w["bytes"]);
    words += wikitext_words(pages[i]), bytes += static_cast<int64_t>(pages[i].size());
  }
  CHECK(words == want["words"]);
  CHECK(bytes == want["bytes"]);
}

TEST_CASE("bytes that are no UTF-8 are words like others") {
  for (const std::string& s : {std::string("\xff\xfe"), std::string("a\xe2\x80"), std::string("\xc2")}) {
    CHECK(wikitext_words(s) == 1);
    CHECK(wikitext_detokenize(str("( ", s, " )")) == str("(", s, ")"));
    CHECK(wikitext_pages(s) == std::vector<std::string>{s});
  }
}

TEST_CASE("rolling windows are lm_eval's") {
  const json cases = read_json(kFolder + "windows.json")["cases"];
  CHECK(cases.size() == 194);
  for (const json& c : cases) {
    CAPTURE(c.dump());
    json got = json::array();
    // Index 0 of the stream is the prefix, -1 in the file.
    for (const EvalWindow& w : rolling_windows(c["n"], c["max_len"]))
      got.push_back({w.begin - 1, w.end - w.begin - 1, w.scored - 1, w.end - 1});
    CHECK(got == c["windows"]);
  }
}

// f32 on both sides, and lm_eval adds the losses of a window in f32. A token's loss of about 7 carries some
// 1e-6 of rounding that differs in sign from token to token, so a page's sum is relatively much closer than
// 1e-6; exp turns the error of a word's log-likelihood of about 20 into 20 times that: 2e-5 at the very
// worst, 1e-7 as measured.
TEST_CASE("the metric of a tiny model, with and without bos, in windows of several lengths") {
  const auto model = here(load_hf(kTiny, DType::f32));
  const Tokenizer tokenizer = Tokenizer::load(kFolder + "tokenizer");
  const std::vector<std::string> whole = wikitext_pages(read_file(kTest));
  const json results = read_json(kFolder + "wikitext_result.json")["results"];
  REQUIRE(results.size() == 4);
  for (const json& r : results) {
    CAPTURE(r["prefix_token"].dump());
    const bool cut = text(r["page_slice"]) == "first 3000 characters", bos = r["prefix_id"] == 1;
    const std::string config = bos ? "tokenizer_config.json" : "tokenizer_config.nobos.json";
    const int32_t prefix = prefix_token(tokenizer, kFolder + "tokenizer/" + config, model->config());
    REQUIRE(prefix == r["prefix_id"]);
    std::vector<std::string> pages(whole.begin(), whole.begin() + 5);
    if (cut)
      for (std::string& page : pages) page = first_characters(page, 3000);
    const Wikitext w = wikitext(*model, tokenizer, prefix, pages, r["window"]);
    for (size_t i = 0; i < pages.size(); ++i) {
      const json& page = r["pages"][i];
      CHECK(w.pages[i].tokens == page["tokens"]);
      CHECK(w.pages[i].words == page["words"]);
      CHECK(w.pages[i].bytes == page["bytes"]);
      CHECK(near(w.pages[i].loglikelihood, page["loglikelihood"], 1e-6));
    }
    CHECK(near(w.word_perplexity, r["word_perplexity"], 1e-5));
    CHECK(near(w.byte_perplexity, r["byte_perplexity"], 1e-5));
    CHECK(near(w.bits_per_byte, r["bits_per_byte"], 1e-5));
    CHECK(w.word_perplexity == weighted_perplexity(w.sum.loglikelihood, w.sum.words));
  }
}

// In f64 both sides are the same formula: 1e-9 is far above rounding and far below one f32 operation.
TEST_CASE("rolling log-likelihood in f64, batched or not") {
  const auto model = here(load_hf(kTiny, DType::f64));
  const Tokenizer tokenizer = Tokenizer::load(kFolder + "tokenizer");
  const std::string page = wikitext_pages(read_file(kTest))[0];
  const json results = read_json(kFolder + "wikitext_result.json")["results"];
  REQUIRE(results.size() == 4);
  for (const json& r : results) {
    const bool cut = text(r["page_slice"]) == "first 3000 characters";
    std::vector<int32_t> stream{r["prefix_id"].get<int32_t>()};
    for (const int32_t id : tokenizer.encode(wikitext_detokenize(cut ? first_characters(page, 3000) : page)))
      stream.push_back(id);
    stream.resize(301);
    const auto requests = requests_of(stream, rolling_windows(300, r["window"]));
    for (const int64_t batch : {1, 150, 4096}) {
      double sum = 0;
      for (const double ll : log_likelihoods(*model, requests, {.batch_tokens = batch})) sum += ll;
      CHECK(near(sum, r["check"]["first_page_first_300_tokens_loglikelihood_float64"], 1e-9));
    }
  }
}

TEST_CASE("the prefix token: tokenizer_config.json, else the model's config, else a sentence") {
  const TempFolder dir;
  const Tokenizer tokenizer = Tokenizer::load(kFolder + "tokenizer");
  const auto file = dir / "tokenizer_config.json";
  LlamaConfig c;
  CHECK(has(error_of([&] { prefix_token(tokenizer, file, c); }), "add bos_token_id to config.json"));
  c.eos_token_id = 7;
  CHECK(prefix_token(tokenizer, file, c) == 7);
  c.bos_token_id = 5;
  CHECK(prefix_token(tokenizer, file, c) == 5);
  write_file_atomic(file, R"({"bos_token": null, "eos_token": {"content": "<|eos|>"}})");
  CHECK(prefix_token(tokenizer, file, c) == 2);
  write_file_atomic(file, R"({"bos_token": "<s>"})");
  CHECK(has(error_of([&] { prefix_token(tokenizer, file, c); }), "`bos_token` <s> is not in the tokenizer"));
  write_file_atomic(file, R"({"bos_token": 3})");
  CHECK(has(error_of([&] { prefix_token(tokenizer, file, c); }), "`bos_token` is neither"));
  write_file_atomic(file, "[]");
  CHECK(prefix_token(tokenizer, file, c) == 5);
}

TEST_CASE("requests that can't be scored") {
  const auto model = here(load_hf(kTiny, DType::f32));
  const Tokenizer tokenizer = Tokenizer::load(kFolder + "tokenizer");
  const std::vector<int32_t> ids{1, 2, 3}, outside{1, 384, 3}, negative{1, -1, 3};
  const auto error = [&](const std::vector<int32_t>& tokens, int64_t scored) {
    return error_of([&] { log_likelihoods(*model, {{tokens, scored}}); });
  };
  CHECK(has(error(ids, 0), "of 3 tokens those from 0 on cannot be scored"));
  CHECK(has(error(ids, 3), "of 3 tokens those from 3 on cannot be scored"));
  CHECK(has(error({}, 1), "of 0 tokens those from 1 on cannot be scored"));
  CHECK(has(error(outside, 1), "token id 384 is outside the model's vocabulary of 384"));
  CHECK(has(error(negative, 1), "token id -1 is outside"));
  CHECK(has(error_of([&] { wikitext(*model, tokenizer, 1, {}, 64); }), "the text has no pages"));
  CHECK(has(error_of([&] { wikitext(*model, tokenizer, 1, {"a"}, 0); }), "a window of 0 tokens"));
  CHECK(log_likelihoods(*model, {}).empty());
  model->params("", [](const std::string&, Var& p) { p.value.copy_from(Tensor::full(p.shape(), NAN)); });
  CHECK(has(error(ids, 1), "not finite"));
}

// In f64, as above. The lengths differ by less than a quarter, so one batch pads the shorter ones.
TEST_CASE("padding in a batch changes nothing") {
  const auto model = here(load_hf(kTiny, DType::f64));
  const std::vector<int32_t> ids{5, 9, 300, 2, 77, 8, 41, 6, 19, 230, 4, 11};
  const std::span<const int32_t> all(ids);
  const std::vector<ScoreRequest> requests{{all.first(11), 9}, {all.last(10), 1}, {all, 5}};
  int batches = 0;
  const auto together = log_likelihoods(*model, requests, {.progress = [&](int64_t, int64_t) { ++batches; }});
  CHECK(batches == 1);
  for (size_t i = 0; i < requests.size(); ++i)
    CHECK(near(together[i], log_likelihoods(*model, {requests[i]})[0], 1e-9));
}

TEST_CASE("progress is told of every token read, in the end of all") {
  const auto model = here(load_hf(kTiny, DType::f32));
  const std::vector<int32_t> a{1, 2, 3}, b{1, 2, 3, 4, 5, 6, 7, 8};
  std::vector<int64_t> told;
  ScoreSettings settings{.batch_tokens = 7};
  settings.progress = [&](int64_t done, int64_t total) {
    told.push_back(done);
    CHECK(total == 9);
  };
  log_likelihoods(*model, {{a, 1}, {b, 4}}, settings);
  CHECK(told == std::vector<int64_t>{7, 9});
}
