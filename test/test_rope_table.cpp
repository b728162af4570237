// RoPE's frequencies and table against the formulas, and llama3's three frequency bands.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>
#include <cmath>
#include <numbers>
#include "models/llama.h"

using namespace llatte;

// Both sides are f64 evaluations of one formula: a few roundings apart.
bool close(double a, double b) { return std::abs(a - b) <= 1e-14 * std::abs(b); }

TEST_CASE("plain frequencies are theta^(-2j/E)") {
  const LlamaConfig c = preset("clm-60m");
  const auto f = rope_frequencies(c);
  REQUIRE(f.size() == 32);
  CHECK(f[0] == 1);
  for (size_t j = 1; j < f.size(); ++j) CHECK(close(f[j] / f[j - 1], std::pow(10000.0, -1.0 / 32)));
}

TEST_CASE("llama3 scaling: fast pairs kept, slow ones divided, a blend between") {
  LlamaConfig c = preset("clm-60m"), plain = c;
  c.rope_scaling = RopeScaling{8, 1, 4, 64};
  const auto f = rope_frequencies(c), g = rope_frequencies(plain);
  int kept = 0, divided = 0, blended = 0;
  for (size_t j = 0; j < f.size(); ++j) {
    const double turns = 64 * g[j] / (2 * std::numbers::pi);  // of this pair within the original context
    const double blend = (turns - 1) / 3;
    ++(turns > 4 ? kept : turns < 1 ? divided : blended);
    CHECK(close(f[j], turns > 4 ? g[j] : turns < 1 ? g[j] / 8 : g[j] * ((1 - blend) / 8 + blend)));
  }
  CHECK(kept > 0);
  CHECK(divided > 0);
  CHECK(blended > 0);
}

TEST_CASE("the table is cos and sin of position times frequency, computed in f64 and rounded once") {
  const std::vector<double> f{1, 0.1, 1e-4};
  const RopeTable wide = make_rope_table(f, 5000, DType::f64), t = make_rope_table(f, 5000, DType::f32);
  REQUIRE(t.cos.shape() == Shape{5000, 3});
  const auto cos = wide.cos.to_vector<double>(), sin = wide.sin.to_vector<double>();
  const auto cos32 = t.cos.to_vector<float>(), sin32 = t.sin.to_vector<float>();
  for (size_t p = 0; p < 5000; ++p)
    for (size_t j = 0; j < 3; ++j) {
      const double angle = static_cast<double>(p) * f[j];
      REQUIRE(cos[p * 3 + j] == std::cos(angle));
      REQUIRE(sin[p * 3 + j] == std::sin(angle));
      REQUIRE(cos32[p * 3 + j] == static_cast<float>(std::cos(angle)));
      REQUIRE(sin32[p * 3 + j] == static_cast<float>(std::sin(angle)));
    }
}
