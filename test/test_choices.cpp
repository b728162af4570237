// Multiple choice against lm_eval: tokens, log-likelihoods, acc and acc_norm; and bad items, refused by line.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>
#include <cmath>
#include <fstream>
#include "data/files.h"
#include "data/json.h"
#include "eval/choices.h"
#include "models/hf.h"
#include "test/on_device.h"
#include "test/temp_folder.h"

using namespace llatte;
using namespace llatte::test;
using nlohmann::json;

namespace {

const std::string kFolder = "test/fixtures/lm-eval/", kTiny = "test/fixtures/tiny-llama/tiny-llama";
constexpr int32_t kBos = 1;
constexpr int64_t kWindow = 96;  // multiple_choice_result.json

std::vector<json> golden() {
  std::ifstream lines(kFolder + "multiple_choice.jsonl");
  std::vector<json> items;
  for (std::string line; std::getline(lines, line);)
    items.push_back(parse_json(line, "multiple_choice.jsonl"));
  return items;
}

std::vector<int32_t> ids(const json& j) { return j.get<std::vector<int32_t>>(); }

}  // namespace

TEST_CASE("context and continuation become lm_eval's tokens, cut from the left") {
  const Tokenizer tokenizer = Tokenizer::load(kFolder + "tokenizer");
  int cut = 0, empty = 0;
  for (const json& item : golden())
    for (size_t i = 0; i < item["choices"].size(); ++i) {
      CAPTURE(item.dump());
      auto want = ids(item["context_ids"]);
      const auto continuation = ids(item["continuation_ids"][i]);
      want.insert(want.end(), continuation.begin(), continuation.end());
      if (want.size() > kWindow + 1) want.erase(want.begin(), want.end() - (kWindow + 1)), ++cut;
      empty += item["context"] == "";
      const ChoiceTokens got = encode_choice(tokenizer, kBos, item["context"],
                                             str(" ", item["choices"][i].get<std::string>()), kWindow);
      CHECK(got.tokens == want);
      CHECK(got.tokens.size() - static_cast<size_t>(got.scored) == continuation.size());
    }
  CHECK(cut > 0);  // the fixture has both kinds
  CHECK(empty > 0);
}

TEST_CASE("contexts at the edge") {
  const Tokenizer tokenizer = Tokenizer::load(kFolder + "tokenizer");
  const auto encode = [&](const std::string& context, const std::string& continuation, int64_t window = 96) {
    return encode_choice(tokenizer, kBos, context, continuation, window);
  };
  CHECK(encode("", " cat").tokens == encode(" ", "cat").tokens);  // nothing but space: as if it were empty
  CHECK(encode("", " cat").tokens[0] == kBos);
  const ChoiceTokens own = encode("", "<|bos|> cat");  // its own prefix is the context
  CHECK(own.tokens == encode("", " cat").tokens);
  CHECK(own.scored == 1);
  CHECK(encode("a\u00a0 ", "b").scored == encode("a", "\u00a0 b").scored);
  const auto n = static_cast<int64_t>(encode("", " cat").tokens.size()) - 1;
  CHECK(encode("The mat", " cat", n).scored == 1);  // just room for the continuation and one token before it
  CHECK(has(error_of([&] { encode("The mat", " cat", n - 1); }), "the choice ' cat' has "));
  CHECK(has(error_of([&] { encode("The mat", " cat", n - 1); }),
            "more than the window of 1; use a longer one"));
  CHECK(has(error_of([&] { encode("The mat", ""); }), "the choice '' adds no token to its context"));
  CHECK(has(error_of([&] { encode("", "<|bos|>"); }), "adds no token to its context"));
}

// Sums of up to 16 losses of about 7, f32 on both sides: rounding is 1e-6 a token, some 1e-5 in all; 1e-3
// is a hundred times that, and a thousandth of the smallest margin between two choices' scores that decides.
TEST_CASE("log-likelihoods, acc and acc_norm of a tiny model") {
  const auto model = here(load_hf(kTiny, DType::f32));
  const Tokenizer tokenizer = Tokenizer::load(kFolder + "tokenizer");
  const auto items = read_choice_items(kFolder + "multiple_choice.jsonl");
  const auto want = golden();
  REQUIRE(items.size() == 30);
  const Choices got = score_choices(*model, tokenizer, kBos, items, kWindow);
  for (size_t i = 0; i < items.size(); ++i) {
    CAPTURE(i);
    const auto lls = want[i]["loglikelihoods"].get<std::vector<double>>();
    REQUIRE(got.items[i].loglikelihoods.size() == lls.size());
    for (size_t j = 0; j < lls.size(); ++j) CHECK(std::abs(got.items[i].loglikelihoods[j] - lls[j]) <= 1e-3);
    CHECK(got.items[i].acc == (want[i]["acc"] == 1.0));
    CHECK(got.items[i].acc_norm == (want[i]["acc_norm"] == 1.0));
  }
  const json result = read_json(kFolder + "multiple_choice_result.json");
  CHECK(got.acc == doctest::Approx(result["acc"].get<double>()).epsilon(1e-12));  // a quotient of counts
  CHECK(got.acc_norm == doctest::Approx(result["acc_norm"].get<double>()).epsilon(1e-12));
}

TEST_CASE("equal scores: the first choice counts") {
  const auto model = here(load_hf(kTiny, DType::f32));
  const Tokenizer tokenizer = Tokenizer::load(kFolder + "tokenizer");
  const auto item = [](int64_t label) { return ChoiceItem{"The", {"cat", "cat"}, label, "here"}; };
  const Choices got = score_choices(*model, tokenizer, kBos, {item(0), item(1)}, kWindow);
  CHECK(got.acc == 0.5);
  CHECK(got.items[0].acc);
  CHECK(!got.items[1].acc_norm);
}

TEST_CASE("a choice that can't be scored is named by its line") {
  const auto model = here(load_hf(kTiny, DType::f32));
  const Tokenizer tokenizer = Tokenizer::load(kFolder + "tokenizer");
  const auto items = read_choice_items(kFolder + "multiple_choice.jsonl");
  const std::string error = error_of([&] { score_choices(*model, tokenizer, kBos, items, 3); });
  CHECK(has(error, "multiple_choice.jsonl:1: the choice ' hills cat over to milk' has 12 tokens"));
  CHECK(has(error_of([&] { score_choices(*model, tokenizer, kBos, {}, 96); }), "there are no items"));
}

TEST_CASE("bad items are refused with file and line") {
  const TempFolder dir;
  const auto file = dir / "items.jsonl";
  const std::string good = R"({"context": "a", "choices": ["b", "c"], "label": 1})";
  const auto error = [&](const std::string& line) {
    write_file_atomic(file, good + "\n\n" + line + "\n" + good);
    return error_of([&] { read_choice_items(file); });
  };
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"{", "items.jsonl:3"},
      {"not JSON", "items.jsonl:3"},
      {"\xff", "items.jsonl:3"},
      {"[]", "items.jsonl:3: array, not an object"},
      {R"({"choices": ["b"], "label": 0})", "items.jsonl:3: `context` is missing"},
      {R"({"context": "a", "label": 0})", "items.jsonl:3: `choices` is missing"},
      {R"({"context": "a", "choices": ["b"]})", "items.jsonl:3: `label` is missing"},
      {R"({"context": 1, "choices": ["b"], "label": 0})", "items.jsonl:3: `context` is number, not a string"},
      {R"({"context": "a", "choices": [], "label": 0})", "items.jsonl:3: `choices` is not a list"},
      {R"({"context": "a", "choices": "b", "label": 0})", "items.jsonl:3: `choices` is not a list"},
      {R"({"context": "a", "choices": ["b", 2], "label": 0})", "items.jsonl:3: a choice is number"},
      {R"({"context": "a", "choices": ["b"], "label": 1})",
       "items.jsonl:3: `label` is 1, not the index of one of 1"},
      {R"({"context": "a", "choices": ["b"], "label": -1})", "items.jsonl:3: `label` is -1"},
      {R"({"context": "a", "choices": ["b"], "label": 0.5})", "items.jsonl:3: `label` is 0.5"},
      {R"({"context": "a", "choices": ["b"], "label": "0"})", "items.jsonl:3: `label` is \"0\""},
      {R"({"context": "a", "choices": ["b"], "label": 18446744073709551615})",
       "items.jsonl:3: `label` is 18446744073709551615"},
      {R"({"context": "a", "context": "b", "choices": ["b"], "label": 0})", "items.jsonl:3"},
  };
  for (const auto& [line, sentence] : cases) {
    CAPTURE(line);
    const std::string got = error(line);
    CAPTURE(got);
    CHECK(has(got, sentence));
  }
  for (const char* empty : {"", "\n \n"}) {
    write_file_atomic(file, empty);
    CHECK(has(error_of([&] { read_choice_items(file); }), "items.jsonl holds no items"));
  }
  CHECK(has(error_of([&] { read_choice_items(dir / "none.jsonl"); }), "none.jsonl"));
  write_file_atomic(file, good + "\r\n" + good);
  CHECK(read_choice_items(file).size() == 2);
}
