// Sampling one id per row: what each rule keeps, how the kept ones are drawn, and what is refused.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <cmath>
#include <set>
#include "tensor/kernels.h"
#include "test/near.h"
#include "test/on_device.h"

using namespace llatte;
using namespace llatte::test;

namespace {

// One id for each u, from the same logits.
std::vector<int32_t> draws(const std::vector<float>& logits, const std::vector<float>& u,
                           const SampleRule& rule) {
  const auto N = static_cast<int64_t>(u.size()), V = static_cast<int64_t>(logits.size());
  std::vector<float> z;
  for (int64_t n = 0; n < N; ++n) z.insert(z.end(), logits.begin(), logits.end());
  Tensor ids = empty({N}, DType::i32);
  kernels::sample(from(z, {N, V}), from(u, {N}), rule, ids);
  return ids.to_vector<int32_t>();
}

int32_t draw(const std::vector<float>& logits, float u, const SampleRule& rule) {
  return draws(logits, {u}, rule)[0];
}

std::vector<float> logs(std::vector<float> p) {
  for (float& x : p) x = std::log(x);
  return p;
}

// How often each id comes out when u walks evenly through [0,1).
std::vector<int> histogram(const std::vector<float>& logits, const SampleRule& rule, int n = 1000) {
  std::vector<int> count(logits.size());
  std::vector<float> u;
  for (int i = 0; i < n; ++i) u.push_back((float(i) + 0.5f) / float(n));
  for (const int32_t id : draws(logits, u, rule)) ++count[static_cast<size_t>(id)];
  return count;
}

std::set<int32_t> kept(const std::vector<float>& logits, const SampleRule& rule) {
  const std::vector<int> count = histogram(logits, rule, 200);
  std::set<int32_t> ids;
  for (size_t i = 0; i < count.size(); ++i)
    if (count[i]) ids.insert(static_cast<int32_t>(i));
  return ids;
}

using Ids = std::set<int32_t>;

}  // namespace

TEST_CASE("temperature 0 is argmax, the lowest id on a tie") {
  SampleRule greedy;
  greedy.temperature = 0;
  CHECK(draw({1, 3, 2, 3}, 0.99f, greedy) == 1);
  CHECK(draw({-INFINITY, -5, -INFINITY}, 0, greedy) == 1);
}

TEST_CASE("the inverse CDF gives each id its probability, in ascending order of id") {
  const std::vector<float> z = logs({0.2f, 0.5f, 0.05f, 0.25f});
  // u walks a grid of 1/1000: a count is off by at most one, where a boundary falls on a grid cell.
  const std::vector<int> count = histogram(z, {}), want = {200, 500, 50, 250};
  for (size_t i = 0; i < want.size(); ++i) CHECK(std::abs(count[i] - want[i]) <= 1);
  CHECK(draw(z, 0.19f, {}) == 0);
  CHECK(draw(z, 0.21f, {}) == 1);
  CHECK(draw(z, 0.72f, {}) == 2);
  CHECK(draw(z, 0.76f, {}) == 3);
}

TEST_CASE("temperature sharpens and flattens") {
  const std::vector<float> z = logs({0.2f, 0.8f});
  SampleRule rule;
  rule.temperature = 0.5;  // p^2: 0.04 to 0.64
  CHECK(std::abs(histogram(z, rule)[0] - 59) <= 1);
  rule.temperature = 2;  // sqrt p: 1 to 2
  CHECK(std::abs(histogram(z, rule)[0] - 333) <= 1);
}

TEST_CASE("top_k keeps the k most likely; of equal ones the lowest ids") {
  const std::vector<float> z = {1, 4, 2, 4, 3, 2};
  SampleRule rule;
  rule.top_k = 3;
  CHECK(kept(z, rule) == Ids{1, 3, 4});
  rule.top_k = 4;
  CHECK(kept(z, rule) == Ids{1, 2, 3, 4});
  rule.top_k = 100;
  CHECK(kept(z, rule).size() == 6);
}

TEST_CASE("top_p keeps the smallest set that reaches p") {
  const std::vector<float> z = logs({0.1f, 0.4f, 0.2f, 0.3f});
  SampleRule rule;
  rule.top_p = 0.39;
  CHECK(kept(z, rule) == Ids{1});
  rule.top_p = 0.6;
  CHECK(kept(z, rule) == Ids{1, 3});
  rule.top_p = 0.75;
  CHECK(kept(z, rule) == Ids{1, 2, 3});
  rule.top_p = 1e-9;  // never nothing
  CHECK(kept(z, rule) == Ids{1});
}

TEST_CASE("top_p counts what top_k left as the whole") {
  const std::vector<float> z = logs({0.1f, 0.4f, 0.2f, 0.3f});
  SampleRule rule;
  rule.top_k = 2;    // 0.4 and 0.3: 4/7 and 3/7
  rule.top_p = 0.5;  // 4/7 reaches it; of the full distribution 0.4 would not
  CHECK(kept(z, rule) == Ids{1});
}

TEST_CASE("min_p keeps what is near enough to the most likely") {
  const std::vector<float> z = logs({0.1f, 0.4f, 0.19f, 0.31f});
  SampleRule rule;
  rule.min_p = 0.5;  // at least 0.2
  CHECK(kept(z, rule) == Ids{1, 3});
  rule.min_p = 1;
  CHECK(kept(z, rule) == Ids{1});
}

TEST_CASE("a masked id is never drawn, not even at the end of the CDF") {
  const float almost_one = std::nextafter(1.f, 0.f);
  CHECK(draw({0, 0, -INFINITY}, almost_one, {}) == 1);
  CHECK(draw({-INFINITY, 0, 0}, 0.f, {}) == 1);
}

TEST_CASE("rows are drawn on their own, in f64 too") {
  const Tensor z = from(std::vector<double>{0, 50, 50, 0}, {2, 2});
  Tensor ids = empty({2}, DType::i32);
  kernels::sample(z, from(std::vector<double>{0.5, 0.5}, {2}), SampleRule{}, ids);
  CHECK(ids.to_vector<int32_t>() == std::vector<int32_t>{1, 0});
}

TEST_CASE("bad rules and broken logits are refused by name") {
  const auto rejects = [](const std::vector<float>& z, SampleRule rule, const char* sentence) {
    check_rejects([&] { draw(z, 0.5f, rule); }, sentence);
  };
  rejects({1, 2}, {.temperature = -1}, "sample: temperature -1 must be 0 (the most likely id) or positive");
  rejects({1, 2}, {.top_p = 0}, "sample: top_p 0 must be in (0,1]");
  rejects({1, 2}, {.top_p = NAN}, "sample: top_p nan must be in (0,1]");
  rejects({1, 2}, {.min_p = 2}, "sample: min_p 2 must be in [0,1]");
  rejects({1, 2}, {.top_k = -3}, "sample: top_k -3 must be 0 (all ids) or positive");
  rejects({1, NAN}, {},
          "sample: logit of id 1 in row 0 is nan; the model has diverged or its weights are damaged");
  rejects({INFINITY, 1}, {},
          "sample: logit of id 0 in row 0 is inf; the model has diverged or its weights are damaged");
  rejects({-INFINITY, -INFINITY}, {}, "sample: every logit of row 0 is -inf");
}

TEST_CASE("repetition penalty: seen logits are divided if positive, multiplied if negative") {
  const std::vector<double> z = {2.5, -1.25, 0, 7, -3e-3, 1e3, -INFINITY};
  const std::vector<int32_t> ids = {5, 1, 0, 2, 6};
  for (const double penalty : {1.3, 0.7, 1.0}) {
    std::vector<double> want = z;
    for (const int32_t id : ids) {
      double& x = want[static_cast<size_t>(id)];
      if (x > 0) x = x / penalty;
      if (x < 0) x = z[static_cast<size_t>(id)] * penalty;
    }
    Tensor f64 = from(z, {1, 7}), f32 = from(z, {1, 7}).to(DType::f32);
    const Tensor seen = from(ids, {5});
    kernels::repetition_penalty(seen, penalty, f64);
    kernels::repetition_penalty(seen, penalty, f32);
    const auto got64 = f64.to_vector<double>();
    const auto got32 = f32.to_vector<float>();
    for (size_t i = 0; i < z.size(); ++i) {
      CHECK(got64[i] == want[i]);  // one operation in double: exact
      // f32: rounded on the way in and on the way out, half an ulp (6e-8) each.
      if (std::isinf(want[i])) CHECK(got32[i] == want[i]);
      else CHECK(std::abs(got32[i] - want[i]) <= 1.3e-7 * std::abs(want[i]));
    }
  }
}

TEST_CASE("a bad penalty or id is refused by name") {
  const auto rejects = [](std::vector<int32_t> ids, double penalty, const char* sentence) {
    Tensor z = full({1, 4}, 1, DType::f32);
    check_rejects([&] { kernels::repetition_penalty(from(ids, {1}), penalty, z); }, sentence);
  };
  rejects({0}, 0, "repetition_penalty: 0 must be positive");
  rejects({0}, NAN, "repetition_penalty: nan must be positive");
  rejects({4}, 1.1, "repetition_penalty: id 4 is not in [0,4)");
  rejects({-1}, 1.1, "repetition_penalty: id -1 is not in [0,4)");
}
