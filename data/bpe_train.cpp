// Learns a byte-level BPE vocabulary (Sennrich et al., 2016): while there is room, the most frequent adjacent
// pair of tokens becomes a token. Words are counted once, and after a merge only the words that hold the pair
// are touched. The heap of pairs is lazy: an entry whose count is out of date is pushed again when it
// surfaces.
#include <algorithm>
#include <map>
#include <queue>
#include <unordered_map>
#include <unordered_set>
#include "data/pre_tokenizer.h"
#include "data/tokenizer.h"
#include "data/tokenizer_utf8.h"
#include "data/tokenizer_write.h"
#include "tensor/check.h"

namespace llatte {
namespace {

const char* const kEndOfText = "<|endoftext|>";  // id 0, cut out of the text before learning

using Pair = std::pair<int32_t, int32_t>;
struct PairHash {
  size_t operator()(const Pair& p) const {
    return (uint64_t(uint32_t(p.first)) << 32 | uint32_t(p.second)) * 0x9E3779B97F4A7C15u >> 16;
  }
};

struct Word {
  std::vector<int32_t> ids;
  int64_t count;
};

struct PairInfo {
  int64_t count = 0;
  std::vector<uint32_t> words;  // that hold it or did; may repeat
};

struct Candidate {
  int64_t count;
  Pair pair;
  // Highest count first; ties by the pair that is smaller in token ids.
  bool operator<(const Candidate& o) const { return count != o.count ? count < o.count : pair > o.pair; }
};

class Trainer {
 public:
  Trainer(std::string_view text, int64_t vocab_size) : vocab_size_(vocab_size) {
    tokens_.push_back(kEndOfText);
    for (int b = 0; b < 256; ++b) tokens_.push_back(byte_character(b));
    count_words(text);
    for (uint32_t w = 0; w < words_.size(); ++w) add_pairs(w, +1);
    for (const auto& [pair, info] : pairs_) queue_.push({info.count, pair});
    changed_.clear();
  }

  void learn() {
    while (int64_t(tokens_.size()) < vocab_size_) {
      const Pair best = next_pair();
      const int32_t merged = tokens_.size();
      tokens_.push_back(tokens_[best.first] + tokens_[best.second]);
      merges_.push_back(best);
      replace_everywhere(best, merged);
    }
  }

  std::string json() const;

 private:
  // Sorted (std::map), so that word numbers, and with them everything else, do not depend on hashing.
  void count_words(std::string_view text) {
    std::map<std::string_view, int64_t> counts;
    const PreTokenizer rules(Digits::single, PreTokenizer::gpt2_pattern, "train_bpe");
    const std::string_view end = kEndOfText;
    while (!text.empty()) {
      const size_t at = std::min(text.find(end), text.size());
      PreTokenizer::Words cursor(rules, text.substr(0, at));
      for (std::string_view word; cursor.next(word);) ++counts[word];
      text.remove_prefix(std::min(at + end.size(), text.size()));
    }
    for (const auto& [word, count] : counts) {
      words_.push_back({{}, count});
      for (const char c : word) words_.back().ids.push_back(1 + uint8_t(c));
    }
  }

  // Adds or takes back the pairs of one word, and remembers which pairs changed.
  void add_pairs(uint32_t w, int sign) {
    const Word& word = words_[w];
    for (size_t i = 0; i + 1 < word.ids.size(); ++i) {
      const Pair pair{word.ids[i], word.ids[i + 1]};
      PairInfo& info = pairs_[pair];
      info.count += sign * word.count;
      if (sign > 0 && (info.words.empty() || info.words.back() != w)) info.words.push_back(w);
      changed_.push_back(pair);
    }
  }

  Pair next_pair() {
    while (!queue_.empty()) {
      const Candidate c = queue_.top();
      queue_.pop();
      if (c.count == pairs_.at(c.pair).count && makes_new_token(c.pair)) return c.pair;
    }
    LLATTE_FAIL("train_bpe: the text has pairs for ", tokens_.size(), " tokens only, not ", vocab_size_,
                "; give more text or a smaller vocabulary");
  }

  // Two pairs can spell one string (ab+c, a+bc): the second would give it a second id.
  bool makes_new_token(const Pair& p) { return spelled_.insert(tokens_[p.first] + tokens_[p.second]).second; }

  void replace_everywhere(const Pair& pair, int32_t merged) {
    std::vector<uint32_t> holders = std::move(pairs_[pair].words);
    pairs_[pair].words.clear();
    std::sort(holders.begin(), holders.end());
    holders.erase(std::unique(holders.begin(), holders.end()), holders.end());
    for (const uint32_t w : holders) {
      add_pairs(w, -1);
      replace(words_[w].ids, pair, merged);
      add_pairs(w, +1);
    }
    std::sort(changed_.begin(), changed_.end());
    changed_.erase(std::unique(changed_.begin(), changed_.end()), changed_.end());
    for (const Pair& p : changed_)
      if (const int64_t count = pairs_[p].count; count > 0) queue_.push({count, p});
    changed_.clear();
  }

  static void replace(std::vector<int32_t>& ids, const Pair& pair, int32_t merged) {
    size_t n = 0;
    for (size_t i = 0; i < ids.size(); ++i) {
      const bool here = ids[i] == pair.first && i + 1 < ids.size() && ids[i + 1] == pair.second;
      ids[n++] = here ? merged : ids[i];
      i += here;
    }
    ids.resize(n);
  }

  int64_t vocab_size_;
  std::vector<std::string> tokens_;  // in the byte alphabet
  std::vector<Pair> merges_;
  std::vector<Word> words_;
  std::unordered_map<Pair, PairInfo, PairHash> pairs_;
  std::unordered_set<std::string> spelled_;
  std::priority_queue<Candidate> queue_;
  std::vector<Pair> changed_;
};

using nlohmann::ordered_json;

std::string Trainer::json() const {
  TokenizerParts p;
  p.vocab = ordered_json::object(), p.merges = ordered_json::array();
  auto& entries =
      p.vocab.get_ref<ordered_json::object_t&>();  // operator[] would search from the front each time
  for (size_t id = 0; id < tokens_.size(); ++id) entries.push_back({tokens_[id], ordered_json(id)});
  for (const auto& [left, right] : merges_) p.merges.push_back(tokens_[left] + " " + tokens_[right]);
  p.added_tokens = ordered_json::array({added_token(0, kEndOfText, true)});
  p.pre_tokenizers = ordered_json::array({digits_alone(), byte_level(true)});
  return write_tokenizer_json(std::move(p));
}

}  // namespace

std::string train_bpe(std::string_view text, int64_t vocab_size) {
  LLATTE_CHECK(vocab_size >= 257 && vocab_size < (int64_t(1) << 24), "train_bpe: a vocabulary of ",
               vocab_size, " tokens is not between 257 (256 bytes and <|endoftext|>) and 2^24");
  std::string valid;
  if (!is_utf8(text)) {
    append_lossy(valid, text, true);
    text = valid;
  }
  Trainer trainer(text, vocab_size);
  trainer.learn();
  return trainer.json();
}

}  // namespace llatte
