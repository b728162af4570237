// See tokenizer_utf8.h. The ranges of the second byte are table 3-7 of the Unicode standard.
#include "data/tokenizer_utf8.h"
#include <array>
#include <cstring>

namespace llatte {
namespace {

constexpr const char* kReplacement = "\xEF\xBF\xBD";  // U+FFFD

struct Alphabet {
  std::array<char32_t, 256> character;
  std::array<int16_t, 512> byte;  // of a code point below 512, or -1
};

// Bytes that print as themselves keep their code point; the others follow each other from U+0100.
Alphabet make_alphabet() {
  Alphabet a;
  a.byte.fill(-1);
  char32_t next = 256;
  for (int b = 0; b < 256; ++b) {
    const bool prints = (b >= 0x21 && b <= 0x7E) || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;
    a.character[b] = prints ? b : next++;
    a.byte[a.character[b]] = b;
  }
  return a;
}

const Alphabet& alphabet() {
  static const Alphabet a = make_alphabet();
  return a;
}

bool second_byte_fits(uint8_t first, uint8_t second) {
  const uint8_t low = first == 0xE0 ? 0xA0 : first == 0xF0 ? 0x90 : 0x80;
  const uint8_t high = first == 0xED ? 0x9F : first == 0xF4 ? 0x8F : 0xBF;
  return second >= low && second <= high;
}

size_t ascii_prefix(std::string_view text) {
  size_t i = 0;
  for (uint64_t eight; i + 8 <= text.size(); i += 8) {
    std::memcpy(&eight, text.data() + i, 8);
    if (eight & 0x8080808080808080u) break;
  }
  while (i < text.size() && !(text[i] & 0x80)) ++i;
  return i;
}

}  // namespace

int utf8_length(std::string_view text) {
  const uint8_t first = text[0];
  if (first < 0x80) return 1;
  const int length = first >= 0xC2 && first <= 0xDF ? 2 : (first & 0xF0) == 0xE0 ? 3 : 4;
  if (first < 0xC2 || first > 0xF4) return -1;
  for (int k = 1; k < length; ++k) {
    if (size_t(k) >= text.size()) return 0;
    const uint8_t byte = text[k];
    const bool fits = k == 1 ? second_byte_fits(first, byte) : (byte & 0xC0) == 0x80;
    if (!fits) return -k;
  }
  return length;
}

char32_t utf8_code_point(std::string_view text) {
  const auto b = [&](size_t i) -> char32_t { return uint8_t(text[i]); };
  if (b(0) < 0x80) return b(0);
  if (b(0) < 0xE0) return (b(0) & 0x1F) << 6 | (b(1) & 0x3F);
  if (b(0) < 0xF0) return (b(0) & 0x0F) << 12 | (b(1) & 0x3F) << 6 | (b(2) & 0x3F);
  return (b(0) & 0x07) << 18 | (b(1) & 0x3F) << 12 | (b(2) & 0x3F) << 6 | (b(3) & 0x3F);
}

void append_utf8(std::string& out, char32_t c) {
  const auto tail = [&](int shift) { out += char(0x80 | ((c >> shift) & 0x3F)); };
  if (c < 0x80) {
    out += char(c);
  } else if (c < 0x800) {
    out += char(0xC0 | c >> 6), tail(0);
  } else if (c < 0x10000) {
    out += char(0xE0 | c >> 12), tail(6), tail(0);
  } else {
    out += char(0xF0 | c >> 18), tail(12), tail(6), tail(0);
  }
}

bool is_utf8(std::string_view text) {
  for (size_t i = ascii_prefix(text); i < text.size(); i += ascii_prefix(text.substr(i))) {
    const int length = utf8_length(text.substr(i));
    if (length <= 0) return false;
    i += length;
  }
  return true;
}

size_t append_lossy(std::string& out, std::string_view bytes, bool last) {
  size_t i = 0;
  while (i < bytes.size()) {
    const int length = utf8_length(bytes.substr(i));
    if (length == 0 && !last) return i;
    if (length > 0) out.append(bytes, i, length);
    else out += kReplacement;
    i += length > 0 ? length : length < 0 ? -length : bytes.size() - i;
  }
  return i;
}

std::string byte_character(uint8_t byte) {
  std::string s;
  append_utf8(s, alphabet().character[byte]);
  return s;
}

bool alphabet_to_bytes(std::string_view token, std::string& bytes) {
  bytes.clear();
  for (size_t i = 0; i < token.size(); i += utf8_length(token.substr(i))) {
    const char32_t c = utf8_code_point(token.substr(i));
    if (c >= alphabet().byte.size() || alphabet().byte[c] < 0) return false;
    bytes += char(alphabet().byte[c]);
  }
  return true;
}

}  // namespace llatte
