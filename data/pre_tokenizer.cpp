// See pre_tokenizer.h. Most words of most texts are ASCII letters, perhaps after one space, and end before
// another ASCII character: all three patterns take such a word whole, so it is found without the regex
// engine.
#include "data/pre_tokenizer.h"
#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <utf8proc.h>
#include "data/tokenizer_utf8.h"
#include "tensor/check.h"

namespace llatte {
namespace {

// \s of PCRE2 still counts U+180E, which Unicode took out of White_Space in version 6.3.
std::string unicode_spaces(std::string pattern) {
  const auto replace_all = [&](const std::string& from, const std::string& to) {
    for (size_t at = 0; (at = pattern.find(from, at)) != std::string::npos; at += to.size())
      pattern.replace(at, from.size(), to);
  };
  replace_all("\\s", "\\p{White_Space}");
  replace_all("\\S", "\\P{White_Space}");
  return pattern;
}

bool is_ascii_letter(char c) { return (c | 0x20) >= 'a' && (c | 0x20) <= 'z'; }

bool is_number(std::string_view at, size_t length) {
  if (length == 1) return at[0] >= '0' && at[0] <= '9';
  switch (utf8proc_category(utf8_code_point(at))) {
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_NO: return true;
    default: return false;
  }
}

// The length of an ASCII word at the front of `text`; 0 if there is none or it may go on in another script.
size_t ascii_word(std::string_view text) {
  size_t i = text[0] == ' ' ? 1 : 0;
  const size_t first = i;
  while (i < text.size() && is_ascii_letter(text[i])) ++i;
  if (i == first || (i < text.size() && (text[i] & 0x80))) return 0;
  return i;
}

pcre2_match_data* thread_match_data() {
  static thread_local std::unique_ptr<pcre2_match_data, decltype(&pcre2_match_data_free)> data(
      pcre2_match_data_create(1, nullptr), pcre2_match_data_free);
  return data.get();
}

}  // namespace

const std::string PreTokenizer::gpt2_pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
const std::string PreTokenizer::llama3_pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
const std::string PreTokenizer::qwen2_pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

struct PreTokenizer::Pattern {
  pcre2_code* code;
  explicit Pattern(const std::string& text) {
    int error = 0;
    size_t at = 0;
    code = pcre2_compile(PCRE2_SPTR(text.data()), text.size(), PCRE2_UTF | PCRE2_UCP | PCRE2_NO_UTF_CHECK,
                         &error, &at, nullptr);
    LLATTE_CHECK(code, "tokenizer: PCRE2 ", PCRE2_MAJOR, ".", PCRE2_MINOR, " refuses the split pattern at ",
                 at, " (error ", error, "); version 10.40 or later with Unicode is needed");
    pcre2_jit_compile(code, PCRE2_JIT_COMPLETE);  // without JIT the interpreter does it, only slower
  }
  ~Pattern() { pcre2_code_free(code); }
  Pattern(const Pattern&) = delete;
};

PreTokenizer::PreTokenizer(Digits digits, const std::string& pattern, const std::string& where)
    : digits_(digits) {
  if (pattern.empty()) return;
  LLATTE_CHECK(pattern == gpt2_pattern || pattern == llama3_pattern || pattern == qwen2_pattern, where,
               ": the split pattern '", pattern, "' is not one of those known (GPT-2's, Llama-3's, Qwen2's)");
  pattern_ = std::make_shared<const Pattern>(unicode_spaces(pattern));
}

// Moves the text up to the next border of a number into piece_.
void PreTokenizer::Words::next_piece() {
  size_t i = rules_->digits_ == Digits::together ? rest_.size() : 0;
  bool numbers = false;
  while (i < rest_.size()) {
    const size_t length = rest_[i] & 0x80 ? utf8_length(rest_.substr(i)) : 1;
    const bool number = is_number(rest_.substr(i), length);
    if (i > 0 && number != numbers) break;
    i += length;
    numbers = number;
    if (number && rules_->digits_ == Digits::single) break;
  }
  piece_ = rest_.substr(0, i);
  rest_.remove_prefix(i);
}

// Length of the word at the front of piece_. Text between matches is a word too (behavior: Isolated).
size_t PreTokenizer::Words::match_length() const {
  if (!rules_->pattern_) return piece_.size();
  if (const size_t n = ascii_word(piece_)) return n;
  pcre2_match_data* data = thread_match_data();
  const int rc = pcre2_match(rules_->pattern_->code, PCRE2_SPTR(piece_.data()), piece_.size(), 0,
                             PCRE2_NO_UTF_CHECK, data, nullptr);
  if (rc == PCRE2_ERROR_NOMATCH) return piece_.size();
  LLATTE_CHECK(rc >= 0, "tokenizer: the split pattern failed with PCRE2 error ", rc, " on a text of ",
               piece_.size(), " bytes");
  const size_t* range = pcre2_get_ovector_pointer(data);
  return range[0] > 0 ? range[0] : range[1] > 0 ? range[1] : piece_.size();
}

bool PreTokenizer::Words::next(std::string_view& word) {
  if (piece_.empty()) {
    if (rest_.empty()) return false;
    next_piece();
  }
  const size_t n = match_length();
  word = piece_.substr(0, n);
  piece_.remove_prefix(n);
  return true;
}

}  // namespace llatte
