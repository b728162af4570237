// Cuts text into the words that BPE works on: digits may be set apart, then a split pattern, each match a
// word. The patterns are the three that byte-level tokenizers in use have; Unicode classes come from PCRE2
// (split) and utf8proc (digits).
#pragma once
#include <memory>
#include <optional>
#include <string>
#include <string_view>

namespace llatte {

enum class Digits { together, single, runs };  // runs: digits apart from the rest, but not from one another

class PreTokenizer {
 public:
  static const std::string gpt2_pattern, llama3_pattern, qwen2_pattern;

  // `pattern` is one of the three, or empty: no split. Anything else is an Error that opens with `where`.
  PreTokenizer(Digits digits, const std::string& pattern, const std::string& where);

  // Walks through one text (valid UTF-8) word by word. Made by one thread, used by that thread.
  class Words {
   public:
    Words(const PreTokenizer& rules, std::string_view text) : rules_(&rules), rest_(text) {}
    bool next(std::string_view& word);

   private:
    void next_piece();
    size_t match_length() const;
    const PreTokenizer* rules_;
    std::string_view rest_;   // not yet cut into pieces
    std::string_view piece_;  // between two digit borders, not yet cut into words
  };

 private:
  struct Pattern;
  Digits digits_;
  std::shared_ptr<const Pattern> pattern_;
};

}  // namespace llatte
