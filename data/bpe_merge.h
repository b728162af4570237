// Byte-pair merging of one word: again and again the adjacent pair of lowest rank is replaced by its merged
// token, the leftmost such pair first, until no adjacent pair is a merge (Sennrich et al., 2016).
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

namespace llatte {

class BpeMerges {
 public:
  explicit BpeMerges(size_t count);
  // A later rank for the same pair replaces the earlier one, as in the reference implementation.
  void add(int32_t left, int32_t right, uint32_t rank, int32_t merged);
  // Merges `ids` in place: O(n^2) with a tiny constant for words, O(n log n) for long ones.
  void apply(std::vector<int32_t>& ids) const;

 private:
  // rank << 32 | merged id: the smallest value is the lowest rank.
  static constexpr uint64_t kNone = ~uint64_t(0);
  struct Entry {
    uint64_t pair = kNone, value = kNone;
  };
  size_t slot(uint64_t pair) const;
  uint64_t find(int32_t left, int32_t right) const;
  void apply_short(std::vector<int32_t>& ids) const;
  void apply_long(std::vector<int32_t>& ids) const;

  std::vector<Entry> entries_;  // open addressing, a power of two, at most half full
};

}  // namespace llatte
