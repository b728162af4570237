// Finds added tokens (<|endoftext|> and the like) in text: the leftmost, and of those that begin there the
// longest.
#pragma once
#include <algorithm>
#include <array>
#include <string>
#include <string_view>
#include <vector>

namespace llatte {

class AddedTokenFinder {
 public:
  struct Match {
    size_t at = std::string_view::npos, length = 0;
    int32_t id = -1;
  };

  bool empty() const { return empty_; }

  void add(const std::string& content, int32_t id) {
    auto& same_start = by_first_byte_[uint8_t(content[0])];
    const auto shorter = [&](const Token& t) { return t.content.size() < content.size(); };
    same_start.insert(std::find_if(same_start.begin(), same_start.end(), shorter), {content, id});
    empty_ = false;
  }

  Match find(std::string_view text) const {
    for (size_t i = 0; i < text.size(); ++i)
      for (const Token& t : by_first_byte_[uint8_t(text[i])])
        if (text.substr(i, t.content.size()) == t.content) return {i, t.content.size(), t.id};
    return {};
  }

 private:
  struct Token {
    std::string content;
    int32_t id;
  };
  std::array<std::vector<Token>, 256> by_first_byte_;  // longest first
  bool empty_ = true;
};

}  // namespace llatte
