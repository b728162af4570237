// UTF-8 and the byte alphabet of byte-level BPE. Invalid bytes become U+FFFD, one for each maximal part that
// could have begun a character (the Unicode standard's practice, chapter 3.9, and that of every decoder the
// results are compared with).
#pragma once
#include <cstdint>
#include <string>
#include <string_view>

namespace llatte {

// The character at the front of `text` (not empty): its length in bytes; 0 if the text ends inside it; -n if
// its first n bytes can belong to no character.
int utf8_length(std::string_view text);
// The code point at the front of valid text.
char32_t utf8_code_point(std::string_view text);
void append_utf8(std::string& out, char32_t code_point);
bool is_utf8(std::string_view text);

// Appends the text of `bytes`. An unfinished character at the end becomes U+FFFD if `last`, else it is left
// for later. Returns the number of bytes used.
size_t append_lossy(std::string& out, std::string_view bytes, bool last);

// GPT-2's alphabet: one printable character for each byte (the space is U+0120), so that a vocabulary of
// byte strings can be written as JSON text.
std::string byte_character(uint8_t byte);
// The bytes that a token's characters stand for; false if one of them is not of the alphabet.
bool alphabet_to_bytes(std::string_view token, std::string& bytes);

}  // namespace llatte
