// The loader: nanotron's blend and first epoch from its fixtures; then the laws: batches are a pure function
// of (seed, n), whatever was asked before and whatever the background thread had ready.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>
#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <set>
#include "data/blend.h"
#include "data/json.h"
#include "data/token_file.h"
#include "tensor/alloc.h"
#include "test/temp_folder.h"

using namespace llatte;
using namespace llatte::test;
namespace fs = std::filesystem;

namespace {
const fs::path kFixtures = "test/fixtures/nanotron/ds";
using Pairs = std::vector<std::pair<int64_t, int64_t>>;
using Ids = std::vector<int32_t>;

// Token t of file f is 1000 f + t, so a batch says where it comes from.
TokenFile numbered(const TempFolder& dir, int f, int64_t tokens) {
  std::vector<int32_t> ids(tokens);
  std::iota(ids.begin(), ids.end(), 1000 * f);
  const fs::path file = dir / (std::to_string(f) + ".ds");
  write_token_file(file, ids, 65536);
  return TokenFile::open(file, 65536);
}

// Two sources, 7 + 5 samples of 4 + 1 tokens, the first over two files and with a rest in each.
std::vector<Loader::Source> two_sources(const TempFolder& dir, double w0 = 0, double w1 = 0) {
  return {{{numbered(dir, 0, 22), numbered(dir, 1, 15)}, w0}, {{numbered(dir, 2, 29)}, w1}};
}

Ids flat(const Batch& b) {
  Ids ids = b.tokens.to_vector<int32_t>(), t = b.targets.to_vector<int32_t>();
  ids.insert(ids.end(), t.begin(), t.end());
  return ids;
}

Pairs places(const Loader& l, int64_t begin, int64_t end) {
  Pairs p;
  for (int64_t n = begin; n < end; ++n) p.push_back({l.place(n).source, l.place(n).sample});
  return p;
}
}  // namespace

TEST_CASE("nanotron's blended order, unshuffled and shuffled") {
  const auto blend_json = read_json(kFixtures / "expected.json")["blend"];
  REQUIRE(blend_json["cases"].size() == 5);
  for (const auto& c : blend_json["cases"]) {
    CAPTURE(c["weights"].dump());
    std::vector<double> weights;
    if (!c["weights"].is_null()) weights = c["weights"].get<std::vector<double>>();
    const Blend b = blend(c["sizes"].get<std::vector<int64_t>>(), weights);
    Pairs unshuffled;
    for (size_t i = 0; i < b.source.size(); ++i) unshuffled.push_back({b.source[i], b.sample[i]});
    CHECK(unshuffled == c["unshuffled"].get<Pairs>());
    const auto w = [&](size_t f) { return weights.empty() ? 0 : weights[f]; };
    const Loader l({{open_token_files(kFixtures / "a_u16", 65536), w(0)},
                    {open_token_files(kFixtures / "b_u16", 65536), w(1)}},
                   16, 1234);
    REQUIRE(l.samples_per_epoch() == 11);
    CHECK(places(l, 0, 11) == c["shuffled_seed_1234"].get<Pairs>());
  }
}

TEST_CASE("a batch holds the samples of its places, targets one token later") {
  const TempFolder dir;
  Loader l(two_sources(dir), 4, 7);
  CHECK(l.samples_per_epoch() == 12);
  const Batch b = l.batch(3, 5);
  REQUIRE(b.tokens.shape() == Shape{5, 4});
  REQUIRE(b.targets.shape() == Shape{5, 4});
  for (int64_t i = 0; i < 5; ++i) {
    const auto p = l.place(3 + i);
    // source 0: samples 0..3 in file 0 (22 tokens), 4..6 in file 1
    const int64_t start = p.source == 1  ? 2000 + 5 * p.sample
                          : p.sample < 4 ? 5 * p.sample
                                         : 1000 + 5 * (p.sample - 4);
    for (int64_t t = 0; t < 4; ++t) {
      CHECK(b.tokens.data<int32_t>()[i * 4 + t] == start + t);
      CHECK(b.targets.data<int32_t>()[i * 4 + t] == start + t + 1);
    }
  }
}

TEST_CASE("every epoch serves every sample once, each in its own order") {
  const TempFolder dir;
  const Loader l(two_sources(dir), 4, 3);
  std::set<Pairs> orders;
  for (int64_t e = 0; e < 5; ++e) {
    Pairs p = places(l, 12 * e, 12 * (e + 1));
    orders.insert(p);
    CHECK(std::set(p.begin(), p.end()).size() == 12);
  }
  CHECK(orders.size() == 5);
  for (uint64_t seed : {4ull, 3ull + (1ull << 32)})
    CHECK(places(Loader(two_sources(dir), 4, seed), 0, 12) != places(l, 0, 12));
}

TEST_CASE("by size, every sample exactly once, for many uneven sources") {
  for (const std::vector<int64_t>& sizes : {std::vector<int64_t>{1, 1, 1, 100},
                                            {3, 7, 11, 13, 17, 400},
                                            {1000, 1},
                                            {5},
                                            {33, 33, 34},
                                            {1, 2, 4, 8, 16, 32, 999}}) {
    const Blend b = blend(sizes, {});
    CHECK(b.taken == sizes);
    std::set<std::pair<int, int>> seen;
    for (size_t i = 0; i < b.source.size(); ++i) seen.insert({b.source[i], b.sample[i]});
    CHECK(seen.size() == b.source.size());
  }
}

TEST_CASE("weights hold their shares at every moment, and no sample of a source is passed over") {
  const Blend b = blend({70, 40}, {0.9, 0.1});
  double taken = 0;
  for (size_t i = 0; i < b.source.size(); ++i) {
    taken += b.source[i];
    CHECK(std::abs(taken - 0.1 * static_cast<double>(i + 1)) <= 1.0);  // at most one sample off its share
  }
  const TempFolder dir;
  const Loader l(two_sources(dir, 0.9, 0.1), 4, 5);  // source 1 serves 2 of its 5 samples an epoch
  std::map<int64_t, int> served;
  for (const auto& [source, sample] : places(l, 0, 12 * 10))
    if (source == 1) ++served[sample];
  REQUIRE(served.size() == 5);
  for (const auto& [sample, times] : served) CHECK(times == 4);
}

TEST_CASE("a batch is a pure function of (seed, first, B), in any order of asking") {
  const TempFolder dir;
  std::map<std::pair<int64_t, int64_t>, Ids> want;
  const auto key = [](int k) { return std::pair<int64_t, int64_t>(k * 5 % 41, 1 + k % 4); };
  for (int k = 0; k < 60; ++k) {
    Loader fresh(two_sources(dir), 4, 9);
    want[key(k)] = flat(fresh.batch(key(k).first, key(k).second));
  }
  Loader l(two_sources(dir), 4, 9);
  for (int k = 300; k-- > 0;) {
    const auto [first, B] = key(k * 7 % 60);
    CHECK(flat(l.batch(first, B)) == want[{first, B}]);
  }
}

TEST_CASE("batches of 1 and of many, resumed and not, are one stream") {
  const TempFolder dir;
  Loader ones(two_sources(dir), 4, 11), sixes(two_sources(dir), 4, 11);
  Ids a, b;
  for (int64_t n = 0; n < 60; ++n) {
    const Ids t = ones.batch(n, 1).tokens.to_vector<int32_t>();
    a.insert(a.end(), t.begin(), t.end());
  }
  for (int64_t n = 0; n < 30; n += 6) {
    const Ids t = sixes.batch(n, 6).tokens.to_vector<int32_t>();
    b.insert(b.end(), t.begin(), t.end());
  }
  Loader resumed(two_sources(dir), 4, 11);
  for (int64_t n = 30; n < 60; n += 6) {
    const Ids t = resumed.batch(n, 6).tokens.to_vector<int32_t>();
    b.insert(b.end(), t.begin(), t.end());
  }
  CHECK(a == b);
  CHECK(resumed.batch(0, 30).tokens.to_vector<int32_t>() ==
        Ids(a.begin(), a.begin() + 120));  // 2.5 epochs in one
}

TEST_CASE("a batch the caller keeps is not written to by the next") {
  const TempFolder dir;
  Loader l(two_sources(dir), 4, 1);
  const Batch kept = l.batch(0, 4);
  const Ids before = flat(kept);
  for (int64_t n = 4; n < 40; n += 4) l.batch(n, 4);
  CHECK(flat(kept) == before);
}

TEST_CASE("memory does not grow with the number of batches") {
  const TempFolder dir;
  Loader l(two_sources(dir), 4, 1);
  for (int64_t n = 0; n < 40; n += 4) l.batch(n, 4);
  reset_alloc_stats(Device::cpu);
  const int64_t reserved = alloc_stats(Device::cpu).reserved_bytes;
  for (int64_t n = 40; n < 4040; n += 4) l.batch(n, 4);
  CHECK(alloc_stats(Device::cpu).reserved_bytes == reserved);
  CHECK(alloc_stats(Device::cpu).requests > 0);
}

TEST_CASE("an error in the data reaches the caller who asks for it, each time, and nobody else") {
  const TempFolder dir;
  std::vector<int32_t> ids(50, 1);
  ids[33] = 200;  // in sample 6
  write_token_file(dir / "f.ds", ids, 1000);
  Loader l({{{TokenFile::open(dir / "f.ds", 100)}, 0}}, 4, 2);
  int failed = 0;
  for (int round = 0; round < 3; ++round)
    for (int64_t n = 0; n < 10; ++n) {
      const bool bad = l.place(n).sample == 6;
      const std::string e = error_of([&] { l.batch(n, 1); });
      CHECK(has(e, bad ? "f.ds: token 33 is 200, but vocab_size is 100" : "no error"));
      failed += bad;
    }
  CHECK(failed == 3);
}

TEST_CASE("what cannot be loaded is refused") {
  const TempFolder dir;
  const auto refused = [](std::vector<Loader::Source> s, int64_t seq) {
    return error_of([&] { Loader(std::move(s), seq, 0); });
  };
  const auto shorty = open_token_files(kFixtures / "d_u16_short", 65536);
  CHECK(has(refused({{shorty, 0}}, 16),
            "d_u16_short/data.ds: 16 tokens are fewer than the 17 of one sample; lower sequence_length"));
  CHECK(refused({{shorty, 0}}, 15) == "no error was thrown");
  CHECK(has(refused({}, 4), "no sources"));
  CHECK(has(refused({{{}, 0}}, 4), "source 0 has no files"));
  CHECK(has(refused({{shorty, 0}}, 0), "sequence_length is 0"));
  for (double w : {0.0, -1.0, std::nan(""), HUGE_VAL}) {
    const std::string e = refused({{shorty, 1}, {shorty, w}}, 4);
    CHECK(has(e, "the weight of source 1"));
    CHECK(has(e, "weights are positive, or all left out"));
  }
  Loader l({{shorty, 0}}, 4, 0);
  CHECK(has(error_of([&] { l.batch(-1, 1); }), "samples [-1, -1 + 1) asked for"));
  CHECK(has(error_of([&] { l.batch(0, 0); }), "asked for"));
  CHECK(has(error_of([&] { l.place(-1); }), "no sample -1"));
}
