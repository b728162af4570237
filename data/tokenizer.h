// Byte-level BPE from a Hugging Face tokenizer.json: Digits + ByteLevel (SmolLM, cosmo2) and Split-regex +
// ByteLevel (Llama-3, Qwen). Added tokens first (leftmost, longest), pre-tokenise, byte alphabet, merges by
// rank. Anything else in the file is refused by name. Thread-safe after construction.
#pragma once
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace llatte {

class Tokenizer {
 public:
  // A tokenizer.json, or a folder that holds one.
  static Tokenizer load(const std::filesystem::path& file_or_folder);
  static Tokenizer parse(const std::string& json, const std::string& where);

  std::vector<int32_t> encode(std::string_view utf8) const;
  std::string decode(std::span<const int32_t> ids,
                     bool skip_special = false) const;         // invalid UTF-8 -> U+FFFD
  int64_t vocab_size() const;                                  // highest id + 1
  std::optional<int32_t> id_of(std::string_view token) const;  // by its text in the file
  bool is_special(int32_t id) const;
  const std::string& json() const;  // the file as read, for copying beside checkpoints

  // Decodes a stream id by id; gives out text only at UTF-8 character borders.
  class Stream {
   public:
    explicit Stream(const Tokenizer& t) : tokenizer_(&t) {}
    std::string next(int32_t id);
    std::string finish();  // whatever is left, invalid bytes as U+FFFD

   private:
    const Tokenizer* tokenizer_;
    std::string pending_;
  };

 private:
  struct Impl;
  std::shared_ptr<const Impl> impl_;
};

// Learns `vocab_size` tokens from text (GPT-2 style word split as in SmolLM: digits alone, ByteLevel) and
// returns the tokenizer.json. Deterministic: ties by the pair that is smaller in token ids.
std::string train_bpe(std::string_view text, int64_t vocab_size);

}  // namespace llatte
