// What the tasks taken from EleutherAI's lm-evaluation-harness share: its prefix token, and whitespace as
// Python's str and re see it (lm_eval is a Python program, and words and trimmed spaces are counted so).
#pragma once
#include <filesystem>
#include <string_view>
#include "data/tokenizer.h"
#include "models/llama.h"

namespace llatte {

// The token that stands before a text: bos, else eos, as `tokenizer_config` (tokenizer_config.json, where
// there is one) names them, else those of the model's config. No other special token is ever added.
int32_t prefix_token(const Tokenizer& tokenizer, const std::filesystem::path& tokenizer_config,
                     const LlamaConfig& c);

// Bytes of the whitespace character at the front of UTF-8 `text`; 0 if there is none.
size_t leading_space(std::string_view text);
std::string_view strip_right(std::string_view text);
std::string_view strip(std::string_view text);

}  // namespace llatte
