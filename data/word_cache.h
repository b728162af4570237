// The ids of words seen before. Text repeats its words (Zipf), so most of the work of BPE is a look-up. One
// direct-mapped table per thread, for all tokenizers: bounded, never locked, nothing allocated per word. A
// slot is one cache line; longer words are merged anew each time.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string_view>
#include <vector>

namespace llatte {

class WordCache {
 public:
  static constexpr size_t kMaxBytes = 24, kMaxIds = 8, kSlots = 1 << 14;

  struct alignas(64) Slot {
    uint32_t owner = 0;  // the tokenizer's serial number, from 1
    uint8_t bytes = 0, count = 0;
    char word[kMaxBytes] = {};
    int32_t ids[kMaxIds] = {};

    bool holds(uint32_t tokenizer, std::string_view w) const {
      return owner == tokenizer && bytes == w.size() && std::memcmp(word, w.data(), w.size()) == 0;
    }
  };
  static_assert(sizeof(Slot) == 64);

  static WordCache& of_this_thread() {
    static thread_local WordCache cache;
    return cache;
  }

  // Where the word is or would be; w.size() <= kMaxBytes.
  Slot& slot(uint32_t tokenizer, std::string_view w) {
    // FNV-like, eight bytes at a time.
    uint64_t h = w.size() * 0x9E3779B97F4A7C15u + tokenizer;
    for (size_t i = 0; i < w.size(); i += 8) {
      uint64_t eight = 0;
      std::memcpy(&eight, w.data() + i, w.size() - i < 8 ? w.size() - i : 8);
      h = (h ^ eight) * 0xFF51AFD7ED558CCDu;
      h ^= h >> 32;
    }
    return slots_[h & (kSlots - 1)];
  }

  static void fill(Slot& s, uint32_t tokenizer, std::string_view w, const std::vector<int32_t>& ids) {
    if (ids.size() > kMaxIds) return;
    s.owner = tokenizer;
    s.bytes = uint8_t(w.size());
    s.count = uint8_t(ids.size());
    std::memcpy(s.word, w.data(), w.size());
    std::copy(ids.begin(), ids.end(), s.ids);  // may be none: bytes that the vocabulary lacks
  }

 private:
  std::vector<Slot> slots_ = std::vector<Slot>(kSlots);
};

}  // namespace llatte
