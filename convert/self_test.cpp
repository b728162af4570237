#include "convert/self_test.h"
#include <algorithm>
#include <cmath>
#include "autograd/ops.h"
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

std::vector<float> logits_of(const Checkpoint& checkpoint, const Tensor& tokens_1T, DType dtype) {
  const NoGrad off;
  release_cached_blocks(Device::cpu);  // what the conversion, or the other model, has left
  const auto model = load_model(checkpoint, dtype);
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
  double worst = 0;
  for (size_t i = 0; i < result.weights.size(); ++i) {
    const std::string &from = source.weights[i].second.dtype, &to = result.weights[i].second.dtype;
    if (from != to) worst = std::max(worst, rounding_of(to));
  }
  return worst;
}

}  // namespace

SelfTest compare_logits(const Checkpoint& source, const Checkpoint& result) {
  const bool narrow = at_most_16_bits(source) && at_most_16_bits(result);
  const DType dtype = narrow ? DType::bf16 : DType::f32;
  const Tensor tokens_1T = some_tokens(source.config);
  const std::vector<float> a = logits_of(source, tokens_1T, dtype), b = logits_of(result, tokens_1T, dtype);
  LLATTE_CHECK(a.size() == b.size(), "self-test: ", a.size(), " logits became ", b.size());
  SelfTest t;
  for (size_t i = 0; i < a.size(); ++i) {
    const double error = std::abs(double(a[i]) - double(b[i]));
    if (!(error <= t.max_error) && !std::isnan(t.max_error)) t.max_error = error;  // a NaN comes and stays
    t.max_logit = std::max(t.max_logit, std::abs(double(a[i])));
  }
  // Independent roundings grow with the depth of the network; a wrong layout makes errors as large as the
  // logits themselves, so there is room between the two.
  t.tolerance = std::min(0.25, 64 * added_rounding(source, result));
  return t;
}

}  // namespace llatte
