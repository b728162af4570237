// data/json: what nlohmann-json accepts and a careful reader must not.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>
#include "data/files.h"
#include "data/json.h"
#include "test/temp_folder.h"

using namespace llatte;
using namespace llatte::test;

namespace {
std::string refused(const std::string& text) {
  return error_of([&] { parse_json(text, "f.json"); });
}
std::string nested(int depth) { return std::string(depth, '[') + std::string(depth, ']'); }
}  // namespace

TEST_CASE("values come through") {
  const auto j = parse_json(
      R"( {"a": [1, -2, 3.5, true, null], "b": {"a": "\u00e9\ud83d\ude00"}, "": 18446744073709551615} )",
      "f");
  CHECK(j["a"].size() == 5);
  CHECK(j["a"][1] == -2);
  CHECK(j["b"]["a"] == "\xc3\xa9\xf0\x9f\x98\x80");
  CHECK(j[""].get<uint64_t>() == UINT64_MAX);
  CHECK(parse_json("3", "f") == 3);
}

TEST_CASE("the same key twice in one object is refused, in two objects it is not") {
  CHECK(refused(R"({"a":1,"a":1})") == R"(f.json: JSON has the key "a" twice in one object)");
  CHECK(has(refused(R"([{"b":{"x":1,"\u0078":2}}])"), R"("x" twice)"));
  CHECK(has(refused(R"({"a":{"q":1},"b":[{}],"a":2})"), R"("a" twice)"));
  CHECK(parse_json(R"([{"a":1},{"a":{"a":2}}])", "f")[1]["a"]["a"] == 2);
}

TEST_CASE("depth is bounded") {
  CHECK_NOTHROW(parse_json(nested(kMaxJsonDepth), "f"));
  CHECK(refused(nested(kMaxJsonDepth + 1)) == "f.json: JSON is nested deeper than 64 levels");
  CHECK(has(refused(std::string(1'000'000, '[')), "deeper"));
}

TEST_CASE("broken text is refused with file and place, in bounded printable ASCII") {
  const char* broken[] = {"",
                          " ",
                          "{",
                          "{} {}",
                          "{}x",
                          "[1,]",
                          "{\"a\":01}",
                          "[\"\n\"]",
                          "[\"\\ud800\"]",
                          "\"\xff\"",
                          "\"\xc0\xaf\"",
                          "nul",
                          "[NaN]",
                          "'a'",
                          "[1e999]",
                          "// c\n1",
                          "\"\xed\xa0\x80\""};
  for (const char* text : broken) {
    const std::string e = refused(text);
    CAPTURE(text);
    CAPTURE(e);
    CHECK(has(e, "f.json: not valid JSON: "));
  }
  CHECK(has(refused(std::string("{}\0", 3)), "f.json: not valid JSON"));
  const std::string e = refused("[\"" + std::string(100'000, 'x') + "\n\xff");
  CHECK(e.size() < 300);
  CHECK(has(e, "parse error at line 2"));  // a raw newline was the mistake
  for (unsigned char c : e) CHECK((c >= 0x20 && c < 0x7f));
}

TEST_CASE("read_json names the file") {
  const TempFolder dir;
  write_file_atomic(dir / "c.json", "{\"a\": 1");
  CHECK(has(error_of([&] { read_json(dir / "c.json"); }), (dir / "c.json").string() + ": not valid JSON"));
  write_file_atomic(dir / "c.json", "{\"a\": 1}");
  CHECK(read_json(dir / "c.json")["a"] == 1);
}
