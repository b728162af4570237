// Which pairs keep RoPE: every version against the pairs its reference implementation kept, and what is
// refused.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>
#include "data/json.h"
#include "data/safetensors.h"
#include "models/hf.h"
#include "models/partial_rope.h"

using namespace llatte;

namespace {

const std::filesystem::path kFixtures = "test/fixtures/tiny-mla";

LlamaConfig base_with(const nlohmann::json& rope) {
  LlamaConfig c = read_hf_config(kFixtures / "base/config.json");
  c.mla.emplace();
  PartialRope& r = c.mla->rope;
  r.partial_rope_version = rope.value("partial_rope_version", 0);
  r.top_k_rope_dim = rope.value("top_k_rope_dim", 0), r.last_k_rope_dim = rope.value("last_k_rope_dim", 0);
  r.uniform_start_point = rope.value("uniform_start_point", 0);
  r.uniform_step = rope.value("uniform_step", 1);
  return c;
}

Tensor scores() {
  return SafetensorsFile::open(kFixtures / "scores/golden.safetensors").read("scores_f64", DType::f64);
}

}  // namespace

TEST_CASE("each version keeps the reference's pairs") {
  for (int version = 1; version <= 6; ++version) {
    CAPTURE(version);
    const auto golden = read_json(kFixtures / str("nanotron-era/v", version, "_m0.json"));
    const LlamaConfig c = base_with(golden.at("RoPE"));
    const Tensor s = chooses_by_score(c.mla->rope) ? scores() : Tensor();
    CHECK(choose_pairs(c, s) == golden.at("kept_pairs").get<KeptPairs>());
  }
}

TEST_CASE("version 0 keeps all") {
  const KeptPairs kept = choose_pairs(base_with(nlohmann::json::object()));
  CHECK(kept.size() == 2);
  CHECK(kept[1][1] == std::vector<int32_t>{0, 1, 2, 3, 4, 5, 6, 7});
}

TEST_CASE("equal scores: the lower pair first") {
  const LlamaConfig c = base_with({{"partial_rope_version", 4}, {"top_k_rope_dim", 2}});
  CHECK(choose_pairs(c, Tensor::full({2, 2, 8}, 1))[0][1] == std::vector<int32_t>{0, 1});
}

TEST_CASE("refused, in one sentence") {
  const LlamaConfig c = base_with({{"partial_rope_version", 4}, {"top_k_rope_dim", 2}});
  CHECK_THROWS_WITH_AS(choose_pairs(c), doctest::Contains("name the file in RoPE.qk_tensor_path"), Error);
  CHECK_THROWS_WITH_AS(choose_pairs(c, Tensor::zeros({2, 2, 9})),
                       doctest::Contains("has shape (2,2,9), this model needs (2,2,8)"), Error);
  CHECK_THROWS_WITH_AS(choose_pairs(c, Tensor::full({2, 2, 8}, NAN)), doctest::Contains("holds NaN"), Error);
  CHECK_THROWS_WITH_AS(choose_pairs(base_with({{"partial_rope_version", 7}})),
                       doctest::Contains("RoPE.partial_rope_version is 7, expected 0 to 6"), Error);
}
