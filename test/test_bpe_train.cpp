// The BPE trainer: what it learns on texts small enough to know the answer, and that its file is a tokenizer.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>
#include <nlohmann/json.hpp>
#include "data/files.h"
#include "data/tokenizer.h"
#include "data/tokenizer_utf8.h"
#include "tensor/check.h"

using namespace llatte;
using nlohmann::json;

namespace {

std::vector<std::string> merges(const std::string& text, int64_t vocab_size) {
  return json::parse(train_bpe(text, vocab_size))["model"]["merges"].get<std::vector<std::string>>();
}

const std::string& wikitext() {
  static const std::string text = read_file("assets/wikitext-2/valid.tokens").substr(0, 200000);
  return text;
}

}  // namespace

TEST_CASE("merges in order of frequency") {
  const std::string text = "low low\nlower lower lower lower lower";
  // Words: low, _low, lower, 4 _lower. Pairs: l-o 7, o-w 7, _-l 5, w-e 5, e-r 5; the space has the smallest
  // id.
  CHECK(merges(text, 262) == std::vector<std::string>{"l o", "lo w", "\u0120 low", "e r", "\u0120low er"});
}

TEST_CASE("the pair that goes is the one with smaller ids when counts tie") {
  // a-b 2, c-d 2, _-a 2, _-c 1: first _-a, as the space comes before a; then c-d, as new ids come last.
  CHECK(merges("cd ab cd ab", 259) == std::vector<std::string>{"\u0120 a", "c d"});
}

TEST_CASE("digits stay alone, and runs of one letter merge in pairs") {
  CHECK(merges("aaaa 11 11 11", 259) == std::vector<std::string>{"a a", "aa aa"});
}

TEST_CASE("deterministic, and loads as a tokenizer with every byte") {
  const std::string file = train_bpe(wikitext(), 1000);
  CHECK(file == train_bpe(wikitext(), 1000));
  const Tokenizer t = Tokenizer::parse(file, "trained");
  CHECK(t.vocab_size() == 1000);
  CHECK(t.id_of("<|endoftext|>") == 0);
  CHECK(t.is_special(0));
  for (int b = 0; b < 256; ++b) CHECK(t.id_of(byte_character(b)) == 1 + b);
  const std::string text = wikitext() + "\x01\x04 caf\u00e9 \u4e2d\u6587 \U0001F600 2026";
  const auto ids = t.encode(text);
  CHECK(t.decode(ids) == text);
  CHECK(ids.size() * 2 < text.size());  // 1,000 tokens halve this text at the least
}

TEST_CASE("encoding the training text uses each learned token that its own merges did not swallow") {
  const Tokenizer t = Tokenizer::parse(train_bpe("the cat the cat the hat", 262), "trained");
  for (const int32_t id : t.encode("the cat the hat")) CHECK(id < t.vocab_size());
  CHECK(t.encode(" the").size() == 1);
}

TEST_CASE("the end-of-text marker in the text separates, and is not learned from") {
  CHECK(merges("ab<|endoftext|>ab<|endoftext|>xy", 258) == std::vector<std::string>{"a b"});
}

TEST_CASE("sizes that make no sense are refused") {
  CHECK_THROWS_WITH_AS(train_bpe("abc", 256), doctest::Contains("257"), Error);
  CHECK_THROWS_WITH_AS(train_bpe("abc", -1), doctest::Contains("-1"), Error);
  CHECK_THROWS_WITH_AS(train_bpe("abc", 500), doctest::Contains("259 tokens only, not 500"), Error);
  CHECK(Tokenizer::parse(train_bpe("", 257), "empty").vocab_size() == 257);
}
