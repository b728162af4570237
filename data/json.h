// Strict JSON in. nlohmann-json does the parsing; what it would let pass is refused here: the same key twice
// in one object (RFC 8259 leaves the meaning open, and a reader that takes the first and one that takes the
// last disagree about the file) and nesting deeper than any of our formats needs. Invalid UTF-8, lone
// surrogates, control characters and bytes after the value it refuses by itself.
#pragma once
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace llatte {

constexpr int kMaxJsonDepth = 64;

// `where` (a file, or a part of one) opens the sentence of every Error.
nlohmann::json parse_json(std::string_view text, const std::string& where);
nlohmann::json read_json(const std::filesystem::path& file);
// Text out of a broken file, fit for an error message: ASCII, the rest as '?', of bounded length.
std::string printable(std::string text);

}  // namespace llatte
