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

std::optional<std::filesystem::path> scores_file(const PartialRope& r, const std::filesystem::path& folder) {
  for (const std::string& name : {r.qk_tensor_path.value_or(""), std::string(kQkTensorFile)})
    if (!name.empty() && std::filesystem::is_regular_file(folder / name)) return folder / name;
  return std::nullopt;
}

// f32 [L,K,F]: 1 for the pairs kept, 0 for the others.
Tensor indicator(const LlamaConfig& c) {
  const int64_t L = c.num_hidden_layers, K = c.num_key_value_heads, F = c.head_dim / 2;
  const KeptPairs& kept = c.mla->kept;
  std::vector<float> scores(static_cast<size_t>(L * K * F));
  LLATTE_CHECK(static_cast<int64_t>(kept.size()) == L, "RoPE.kept_pairs: ", kept.size(), " layers, expected ",
               L);
  for (int64_t l = 0; l < L; ++l) {
    const auto& heads = kept[static_cast<size_t>(l)];
    LLATTE_CHECK(static_cast<int64_t>(heads.size()) == K, "RoPE.kept_pairs: ", heads.size(),
                 " kv heads in layer ", l, ", expected ", K);
    for (int64_t k = 0; k < K; ++k)
      for (const int32_t j : heads[static_cast<size_t>(k)]) {
        LLATTE_CHECK(0 <= j && j < F, "RoPE.kept_pairs: pair ", j, " in layer ", l, ", expected 0 to ",
                     F - 1);
        scores[static_cast<size_t>((l * K + k) * F + j)] = 1;
      }
  }
  return Tensor::from(scores, {L, K, F});
}

// Of each pair among those of its head, 0 the highest; one byte each.
std::string descending_rank(const Tensor& scores_LKF) {
  const auto scores = scores_LKF.to(DType::f64).to_vector<double>();
  const auto F = static_cast<size_t>(scores_LKF.size(2));
  std::string rank(scores.size(), '\0');
  for (size_t i = 0; i < scores.size(); ++i) {
    const size_t head = i / F * F;
    size_t better = 0;
    for (size_t j = head; j < head + F; ++j)
      better += scores[j] > scores[i] || (scores[j] == scores[i] && j < i);
    rank[i] = static_cast<char>(std::min<size_t>(better, 255));
  }
  return rank;
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
  const KeptPairs given = c.mla->kept;
  if (!chooses_by_score(c.mla->rope)) c.mla->kept = choose_pairs(c);
  else if (const auto file = scores_file(c.mla->rope, folder)) {
    c.mla->scores = read_qk_scores(*file, c);
    c.mla->kept = choose_pairs(c, c.mla->scores);
  } else if (!given.empty()) {
    c.mla->kept = choose_pairs(c, indicator(c));  // itself, if it is a choice the version can make
  }
  LLATTE_CHECK(given.empty() || given == c.mla->kept, folder.string(),
               ": RoPE.kept_pairs in config.json are not the pairs that RoPE.partial_rope_version ",
               c.mla->rope.partial_rope_version, " keeps; remove kept_pairs or restore the other fields");
}

void require_pairs(const LlamaConfig& c, const std::string& where) {
  if (!c.mla || !c.mla->kept.empty()) return;
  LLATTE_FAIL(where, ": ", kQkTensorFile, " is missing, with the scores by which RoPE.partial_rope_version ",
              c.mla->rope.partial_rope_version,
              " keeps pairs; copy it there, or make it with calibrate from the model before conversion");
}

void write_qk_scores(const std::filesystem::path& file, const LlamaConfig& c) {
  const Tensor scores = (c.mla->scores.defined() ? c.mla->scores : indicator(c)).to(DType::f32).contiguous();
  const std::string numbers(static_cast<const char*>(scores.raw()), scores.bytes());
  write_safetensors_raw(file, {{"scores", "F32", scores.shape(), numbers},
                               {"rank", "U8", scores.shape(), descending_rank(scores)}});
}

}  // namespace llatte
