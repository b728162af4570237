// One pass: text up to the next '{{', '{%' or '{#', then the tokens inside it up to its end.
#include "data/chat_template_lexer.h"
#include <algorithm>
#include "data/json.h"  // printable
#include "data/tokenizer_utf8.h"
#include "tensor/check.h"

namespace llatte::jinja {
namespace {

bool is_space(char32_t c) {
  return (9 <= c && c <= 13) || (28 <= c && c <= 32) || c == 0x85 || c == 0xa0 || c == 0x1680 ||
         (0x2000 <= c && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f || c == 0x205f ||
         c == 0x3000;
}

// Bytes of white space at the front.
size_t leading_space(std::string_view text) {
  size_t n = 0;
  while (n < text.size()) {
    const int length = utf8_length(text.substr(n));
    if (length <= 0 || !is_space(utf8_code_point(text.substr(n)))) break;
    n += static_cast<size_t>(length);
  }
  return n;
}

std::string_view rstrip(std::string_view text) {
  while (!text.empty()) {
    size_t at = text.size() - 1;
    while (at > 0 && (static_cast<uint8_t>(text[at]) & 0xc0) == 0x80) --at;
    if (leading_space(text.substr(at)) != text.size() - at) break;
    text.remove_suffix(text.size() - at);
  }
  return text;
}

std::string normal_newlines(const std::string& source) {
  std::string s;
  for (size_t i = 0; i < source.size(); ++i) {
    if (source[i] == '\r' && i + 1 < source.size() && source[i + 1] == '\n') continue;
    s += source[i] == '\r' ? '\n' : source[i];
  }
  if (!s.empty() && s.back() == '\n') s.pop_back();
  return s;
}

bool digit(char c) { return '0' <= c && c <= '9'; }
bool letter(char c) { return ('a' <= c && c <= 'z') || ('A' <= c && c <= 'Z') || c == '_'; }

class Lexer {
 public:
  Lexer(const std::string& source, const std::string& where) : s_(normal_newlines(source)), where_(where) {
    LLATTE_CHECK(is_utf8(source), where, ": the template is not valid UTF-8");
  }

  std::vector<Token> run() {
    while (at_ < s_.size()) text_then_tag();
    add(Token::end, "");
    return std::move(tokens_);
  }

 private:
  template <class... Parts>
  [[noreturn]] void fail(const Parts&... parts) const {
    LLATTE_FAIL(where_, ": line ", line_, ": ", parts...);
  }
  void add(Token::Kind kind, std::string word) { tokens_.push_back({kind, std::move(word), line_}); }
  char peek(size_t ahead = 0) const { return at_ + ahead < s_.size() ? s_[at_ + ahead] : '\0'; }
  bool next_is(std::string_view what) const { return s_.compare(at_, what.size(), what) == 0; }
  void advance(size_t n) {
    line_ += static_cast<int>(std::count(&s_[at_], &s_[at_] + n, '\n'));
    at_ += n;
  }
  std::string take(size_t n) {
    std::string piece = s_.substr(at_, n);
    advance(n);
    return piece;
  }

  size_t find_tag() const {
    for (size_t i = at_; i + 1 < s_.size(); ++i)
      if (s_[i] == '{' && (s_[i + 1] == '{' || s_[i + 1] == '%' || s_[i + 1] == '#')) return i;
    return s_.size();
  }

  void text_then_tag() {
    const size_t tag = find_tag();
    const std::string_view raw = std::string_view(s_).substr(at_, tag - at_);
    const char kind = tag < s_.size() ? s_[tag + 1] : '\0', sign = tag + 2 < s_.size() ? s_[tag + 2] : '\0';
    const std::string_view kept = kind ? before_tag(raw, kind, sign) : raw;
    if (!kept.empty()) add(Token::text, std::string(kept));
    advance(tag - at_);
    if (!kind) return;
    advance(sign == '-' || sign == '+' ? 3 : 2);
    line_begins_ = false;
    if (kind == '#') return comment();
    add(kind == '{' ? Token::output_begin : Token::tag_begin, "");
    inside(kind == '{');
  }

  // What a tag leaves of the text before it. Only blocks and comments take their indentation with them.
  std::string_view before_tag(std::string_view text, char kind, char sign) const {
    if (sign == '-') return rstrip(text);
    if (sign == '+' || kind == '{') return text;
    const size_t newline = text.rfind('\n');
    if (newline == text.npos && !line_begins_) return text;
    const size_t line = newline == text.npos ? 0 : newline + 1;
    return leading_space(text.substr(line)) == text.size() - line ? text.substr(0, line) : text;
  }

  void comment() {
    const size_t end = s_.find("#}", at_);
    if (end == s_.npos) fail("a comment '{#' is not closed by '#}'");
    const char sign = end > at_ ? s_[end - 1] : '\0';
    advance(end + 2 - at_);
    after_tag(sign, true);
  }

  void after_tag(char sign, bool trims_newline) {
    const size_t from = at_;
    if (sign == '-') advance(leading_space(std::string_view(s_).substr(at_)));
    else if (sign != '+' && trims_newline && peek() == '\n') advance(1);
    line_begins_ = at_ > from && s_[at_ - 1] == '\n';
  }

  // The end of the tag at hand, if it is here. Inside brackets '}}' is two brackets.
  bool closes(bool output) {
    if (!open_.empty()) return false;
    const std::string_view mark = output ? "}}" : "%}";
    const char sign = peek() == '-' || (peek() == '+' && !output) ? peek() : '\0';
    if (s_.compare(at_ + (sign ? 1 : 0), 2, mark) != 0) return false;
    add(output ? Token::output_end : Token::tag_end, "");
    advance(sign ? 3 : 2);
    after_tag(sign, !output);
    return true;
  }

  void inside(bool output) {
    const int opened = line_;
    while (true) {
      advance(leading_space(std::string_view(s_).substr(at_)));
      if (at_ == s_.size()) fail("the tag opened in line ", opened, " is not closed");
      if (closes(output)) return;
      one_token();
    }
  }

  void one_token() {
    const char c = peek();
    if (c == '\'' || c == '"') return string();
    if (digit(c)) return integer();
    if (letter(c)) return name();
    for (const std::string_view two : {"==", "!=", "<=", ">=", "//", "**"})
      if (next_is(two)) return add(Token::op, take(2));
    if (std::string_view("+-/*%~[](){}<>=.:|,").find(c) == std::string_view::npos)
      fail("unexpected '", printable({c}), "'");
    bracket(c);
    add(Token::op, take(1));
  }

  void bracket(char c) {
    if (c == '(' || c == '[' || c == '{') open_ += c == '(' ? ')' : c == '[' ? ']' : '}';
    if (c != ')' && c != ']' && c != '}') return;
    if (open_.empty() || open_.back() != c) fail("unexpected '", c, "'");
    open_.pop_back();
  }

  void name() {
    size_t n = 1;
    while (letter(peek(n)) || digit(peek(n))) ++n;
    add(Token::name, take(n));
    const size_t before = tokens_.size() - 2;
    if (tokens_.back().word == "raw" && tokens_[before].kind == Token::tag_begin)
      fail("the tag 'raw' is not supported");
  }

  void integer() {
    size_t n = 1;
    const bool after_dot = at_ > 0 && s_[at_ - 1] == '.';  // messages.0.role
    while (digit(peek(n))) ++n;
    const char next = peek(n);
    if (letter(next) || (next == '.' && digit(peek(n + 1)) && !after_dot) || n > 18 ||
        (n > 1 && peek() == '0'))
      fail("the number that begins with ", s_.substr(at_, std::min<size_t>(n, 20)),
           " is not a decimal integer of at most 18 digits");
    add(Token::integer, take(n));
  }

  void string() {
    const char quote = take(1)[0];
    std::string text;
    while (peek() != quote) {
      if (at_ == s_.size()) fail("a string that begins with ", quote, " does not end");
      if (peek() == '\\') escape(text);
      else text += take(1);
    }
    advance(1);
    add(Token::string, std::move(text));
  }

  // As in Python: an unknown escape keeps its backslash.
  void escape(std::string& text) {
    constexpr std::string_view names = "ntrabfv\\'\"", values = "\n\t\r\a\b\f\v\\'\"";
    const char c = peek(1);
    const size_t known = names.find(c);
    if (c == 'x') return code_point(text, 2);
    if (c == 'u') return code_point(text, 4);
    if (digit(c) || c == 'U' || c == 'N' || c < 0 || at_ + 1 >= s_.size())
      fail("the escape '\\", printable({c}), "' in a string is not supported; write \\xHH or \\uHHHH");
    if (known != names.npos) text += values[known];
    else if (c != '\n') (text += '\\') += c;  // a backslash at the end of a line joins it with the next
    advance(2);
  }

  void code_point(std::string& text, size_t digits) {
    const std::string hex = s_.substr(at_ + 2, digits);
    const bool valid = hex.size() == digits && hex.find_first_not_of("0123456789abcdefABCDEF") == hex.npos;
    const unsigned long c = valid ? std::stoul(hex, nullptr, 16) : 0xd800;
    if (0xd800 <= c && c < 0xe000) fail("'\\", peek(1), printable(hex), "' in a string is no character");
    append_utf8(text, static_cast<char32_t>(c));
    advance(2 + digits);
  }

  std::string s_;
  const std::string& where_;
  size_t at_ = 0;
  int line_ = 1;
  bool line_begins_ = true;  // nothing but white space taken by a tag lies between here and a newline
  std::string open_;         // the closing brackets still to come
  std::vector<Token> tokens_;
};

}  // namespace

std::string_view strip(std::string_view text) {
  text.remove_prefix(leading_space(text));
  return rstrip(text);
}

std::vector<Token> tokenize(const std::string& source, const std::string& where) {
  return Lexer(source, where).run();
}

}  // namespace llatte::jinja
