// Token files: nanotron's fixtures sample for sample, byte for byte; refusals that name file, position and
// id.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>
#include <cstring>
#include <numeric>
#include "data/json.h"
#include "data/token_file.h"
#include "test/temp_folder.h"

using namespace llatte;
using namespace llatte::test;
namespace fs = std::filesystem;

namespace {
const fs::path kFixtures = "test/fixtures/nanotron/ds";

int64_t vocab_of(const nlohmann::json& file) { return file["dtype"] == "u16" ? 65536 : 128256; }

std::vector<int32_t> all_ids(const TokenFile& f) {
  std::vector<int32_t> ids(f.size());
  f.copy(0, f.size(), ids.data());
  return ids;
}
}  // namespace

TEST_CASE("every fixture sample") {
  const auto expected = read_json(kFixtures / "expected.json");
  const int64_t S = expected["sequence_length"];
  REQUIRE(expected["files"].size() == 4);
  for (const auto& [name, want] : expected["files"].items()) {
    CAPTURE(name);
    const TokenFile f = TokenFile::open(kFixtures / name, vocab_of(want));
    CHECK(f.size() == want["tokens"]);
    REQUIRE(f.samples(S) == want["n_samples"]);
    for (int64_t i = 0; i < f.samples(S); ++i) {
      std::vector<int32_t> sample(S + 1);
      f.copy(i * (S + 1), S + 1, sample.data());
      CHECK(sample == want["samples"][i].get<std::vector<int32_t>>());
      CHECK(f[i * (S + 1)] == sample[0]);
    }
  }
}

TEST_CASE("fixtures are written byte for byte, at once or in pieces") {
  const TempFolder dir;
  const auto expected = read_json(kFixtures / "expected.json");
  for (const auto& [name, want] : expected["files"].items()) {
    const std::vector<int32_t> ids = all_ids(TokenFile::open(kFixtures / name, vocab_of(want)));
    write_token_file(dir / "once.ds", ids, vocab_of(want));
    CHECK(read_file(dir / "once.ds") == read_file(kFixtures / name));
    TokenFileWriter out(dir / "pieces.ds", vocab_of(want));
    for (size_t i = 0; i < ids.size(); i += 5)
      out.append(std::span(ids).subspan(i, std::min<size_t>(5, ids.size() - i)));
    CHECK(out.size() == static_cast<int64_t>(ids.size()));
    out.finish();
    CHECK(read_file(dir / "pieces.ds") == read_file(kFixtures / name));
  }
}

TEST_CASE("the width follows the vocabulary: u16 up to 65536, then u32") {
  const TempFolder dir;
  write_token_file(dir / "a.ds", {1, 65535}, 65536);
  CHECK(read_file(dir / "a.ds") == std::string("\x01\x00\xff\xff", 4));
  write_token_file(dir / "b.ds", {1, 65536}, 65537);
  CHECK(read_file(dir / "b.ds") == std::string("\x01\x00\x00\x00\x00\x00\x01\x00", 8));
  std::vector<int32_t> many(10'001);
  std::iota(many.begin(), many.end(), 0);
  write_token_file(dir / "c.ds", many, 32000);
  CHECK(all_ids(TokenFile::open(dir / "c.ds", 32000)) == many);
}

TEST_CASE("files that are no token files") {
  const TempFolder dir;
  const auto refused = [](const fs::path& f, int64_t vocab) {
    return error_of([&] { TokenFile::open(f, vocab); });
  };
  CHECK(refused(kFixtures / "odd_size.ds", 49152) ==
        (kFixtures / "odd_size.ds").string() +
            ": 3 bytes are no whole number of 2-byte tokens (the width for vocab_size 49152)");
  CHECK(has(refused(kFixtures / "odd_size.ds", 100'000), "4-byte tokens"));
  write_file_atomic(dir / "empty.ds", "");
  CHECK(has(refused(dir / "empty.ds", 10), "empty.ds: the token file is empty"));
  CHECK(has(refused(dir / "none.ds", 10), "none.ds: No such file"));
  CHECK(has(refused(kFixtures / "a_u16/data.ds", 0), "vocab_size 0 must be in [1, 2^31]"));
}

TEST_CASE("an id outside the vocabulary is named with its place, and only when it is touched") {
  const TempFolder dir;
  write_token_file(dir / "f.ds", {1, 2, 99, 100, 3}, 1000);
  const TokenFile f = TokenFile::open(dir / "f.ds", 100);
  int32_t out[5];
  CHECK_NOTHROW(f.copy(0, 3, out));
  CHECK(has(error_of([&] { f.copy(1, 4, out); }), "f.ds: token 3 is 100, but vocab_size is 100"));
  CHECK(has(error_of([&] { f[3]; }), "token 3 is 100"));
  write_file_atomic(dir / "g.ds", std::string("\x01\0\0\0\xff\xff\xff\xff", 8));
  const TokenFile g = TokenFile::open(dir / "g.ds", int64_t(1) << 31);
  CHECK(has(error_of([&] { g.copy(0, 2, out); }), "token 1 is 4294967295"));
  for (const auto& [begin, count] :
       {std::pair<int64_t, int64_t>{-1, 1}, {0, 6}, {5, 1}, {2, INT64_MAX}, {0, -1}})
    CHECK(has(error_of([&, b = begin, c = count] { f.copy(b, c, out); }), "asked for, the file has 5"));
  CHECK(has(error_of([&] { f[5]; }), "the file has 5"));
}

TEST_CASE("a writer refuses ids outside the vocabulary and leaves no file behind") {
  const TempFolder dir;
  for (int32_t bad : {-1, 100}) {
    const std::string e = error_of([&] { write_token_file(dir / "f.ds", {5, bad}, 100); });
    CHECK(has(e, "f.ds: token 1 is " + std::to_string(bad) + ", but vocab_size is 100"));
  }
  CHECK(has(error_of([&] { write_token_file(dir / "no/f.ds", {5}, 100); }), "cannot write"));
  { TokenFileWriter unfinished(dir / "f.ds", 100); }
  CHECK(dir.entries() == 0);
}

TEST_CASE("the files of a folder come in nanotron's order") {
  const auto order = read_json(kFixtures / "expected.json")["file_order_in_a_folder"];
  for (int n : {3, 5}) {
    const TempFolder dir;
    for (int i = 0; i < n; ++i) write_token_file(dir / (std::to_string(i) + ".ds"), {i}, 10);
    write_file_atomic(dir / "notes.txt", "no tokens");
    std::vector<int32_t> got;
    for (const TokenFile& f : open_token_files(dir.path, 10)) got.push_back(f[0]);
    CHECK(got == order["permutation_of_" + std::to_string(n)].get<std::vector<int32_t>>());
  }
  CHECK(open_token_files(kFixtures / "a_u16/data.ds", 65536).size() == 1);
  const TempFolder empty;
  CHECK(has(error_of([&] { open_token_files(empty.path, 10); }), "the folder holds no .ds file"));
}
