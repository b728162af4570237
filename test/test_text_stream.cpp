// Text as it is shown: stop texts across token borders, nothing shown too early, characters whole.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>
#include "data/tokenizer_utf8.h"
#include "eval/text_stream.h"
#include "test/temp_folder.h"

using namespace llatte;
using namespace llatte::test;

namespace {

const Tokenizer& tokenizer() {
  static const Tokenizer t = Tokenizer::load("test/fixtures/lm-eval/tokenizer");
  return t;
}

// Every byte a token of its own, so that every border there can be is one.
std::vector<int32_t> bytes_as_tokens(const std::string& text) {
  std::vector<int32_t> ids;
  for (const char c : text) ids.push_back(tokenizer().id_of(byte_character(static_cast<uint8_t>(c))).value());
  return ids;
}

struct Shown {
  std::vector<std::string> pieces;  // by token, then what finish() gave
  std::string all;
  bool stopped = false;
};

Shown show(const std::vector<int32_t>& ids, std::vector<std::string> stops) {
  TextStream stream(tokenizer(), std::move(stops));
  Shown s;
  for (const int32_t id : ids) {
    if (stream.stopped()) break;
    s.pieces.push_back(stream.next(id));
  }
  s.pieces.push_back(stream.finish());
  s.stopped = stream.stopped();
  for (const std::string& piece : s.pieces) s.all += piece;
  return s;
}

using Pieces = std::vector<std::string>;

}  // namespace

TEST_CASE("a stop text ends the text wherever the token borders are") {
  const std::string text = "one two three";
  for (const auto& ids : {bytes_as_tokens(text), tokenizer().encode(text)}) {
    const Shown s = show(ids, {"o th", "zzz"});
    CHECK(s.stopped);
    CHECK(s.all == "one tw");
    CHECK_FALSE(show(ids, {"threee", "twoo"}).stopped);
    CHECK(show(ids, {"threee", "twoo"}).all == text);
    CHECK(show(ids, {}).all == text);
  }
  const Shown early = show(bytes_as_tokens("abcdef"), {"cde", "bcx", "d"});
  CHECK(early.all == "abc");  // "d" is there first
}

TEST_CASE("only what may become a stop text is held back") {
  CHECK(show(bytes_as_tokens("aabaac"), {"aac"}).pieces == Pieces{"", "", "aab", "", "", "", ""});
  CHECK(show(bytes_as_tokens("xaax"), {"aac"}).pieces == Pieces{"x", "", "", "aax", ""});
  CHECK(show(bytes_as_tokens("xaa"), {"aac"}).pieces == Pieces{"x", "", "", "aa"});
  CHECK(show(bytes_as_tokens("ababac"), {"abac"}).all == "ab");  // a match inside a failed one
}

TEST_CASE("characters stay whole, special tokens and unknown ids show nothing") {
  const std::string text = "a\u00e9\u4e2d\U0001f600z";
  for (const std::vector<std::string>& stops : {Pieces{}, Pieces{"\u00e8"}, Pieces{"\u4e2e", "\U0001f601"}}) {
    const Shown s = show(bytes_as_tokens(text), stops);
    CHECK(s.all == text);
    for (const std::string& piece : s.pieces) CHECK(is_utf8(piece));
  }
  CHECK(show(bytes_as_tokens(text), {"\u4e2d"}).all == "a\u00e9");
  CHECK(show(bytes_as_tokens("a\xe4\xb8"), {}).all == "a\ufffd");
  CHECK(show({static_cast<int32_t>(tokenizer().vocab_size()) + 3}, {}).all.empty());
  CHECK(tokenizer().is_special(0));
  CHECK(show({0}, {}).all.empty());
}

TEST_CASE("a stop text must be text") {
  CHECK(has(error_of([] { TextStream(tokenizer(), {""}); }), "a stop text is empty"));
  CHECK(has(error_of([] { TextStream(tokenizer(), {"\xa9"}); }), "a stop text is not valid UTF-8"));
}
