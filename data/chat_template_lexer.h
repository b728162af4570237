// Jinja2 source -> tokens, with Jinja's rules for white space as chat templates are written for: trim_blocks
// (a tag swallows the newline after it) and lstrip_blocks (and the blanks before it on its line), '-' and '+'
// at either end of a tag, newlines normalised to \n, one newline at the very end dropped, comments gone.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace llatte::jinja {

struct Token {
  enum Kind { text, output_begin, output_end, tag_begin, tag_end, name, string, integer, op, end };
  Kind kind;
  std::string word;  // a string's contents, escapes resolved
  int line;
};

// The last token is `end`. `where` opens the sentence of every Error, the line follows.
std::vector<Token> tokenize(const std::string& source, const std::string& where);

// White space as Python's str.strip() understands it: Unicode's, in UTF-8.
std::string_view strip(std::string_view text);

}  // namespace llatte::jinja
