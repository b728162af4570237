#include "convert/self_test.h"
#include <algorithm>
#include <cmath>
#include <map>
#include "autograd/ops.h"
#include "convert/hla.h"
#include "convert/low_rank.h"
#include "convert/mla.h"
#include "models/partial_rope.h"
#include "tensor/alloc.h"

namespace llatte {
namespace {

// Enough for every row of every matrix but the embedding, few enough that the logits are small beside the
// model.
constexpr int64_t kTokens = 32;

// Ids all over the vocabulary, the same for both models.
Tensor some_tokens(const LlamaConfig& c) {
  const int64_t T = std::min(kTokens, c.max_position_embeddings);
  std::vector<int32_t> ids(static_cast<size_t>(T));
  for (int64_t t = 0; t < T; ++t) ids[static_cast<size_t>(t)] = static_cast<int32_t>(t * 7919 % c.vocab_size);
  return Tensor::from(ids, {1, T});
}

std::vector<float> logits_of(const Checkpoint& checkpoint, const Tensor& tokens_1T, DType dtype,
                             Device device) {
  const NoGrad off;
  release_cached_blocks(device);  // what the conversion, or the other model, has left
  const auto model = load_model(checkpoint, dtype);
  model->to(device);
  return model->logits(model->hidden(tokens_1T)).value.to(DType::f32).to_vector<float>();
}

// How exactly a type on disk holds the numbers it is given, as a share of the largest; 0: not named here,
// F32.
double rounding_of(const std::string& dtype) {
  if (dtype == "F16") return 0x1p-11;
  if (dtype == "BF16") return 0x1p-8;
  if (dtype == "Q8_0") return 0x1p-7;
  return 0;
}

bool at_most_16_bits(const Checkpoint& c) {
  return std::all_of(c.weights.begin(), c.weights.end(), [](const auto& w) {
    return w.second.shape.size() < 2 || w.second.bytes <= 2 * numel_of(w.second.shape);
  });
}

// The coarsest rounding the result added to the source's own.
double added_rounding(const Checkpoint& source, const Checkpoint& result) {
  std::map<std::string, std::string> before;
  for (const auto& [name, w] : source.weights) before[name] = w.dtype;
  double worst = 0;
  for (const auto& [name, w] : result.weights)
    if (before[name] != w.dtype) worst = std::max(worst, rounding_of(w.dtype));
  return worst;
}

SelfTest compared(const Checkpoint& source, const Checkpoint& result, DType dtype, double tolerance,
                  Device device) {
  const Tensor tokens_1T = some_tokens(source.config);
  const std::vector<float> a = logits_of(source, tokens_1T, dtype, device),
                           b = logits_of(result, tokens_1T, dtype, device);
  LLATTE_CHECK(a.size() == b.size(), "self-test: ", a.size(), " logits became ", b.size());
  SelfTest t;
  for (size_t i = 0; i < a.size(); ++i) {
    const double error = std::abs(double(a[i]) - double(b[i]));
    if (!(error <= t.max_error) && !std::isnan(t.max_error)) t.max_error = error;  // a NaN comes and stays
    t.max_logit = std::max(t.max_logit, std::abs(double(a[i])));
  }
  t.tolerance = tolerance;
  return t;
}

// Independent roundings grow with the depth of the network; a wrong layout makes errors as large as the
// logits themselves, so there is room between the two.
double rounding_tolerance(const Checkpoint& source, const Checkpoint& result) {
  return std::min(0.25, 64 * added_rounding(source, result));
}

// The model of the first layer alone, where it is large.
Checkpoint sample_of(Checkpoint c, int64_t large) {
  if (param_count(c.config) <= large) return c;
  c.config.num_hidden_layers = 1;
  if (c.config.mla) {
    c.config.mla->kept.resize(1);
    if (c.config.mla->scores.defined()) c.config.mla->scores = c.config.mla->scores.slice(0, 0, 1);
  }
  if (c.config.hla) c.config.hla->layers.resize(1);
  std::map<std::string, WeightInfo> all(c.weights.begin(), c.weights.end());
  c.weights.clear();
  for (const auto& [name, shape] : param_shapes(c.config)) c.weights.push_back({name, all.at(name)});
  return c;
}

ConversionPlan with_all_pairs(const ConversionPlan& plan) {
  ConversionPlan p = without_svd(plan);
  MlaConfig& m = *p.config.mla;
  p.settings.metric = Metric::plain, p.settings.rope = m.rope = PartialRope{}, m.scores = {};
  p.settings.from_scratch = false;
  m.kept = choose_pairs(p.config);
  return p;
}

// A rank is so many per kv head: where the heads do not divide the width, the last ranks cannot be asked for.
bool exact(const ConversionPlan& plan) {
  const LatentWidths w = latent_widths(plan.config);
  const int64_t D = plan.config.hidden_size, K = plan.config.num_key_value_heads;
  const int64_t R = exact_ranks(plan.settings.svd.method, w.lost, w.kept + w.lost, D);
  return !plan.settings.from_scratch && R > 0 && R <= D / K * K;
}

}  // namespace

SelfTest compare_logits(const Checkpoint& source, const Checkpoint& result, Device device) {
  const bool narrow = at_most_16_bits(source) && at_most_16_bits(result);
  return compared(source, result, narrow ? DType::bf16 : DType::f32, rounding_tolerance(source, result),
                  device);
}

ConversionTest test_conversion(const Checkpoint& source, const ConversionPlan& plan,
                               const Checkpoint& converted, const Checkpoint& written, int64_t large,
                               Device device) {
  const auto run = [large, device](const Checkpoint& a, const Checkpoint& b, double tolerance) {
    return compared(sample_of(a, large), sample_of(b, large), DType::f32, tolerance, device);
  };
  ConversionTest t;
  // 1e-4: sums in f32 taken in another order, 1e-7 each, through all layers.
  if (plan.config.hla) {
    const auto full = [&](HlaRope r) { return convert_attention(source, at_full_rank(source, plan, r)); };
    t.original = run(source, full(HlaRope::original), 1e-4);
    t.full_rank = run(source, full(HlaRope::aligned), 1e-4);
  } else {
    t.original = run(source, convert_attention(source, with_all_pairs(plan)), 1e-4);
  }
  if (plan.config.mla && exact(plan))
    t.full_rank = run(convert_attention(source, without_svd(plan)),
                      convert_attention(source, at_full_rank(plan)), 1e-4);
  // Products of factors as they are stored, against products of them in f64.
  t.written = run(converted, written, std::max(1e-4, rounding_tolerance(converted, written)));
  return t;
}

}  // namespace llatte
