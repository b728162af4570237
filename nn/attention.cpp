// The only switch on the kind of attention. A new kind is one file beside this one, one declaration and one
// line here.
#include "nn/attention.h"

namespace llatte {

std::unique_ptr<Attention> make_attention_gqa(const AttentionConfig& c);  // nn/attention_gqa.cpp

std::unique_ptr<Attention> make_attention(const AttentionConfig& c) {
  if (c.kind == "gqa") return make_attention_gqa(c);
  LLATTE_FAIL("attention: unknown kind '", c.kind, "'; have gqa");
}

}  // namespace llatte
