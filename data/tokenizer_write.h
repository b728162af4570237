// A byte-level BPE tokenizer.json, written: the layout and key order of the library whose format it is, and
// the parts that are alike in all of ours. Reading is in data/tokenizer_json.h.
#pragma once
#include <nlohmann/json.hpp>
#include <string>

namespace llatte {

// The parts as they stand in the file.
struct TokenizerParts {
  nlohmann::ordered_json vocab, merges, added_tokens;
  nlohmann::ordered_json pre_tokenizers;  // a list, applied in this order
  nlohmann::ordered_json normalizer = nullptr, post_processor = nullptr;
  bool ignore_merges = false;
};
std::string write_tokenizer_json(TokenizerParts parts);

nlohmann::ordered_json digits_alone();  // pre-tokenizer: each digit a word
nlohmann::ordered_json byte_level(
    bool use_regex);  // pre-tokenizer: the byte alphabet, after GPT-2's split or not
nlohmann::ordered_json added_token(size_t id, const std::string& content, bool special);

}  // namespace llatte
