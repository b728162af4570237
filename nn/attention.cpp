// The only switch on the kind of attention. A new kind is one file beside this one, one declaration and one
// line here.
#include "nn/attention.h"

namespace llatte {

std::unique_ptr<Attention> make_attention_gqa(const AttentionConfig& c);  // nn/attention_gqa.cpp
std::unique_ptr<Attention> make_attention_mla(const AttentionConfig& c);  // nn/attention_mla.cpp
std::unique_ptr<Attention> make_attention_hla(const AttentionConfig& c);  // nn/attention_hla.cpp

std::unique_ptr<Attention> make_attention(const AttentionConfig& c) {
  if (c.kind == "gqa") return make_attention_gqa(c);
  if (c.kind == "mla") return make_attention_mla(c);
  if (c.kind == "hla") return make_attention_hla(c);
  LLATTE_FAIL("attention: unknown kind '", c.kind, "'; have gqa, mla and hla");
}

Tensor rope_pairs(const AttentionConfig& c, int64_t heads) {
  if (c.kept_pairs.empty()) return {};
  const int64_t F = c.E / 2, G = heads / c.K;
  std::vector<int32_t> pairs(static_cast<size_t>(heads * F), -1);
  for (int64_t h = 0; h < heads; ++h)
    for (const int32_t j : c.kept_pairs[static_cast<size_t>(h / G)])
      pairs[static_cast<size_t>(h * F + j)] = j;
  return Tensor::from(pairs, {heads, F});
}

}  // namespace llatte
