// From the words of a config to token files: a .ds file or a folder of them as it is; text is tokenised on
// first use into <run>/cache, under a name made of its contents and the tokenizer's, so that a changed text
// or tokenizer is never mistaken for the old one.
#pragma once
#include <memory>
#include <optional>
#include "data/token_file.h"
#include "data/tokenizer.h"
#include "train/config.h"

namespace llatte {

// A tokenizer.json as text, and the file, folder or model it is from. Both empty: there is none.
struct TokenizerText {
  std::string json, from;
};
// Of a file, or of a folder that holds a tokenizer.json; none if `path` is empty.
TokenizerText read_tokenizer(const std::string& path);

class DataSources {
 public:
  // The tokenizer is made when a text is first met.
  DataSources(std::filesystem::path cache, TokenizerText tokenizer, int64_t vocab_size);
  std::vector<TokenFile> open(const std::string& file_or_folder);
  std::unique_ptr<Loader> loader(const DataStage& stage, int64_t sequence_length);

 private:
  TokenFile tokenised(const std::filesystem::path& text);
  const Tokenizer& tokenizer_for(const std::filesystem::path& text);

  std::filesystem::path cache_;
  TokenizerText text_;
  int64_t vocab_size_;
  std::optional<Tokenizer> tokenizer_;
};

}  // namespace llatte
