#include "models/partial_rope.h"
#include <algorithm>
#include <numeric>
#include "data/safetensors.h"

namespace llatte {
namespace {

using Pairs = std::vector<int32_t>;

Pairs range(int64_t begin, int64_t end, int64_t step = 1) {
  Pairs p;
  for (int64_t j = begin; j < end; j += step) p.push_back(static_cast<int32_t>(j));
  return p;
}

// Versions that keep the same pairs in every head.
Pairs pairs_by_place(const PartialRope& r, int64_t F) {
  switch (r.partial_rope_version) {
    case 0: return range(0, F);
    case 1: return range(0, r.top_k_rope_dim);
    case 2: return range(r.uniform_start_point, F, r.uniform_step);
    case 3: {
      Pairs p = range(0, r.top_k_rope_dim);
      const Pairs last = range(F - r.last_k_rope_dim, F);
      p.insert(p.end(), last.begin(), last.end());
      return p;
    }
    case 5: return range(F - r.last_k_rope_dim, F);
    default: LLATTE_FAIL("partial RoPE: version ", r.partial_rope_version, " is not one of 0 to 6");
  }
}

// Indices of the n highest of `scores`, ascending.
Pairs best(std::span<const double> scores, int64_t n) {
  Pairs order(scores.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    return scores[static_cast<size_t>(a)] > scores[static_cast<size_t>(b)];
  });
  order.resize(static_cast<size_t>(n));
  std::sort(order.begin(), order.end());
  return order;
}

std::vector<Pairs> best_of_layer(std::span<const double> scores_KF, int64_t K, const PartialRope& r) {
  const int64_t F = static_cast<int64_t>(scores_KF.size()) / K, kept = r.top_k_rope_dim;
  std::vector<Pairs> heads(static_cast<size_t>(K));
  if (r.partial_rope_version == 4) {
    for (int64_t k = 0; k < K; ++k)
      heads[static_cast<size_t>(k)] =
          best(scores_KF.subspan(static_cast<size_t>(k * F), static_cast<size_t>(F)), kept);
    return heads;
  }
  for (const int32_t i : best(scores_KF, K * kept))
    heads[static_cast<size_t>(i / F)].push_back(static_cast<int32_t>(i % F));
  return heads;
}

void check_scores(const Tensor& scores, const LlamaConfig& c, const std::string& where) {
  const Shape want{c.num_hidden_layers, c.num_key_value_heads, c.head_dim / 2};
  LLATTE_CHECK(scores.shape() == want, where, ": `scores` has shape ", scores.shape(), ", this model needs ",
               want, "; make the file for this model with calibrate");
  for (const double x : scores.to(DType::f64).to_vector<double>())
    LLATTE_CHECK(x == x, where, ": `scores` holds NaN; make the file anew with calibrate");
}

}  // namespace

bool chooses_by_score(const PartialRope& rope) {
  return rope.partial_rope_version == 4 || rope.partial_rope_version == 6;
}

KeptPairs choose_pairs(const LlamaConfig& c, const Tensor& scores_LKF) {
  c.check();
  const PartialRope r = c.mla ? c.mla->rope : PartialRope{};
  const int64_t L = c.num_hidden_layers, K = c.num_key_value_heads, F = c.head_dim / 2;
  if (!chooses_by_score(r))
    return KeptPairs(static_cast<size_t>(L),
                     std::vector<Pairs>(static_cast<size_t>(K), pairs_by_place(r, F)));
  LLATTE_CHECK(scores_LKF.defined(), "partial RoPE: version ", r.partial_rope_version,
               " chooses pairs by their scores; make them with calibrate and name the file in "
               "RoPE.qk_tensor_path");
  check_scores(scores_LKF, c, "partial RoPE");
  const auto scores = scores_LKF.to(DType::f64).to_vector<double>();
  KeptPairs kept;
  for (int64_t l = 0; l < L; ++l)
    kept.push_back(best_of_layer(
        std::span(scores).subspan(static_cast<size_t>(l * K * F), static_cast<size_t>(K * F)), K, r));
  return kept;
}

Tensor read_qk_scores(const std::filesystem::path& file, const LlamaConfig& c) {
  const SafetensorsFile f = SafetensorsFile::open(file);
  LLATTE_CHECK(f.has("scores"), file.string(), ": there is no tensor `scores`; make the file with calibrate");
  const Tensor scores = f.read("scores", DType::f32);
  check_scores(scores, c, file.string());
  return scores;
}

void resolve_pairs(LlamaConfig& c, const std::filesystem::path& folder) {
  if (!c.mla) return;
  if (!chooses_by_score(c.mla->rope)) {
    c.mla->kept = choose_pairs(c);
    return;
  }
  for (const std::string& name :
       {c.mla->rope.qk_tensor_path.value_or(""), std::string("qk_tensor.safetensors")})
    if (!name.empty() && std::filesystem::is_regular_file(folder / name)) {
      c.mla->scores = read_qk_scores(folder / name, c);
      c.mla->kept = choose_pairs(c, c.mla->scores);
      return;
    }
}

}  // namespace llatte
