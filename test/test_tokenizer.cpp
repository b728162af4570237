// The tokenizer against golden ids of Hugging Face's library, files it must refuse, and its own laws.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>
#include <chrono>
#include <nlohmann/json.hpp>
#include <random>
#include <sstream>
#include "data/bpe_merge.h"
#include "data/files.h"
#include "data/tokenizer.h"
#include "data/tokenizer_utf8.h"
#include "tensor/check.h"

using namespace llatte;
using nlohmann::json;

namespace {

const std::string kFixtures = "test/fixtures/tokenizers/";

Tokenizer of_folder(const std::string& name) {
  return Tokenizer::load(name == "smollm2" ? "assets/tokenizer" : kFixtures + name);
}

std::vector<json> cases(const std::string& folder) {
  std::istringstream lines(read_file(kFixtures + folder + "/cases.jsonl"));
  std::vector<json> out;
  for (std::string line; std::getline(lines, line);) out.push_back(json::parse(line));
  return out;
}

std::string error_of(const std::string& text, const std::string& where) {
  try {
    Tokenizer::parse(text, where);
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

std::string random_bytes(std::mt19937& rng, size_t n) {
  std::string s(n, 0);
  for (char& c : s) c = char(rng() % 3 ? rng() % 256 : "aZ 9'\n\r\t"[rng() % 8]);
  return s;
}

std::string streamed(const Tokenizer& t, const std::vector<int32_t>& ids) {
  Tokenizer::Stream stream(t);
  std::string all;
  for (const int32_t id : ids) {
    const std::string text = stream.next(id);
    CHECK(is_utf8(text));
    all += text;
  }
  return all + stream.finish();
}

}  // namespace

TEST_CASE("golden ids and texts of every fixture") {
  for (const char* folder : {"smollm2", "llama3_pairs_plain", "llama3_strings_ignore", "qwen2_strings_plain",
                             "qwen2_pairs_ignore", "qwen2_nfc", "digits_strings_plain"}) {
    const Tokenizer t = of_folder(folder);
    const std::vector<json> all = cases(folder);
    CHECK(all.size() > 100);
    for (const json& c : all) {
      CAPTURE(folder);
      CAPTURE(c["text"].dump(-1, ' ', true));
      const auto ids = c["ids"].get<std::vector<int32_t>>();
      const auto decoded = c["decoded"].get<std::string>();
      CHECK(t.encode(c["text"].get<std::string>()) == ids);
      CHECK(t.decode(ids) == decoded);
      CHECK(t.decode(ids, true) == c.value("decoded_skip_special", decoded));
      CHECK(streamed(t, ids) == decoded);
    }
  }
}

TEST_CASE("malformed files are refused by a sentence that names the file") {
  const json known = json::parse(read_file(kFixtures + "malformed/malformed.json"))["cases"];
  CHECK(known.size() > 30);
  for (const auto& [file, why] : known.items()) {
    const std::string text = read_file(kFixtures + "malformed/" + file);
    const std::string error = error_of(text, file);
    CAPTURE(why["why"].get<std::string>());
    CHECK(error.substr(0, file.size()) == file);
    CHECK(error.size() > file.size() + 10);
    CHECK(error.size() < 400);
  }
}

TEST_CASE("refusals name the field and its value") {
  const auto error = [](const std::string& file) {
    return error_of(read_file(kFixtures + "malformed/" + file), "f");
  };
  CHECK(error("model_type_unigram.json") == "f: model.type is 'Unigram'; supported is BPE (byte-level)");
  CHECK(error("pretok_metaspace.json").find("'Metaspace'") != std::string::npos);
  CHECK(error("normalizer_nfc_lowercase.json").find("'Lowercase'") != std::string::npos);
  CHECK(error("vocab_hole.json").find("50000000") != std::string::npos);
  CHECK(error("byte_fallback_true.json").find("model.byte_fallback is true") != std::string::npos);
  CHECK(error("byte_missing.json").find("not in the vocabulary") != std::string::npos);
  CHECK(error("vocab_negative_id.json").find("-1, not an id") != std::string::npos);
}

TEST_CASE("a folder without tokenizer.json is an error that names the path") {
  CHECK_THROWS_WITH_AS(Tokenizer::load("test/no_such_folder"), doctest::Contains("test/no_such_folder"),
                       Error);
}

TEST_CASE("a byte the vocabulary lacks is dropped, or becomes the unknown token") {
  std::string file = read_file("assets/tokenizer/tokenizer.json");
  CHECK(Tokenizer::parse(file, "f").decode(Tokenizer::parse(file, "f").encode("a\x04z")) == "az");
  const std::string none = "\"unk_token\": null";
  REQUIRE(file.find(none) != std::string::npos);
  file.replace(file.find(none), none.size(), "\"unk_token\": \"<|endoftext|>\"");
  const Tokenizer t = Tokenizer::parse(file, "f");
  CHECK(t.decode(t.encode("a\x04z")) == "a<|endoftext|>z");
}

TEST_CASE("names and numbers of SmolLM2") {
  const Tokenizer t = of_folder("smollm2");
  CHECK(t.vocab_size() == 49152);
  CHECK(t.id_of("<|endoftext|>") == 0);
  CHECK(t.is_special(0));
  CHECK(!t.is_special(1000));
  CHECK(!t.is_special(-1));
  CHECK(!t.id_of("no such token").has_value());
  CHECK(t.json() == read_file("assets/tokenizer/tokenizer.json"));
  CHECK(t.encode("").empty());
  CHECK(t.decode({}).empty());
}

TEST_CASE("decode refuses ids outside the vocabulary") {
  const Tokenizer t = of_folder("smollm2");
  for (const int32_t id : {-1, 49152, INT32_MAX, INT32_MIN}) {
    const std::vector<int32_t> ids{5, id};
    CHECK_THROWS_WITH_AS(t.decode(ids), doctest::Contains(std::to_string(id).c_str()), Error);
    CHECK_THROWS_AS(Tokenizer::Stream(t).next(id), Error);
  }
}

TEST_CASE("any bytes: invalid UTF-8 is read as U+FFFD, and decoding gives the text back") {
  std::mt19937 rng(7);
  for (const char* folder :
       {"smollm2", "llama3_strings_ignore", "qwen2_pairs_ignore", "digits_strings_plain"}) {
    const Tokenizer t = of_folder(folder);
    for (int n = 0; n < 200; ++n) {
      const std::string bytes = random_bytes(rng, rng() % 80);
      std::string text;
      append_lossy(text, bytes, true);
      const auto ids = t.encode(bytes);
      CHECK(ids == t.encode(text));
      if (std::string(folder) != "smollm2") CHECK(t.decode(ids) == text);  // its vocabulary lacks 21 bytes
    }
  }
  const Tokenizer t = of_folder("smollm2");
  CHECK(t.decode(t.encode("a\xE2\x82z\xFF")) == "a\uFFFDz\uFFFD");
}

TEST_CASE("streaming random ids: whole characters only, and together what decode gives") {
  std::mt19937 rng(8);
  const Tokenizer t = of_folder("smollm2");
  for (int n = 0; n < 200; ++n) {
    std::vector<int32_t> ids(rng() % 50);
    for (int32_t& id : ids) id = rng() % 2 ? rng() % 49152 : 17 + rng() % 256;  // half of them single bytes
    CHECK(streamed(t, ids) == t.decode(ids));
  }
}

TEST_CASE("long inputs: a million of one character, and of one word, in seconds") {
  const auto start = std::chrono::steady_clock::now();
  for (const char* folder : {"smollm2", "llama3_pairs_plain", "qwen2_pairs_ignore"}) {
    const Tokenizer t = of_folder(folder);
    for (const char* unit :
         {"a", " ", "\n", "7", "!", "\u00e9", "\u4e2d", "<", " \n", "'s", "\xFF", "hello "}) {
      CAPTURE(unit);
      std::string text;
      while (text.size() < 1000000) text += unit;
      const auto ids = t.encode(text);
      std::string want;
      append_lossy(want, text, true);
      CHECK(t.decode(ids) == want);
    }
  }
  // Takes about two seconds; a quadratic merge of a million symbols takes an hour.
  CHECK(std::chrono::steady_clock::now() - start < std::chrono::minutes(2));
}

TEST_CASE("the heap for long words and the search for short ones merge alike") {
  // Random rules over 6 letters; rank order is the only thing that decides. The reference is the definition.
  std::mt19937 rng(9);
  for (int round = 0; round < 50; ++round) {
    BpeMerges merges(40);
    std::vector<std::array<int32_t, 2>> rules;
    for (int r = 0; r < 40; ++r) {
      rules.push_back({int32_t(rng() % (6 + r)), int32_t(rng() % (6 + r))});
      if (std::find(rules.begin(), rules.end() - 1, rules.back()) != rules.end() - 1)
        rules.back() = {1000 + r, 0};
      merges.add(rules.back()[0], rules.back()[1], r, 6 + r);
    }
    std::vector<int32_t> word(2 + rng() % 100);
    for (int32_t& id : word) id = rng() % 6;
    std::vector<int32_t> want = word;
    for (bool merged = true; merged;) {
      merged = false;
      for (size_t r = 0; r < rules.size() && !merged; ++r)
        for (size_t i = 0; i + 1 < want.size() && !merged; ++i)
          if (want[i] == rules[r][0] && want[i + 1] == rules[r][1]) {
            want[i] = 6 + r;
            want.erase(want.begin() + i + 1);
            merged = true;
          }
    }
    merges.apply(word);
    CHECK(word == want);
  }
}

TEST_CASE("UTF-8: maximal invalid parts") {
  const auto lossy = [](std::string_view s) {
    std::string out;
    append_lossy(out, s, true);
    return out;
  };
  CHECK(lossy("\xF0\x9F\x98") == "\uFFFD");              // one unfinished character
  CHECK(lossy("\xED\xA0\x80") == "\uFFFD\uFFFD\uFFFD");  // a surrogate: no part can begin a character
  CHECK(lossy("\xC0\xAF") == "\uFFFD\uFFFD");            // overlong
  CHECK(lossy("\xF4\x90\x80\x80") == "\uFFFD\uFFFD\uFFFD\uFFFD");  // above U+10FFFF
  CHECK(lossy("\xE2\x82"
              "A") ==
        "\uFFFD"
        "A");
  CHECK(!is_utf8("12345678\x80"));
  CHECK(is_utf8("12345678\u20ac 12345678"));
}
