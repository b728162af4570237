// What a cache keeps: exact in float types, within the stated bound in codes, byte for byte as large as said.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <algorithm>
#include <limits>
#include "nn/token_store.h"
#include "test/near.h"
#include "test/on_device.h"

using namespace llatte;
using namespace llatte::test;

namespace {

Tensor rows_of(int64_t B, int64_t T, int64_t W, unsigned seed) {
  std::mt19937 rng(seed);
  Vec v(static_cast<size_t>(B * T * W));
  // Sizes that differ by token and column, as latents' do.
  for (size_t i = 0; i < v.size(); ++i)
    v[i] = std::normal_distribution<double>()(rng) * std::pow(2.0, double(i % 7) - 3);
  return to_tensor(v, {B, T, W}, DType::f32);
}

// Appends T rows in two steps; all that is held, as f64.
Vec through(TokenStore& store, const Tensor& x_BTW, int64_t first) {
  store.append(x_BTW.slice(1, 0, first));
  store.append(x_BTW.slice(1, first, x_BTW.size(1)));
  return to_vec(store.read(DType::f64, {x_BTW.size(2)}));
}

// max|x| / 2m (1 + 2^-8), and 2^-23 of max|x| for the division in f32.
double bound(const Vec& x, size_t begin, size_t end, double m) {
  double high = 0;
  for (size_t i = begin; i < end; ++i) high = std::max(high, std::abs(x[i]));
  return high / (2 * m) * (1 + 1.0 / 256) + high * 0x1p-23;
}

void check_codes(CacheType t, double m, const std::vector<int64_t>& sections, int64_t W) {
  const Tensor x = rows_of(2, 9, W, 3);
  TokenStore store(2, 11, sections, t, test_device());
  const Vec want = to_vec(x), got = through(store, x, 4);
  REQUIRE(got.size() == want.size());
  double worst = 0;  // of the bound
  for (size_t row = 0; row < want.size(); row += static_cast<size_t>(W))
    for (size_t at = row, s = 0; s < sections.size(); ++s)
      for (size_t left = static_cast<size_t>(sections[s]); left > 0;) {
        const size_t n = std::min<size_t>(32, left);
        const double most = bound(want, at, at + n, m);
        for (size_t i = at; i < at + n; ++i) {
          const bool within = std::abs(got[i] - want[i]) <= most;
          CHECK(within);
          worst = std::max(worst, std::abs(got[i] - want[i]) / most);
        }
        at += n, left -= n;
      }
  CHECK(worst > 0.5);  // the bound is no wider than it need be
}

}  // namespace

TEST_CASE("float types keep what they can hold, and a view is read where nothing changes") {
  const Tensor x = rows_of(2, 9, 37, 1);
  for (const CacheType t : {CacheType::f32, CacheType::f64, CacheType::bf16}) {
    TokenStore store(2, 11, {37}, t, test_device());
    const Tensor kept = t == CacheType::bf16 ? x.to(DType::bf16) : x;
    CHECK(through(store, x, 4) == to_vec(kept));
  }
  TokenStore store(1, 8, {6, 6}, CacheType::f32, test_device());
  store.append(rows_of(1, 3, 12, 2));
  const Tensor a = store.read(DType::f32, {3, 4}), b = store.read(DType::f32, {12});
  CHECK(a.shape() == Shape{1, 3, 3, 4});
  CHECK(a.raw() == b.raw());
}

TEST_CASE("codes are within half a step, for odd widths, short groups and several sections") {
  for (const std::vector<int64_t>& sections :
       {std::vector<int64_t>{120}, {24, 96}, {1}, {31, 33}, {64}, {7, 0, 40}}) {
    int64_t W = 0;
    for (const int64_t s : sections) W += s;
    check_codes(CacheType::int8, 127, sections, W);
    if (W > 1) check_codes(CacheType::int4, 7, sections, W);  // one number alone is its own scale
  }
}

TEST_CASE("a group of its own scale: a large neighbour section costs nothing") {
  Vec v(64, 1.0 / 3);
  std::fill(v.begin() + 32, v.end(), 1e6);
  TokenStore store(1, 1, {32, 32}, CacheType::int4, test_device());
  store.append(to_tensor(v, {1, 1, 64}, DType::f32));
  // The whole group is the largest number: 7 times a scale that is rounded to bf16, by 2^-8 at most.
  check_near("small numbers", to_vec(store.read(DType::f64, {64})), v, 1.0 / 256);
}

TEST_CASE("what is not finite reads as NaN, zero as zero") {
  for (const CacheType t : {CacheType::int8, CacheType::int4})
    for (const double bad : {std::numeric_limits<double>::quiet_NaN(), -HUGE_VAL}) {
      Vec v(40, 0.0);
      v[5] = bad;
      TokenStore store(1, 1, {40}, t, test_device());
      store.append(to_tensor(v, {1, 1, 40}, DType::f32));
      const Vec got = to_vec(store.read(DType::f64, {40}));
      for (size_t i = 0; i < 32; ++i) CHECK(std::isnan(got[i]));
      for (size_t i = 32; i < 40; ++i) CHECK(got[i] == 0);
    }
}

TEST_CASE("the codes and scales are the same bits on every device") {
  const Tensor x =
      to_tensor(to_vec(rows_of(2, 9, 120, 7)), {2, 9, 120}, DType::bf16);  // whole words, no padding
  for (const CacheType t : {CacheType::int8, CacheType::int4}) {
    TokenStore store(2, 9, {24, 96}, t, test_device()), on_cpu(2, 9, {24, 96}, t);
    store.append(x);
    on_cpu.append(x.to(Device::cpu));
    CHECK(store.rows().data.to_vector<int32_t>() == on_cpu.rows().data.to_vector<int32_t>());
    CHECK(to_vec(store.rows().scales) == to_vec(on_cpu.rows().scales));
  }
}

TEST_CASE("bytes are those of the tensors") {
  const auto bytes = [](CacheType t) { return TokenStore(3, 5, {24, 96}, t).bytes_per_token(); };
  CHECK(bytes(CacheType::f64) == 960);
  CHECK(bytes(CacheType::f32) == 480);
  CHECK(bytes(CacheType::bf16) == 240);
  CHECK(bytes(CacheType::int8) == 120 + 2 * 4);  // a group of 24 and three of 32
  CHECK(bytes(CacheType::int4) == 60 + 2 * 4);
  CHECK(TokenStore(1, 1, {33}, CacheType::int4).bytes_per_token() == 20 + 2 * 2);  // whole words
}

TEST_CASE("lengths: truncate, then write over; what does not fit is refused in words") {
  TokenStore store(1, 4, {3}, CacheType::f32, test_device());
  const Tensor x = rows_of(1, 3, 3, 5), y = rows_of(1, 2, 3, 6);
  store.append(x);
  store.truncate(1);
  store.append(y);
  Vec want = to_vec(x.slice(1, 0, 1)), more = to_vec(y);
  want.insert(want.end(), more.begin(), more.end());
  CHECK(to_vec(store.read(DType::f32, {3})) == want);
  check_rejects([&] { store.append(y); }, "3 tokens held and 2 new ones exceed its capacity of 4");
  check_rejects([&] { store.truncate(4); }, "cannot truncate 3 tokens to 4");
  check_rejects([&] { store.append(zeros({2, 1, 3})); }, "made for 1 sequences, given 2");
  check_rejects([&] { store.append(zeros({1, 1, 4})); }, "rows are 3 numbers a token, given (1,1,4)");
  check_rejects([&] { store.read(DType::f32, {4}); }, "cannot be read as (4)");
}
