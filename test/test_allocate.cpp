// Ranks are dealt out as well as can be: compared with every possible choice on small cases.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <algorithm>
#include <functional>
#include <random>
#include "convert/allocate.h"
#include "test/near.h"

using namespace llatte;
using namespace llatte::test;

static double gain_of(const std::vector<Spectrum>& s, const std::vector<int64_t>& counts) {
  double sum = 0;
  for (size_t i = 0; i < s.size(); ++i)
    for (int64_t n = 0; n < counts[i]; ++n) sum += s[i].gains[static_cast<size_t>(n)];
  return sum;
}

static int64_t cost_of(const std::vector<Spectrum>& s, const std::vector<int64_t>& counts) {
  int64_t sum = 0;
  for (size_t i = 0; i < s.size(); ++i) sum += counts[i] * s[i].cost;
  return sum;
}

// The best of all choices.
static double brute_force(const std::vector<Spectrum>& s, int64_t budget) {
  double best = -1;
  std::vector<int64_t> counts(s.size(), 0);
  const std::function<void(size_t)> choose = [&](size_t i) {
    if (i == s.size()) {
      if (cost_of(s, counts) <= budget) best = std::max(best, gain_of(s, counts));
      return;
    }
    for (counts[i] = s[i].needed; counts[i] <= static_cast<int64_t>(s[i].gains.size()); ++counts[i])
      choose(i + 1);
  };
  choose(0);
  return best;
}

TEST_CASE("the gains are the most that the budget can buy, and it is not exceeded") {
  std::mt19937 rng(7);
  std::uniform_real_distribution<double> uniform(0, 1);
  for (int round = 0; round < 300; ++round) {
    std::vector<Spectrum> s(1 + rng() % 4);
    int64_t least = 0, all = 0;
    for (Spectrum& one : s) {
      one.cost = 1 + static_cast<int64_t>(rng() % 2), one.needed = rng() % 3 == 0;
      for (size_t n = 1 + rng() % 4; n > 0; --n) one.gains.push_back(std::pow(uniform(rng), 3));
      std::sort(one.gains.rbegin(), one.gains.rend());
      least += one.needed * one.cost, all += one.cost * static_cast<int64_t>(one.gains.size());
    }
    for (int64_t budget = least; budget <= all + 1; ++budget) {
      const std::vector<int64_t> counts = allocate(s, budget);
      CHECK(cost_of(s, counts) <= budget);
      for (size_t i = 0; i < s.size(); ++i) CHECK(counts[i] >= s[i].needed);
      // Sums of up to 16 numbers below 1, in two orders.
      CHECK(std::abs(gain_of(s, counts) - brute_force(s, budget)) < 1e-13);
    }
    CHECK(cost_of(s, allocate(s, all)) == all);
  }
}

TEST_CASE("taking the best by gain per value would be worse here") {
  CHECK(allocate({{{3}, 1}, {{5}, 2}}, 2) == std::vector<int64_t>{0, 1});
  CHECK(allocate({{{3}, 1}, {{5}, 2}}, 3) == std::vector<int64_t>{1, 1});
}

TEST_CASE("of equal gains the earlier list is served first; what is free is used up") {
  CHECK(allocate({{{1, 1}, 1}, {{1, 1}, 1}}, 3) == std::vector<int64_t>{2, 1});
  CHECK(allocate({{{0, 0}, 1}, {{0}, 2}}, 4) == std::vector<int64_t>{2, 1});
}

TEST_CASE("refused: too little for what is needed, gains that rise or are no numbers") {
  check_rejects(
      [] {
        allocate({{{1}, 2, true}, {{1}, 1, true}}, 2);
      },
      "at least 3 are needed; raise HLA.cache");
  check_rejects([] { allocate({{{1, 2}, 1}}, 2); }, "larger than the one before");
  check_rejects([] { allocate({{{std::nan("")}, 1}}, 2); }, "not finite");
  check_rejects([] { allocate({{{1}, 3}}, 2); }, "an item costs 3, expected 1 or 2");
}
