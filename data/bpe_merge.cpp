// See bpe_merge.h. Short words are searched for their best pair again after each merge, which is faster than
// any heap while everything fits a few cache lines; long ones keep all pairs in a heap over a linked list.
#include "data/bpe_merge.h"
#include <bit>
#include <queue>
#include "tensor/check.h"

namespace llatte {
namespace {

constexpr size_t kShort = 32;

uint64_t pair_key(int32_t left, int32_t right) { return uint64_t(uint32_t(left)) << 32 | uint32_t(right); }

// A word as a doubly linked list of symbols. value[i] belongs to the pair that starts at i.
struct SymbolList {
  static constexpr uint32_t kEnd = ~uint32_t(0);
  std::vector<uint32_t> prev, next;
  std::vector<uint64_t> value;

  explicit SymbolList(size_t n) : prev(n), next(n), value(n) {
    for (size_t i = 0; i < n; ++i) prev[i] = i ? i - 1 : kEnd, next[i] = i + 1 < n ? i + 1 : kEnd;
  }
  void remove(uint32_t i) {
    if (next[i] != kEnd) prev[next[i]] = prev[i];
    next[prev[i]] = next[i];  // the first symbol is never removed: merging keeps the left one
  }
};

struct Candidate {
  uint64_t value;
  uint32_t at;
  bool operator>(const Candidate& o) const { return value != o.value ? value > o.value : at > o.at; }
};

}  // namespace

BpeMerges::BpeMerges(size_t count) : entries_(std::bit_ceil(2 * count + 2)) {}

// The slot that holds the pair, or the empty one where it would go.
size_t BpeMerges::slot(uint64_t pair) const {
  uint64_t h = pair * 0x9E3779B97F4A7C15u;  // Fibonacci hashing; the high bits are the well mixed ones
  size_t i = (h ^ h >> 32) & (entries_.size() - 1);
  while (entries_[i].pair != pair && entries_[i].pair != kNone) i = (i + 1) & (entries_.size() - 1);
  return i;
}

void BpeMerges::add(int32_t left, int32_t right, uint32_t rank, int32_t merged) {
  const uint64_t pair = pair_key(left, right);
  entries_[slot(pair)] = {pair, uint64_t(rank) << 32 | uint32_t(merged)};
}

uint64_t BpeMerges::find(int32_t left, int32_t right) const {
  return entries_[slot(pair_key(left, right))].value;
}

void BpeMerges::apply(std::vector<int32_t>& ids) const {
  if (ids.size() < 2) return;
  if (ids.size() <= kShort) apply_short(ids);
  else apply_long(ids);
}

void BpeMerges::apply_short(std::vector<int32_t>& ids) const {
  uint64_t value[kShort];
  size_t n = ids.size();
  for (size_t i = 0; i + 1 < n; ++i) value[i] = find(ids[i], ids[i + 1]);
  while (n > 1) {
    size_t best = 0;
    for (size_t i = 1; i + 1 < n; ++i)
      if (value[i] < value[best]) best = i;
    if (value[best] == kNone) break;
    ids[best] = int32_t(uint32_t(value[best]));
    --n;
    for (size_t i = best + 1; i < n; ++i) ids[i] = ids[i + 1];
    for (size_t i = best + 1; i + 1 < n; ++i) value[i] = value[i + 1];
    if (best + 1 < n) value[best] = find(ids[best], ids[best + 1]);
    if (best > 0) value[best - 1] = find(ids[best - 1], ids[best]);
  }
  ids.resize(n);
}

void BpeMerges::apply_long(std::vector<int32_t>& ids) const {
  LLATTE_CHECK(ids.size() < SymbolList::kEnd, "tokenizer: a word of ", ids.size(), " bytes is over 4 GiB");
  SymbolList list(ids.size());
  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> queue;
  const auto offer = [&](uint32_t i) {
    list.value[i] = list.next[i] == SymbolList::kEnd ? kNone : find(ids[i], ids[list.next[i]]);
    if (list.value[i] != kNone) queue.push({list.value[i], i});
  };
  for (size_t i = 0; i < ids.size(); ++i) offer(i);
  while (!queue.empty()) {
    const Candidate c = queue.top();
    queue.pop();
    if (list.value[c.at] != c.value) continue;  // one of its two symbols has been merged since
    const uint32_t gone = list.next[c.at];
    ids[c.at] = int32_t(uint32_t(c.value));
    list.value[gone] = kNone;
    list.remove(gone);
    offer(c.at);
    if (list.prev[c.at] != SymbolList::kEnd) offer(list.prev[c.at]);
  }
  size_t n = 0;
  for (uint32_t i = 0; i != SymbolList::kEnd; i = list.next[i]) ids[n++] = ids[i];
  ids.resize(n);
}

}  // namespace llatte
