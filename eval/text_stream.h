// Generated tokens -> text to show, as it comes: whole UTF-8 characters, no special tokens, up to the first
// stop text. What may still turn out to be the beginning of a stop text is held back until that is decided.
#pragma once
#include <string>
#include <vector>
#include "data/tokenizer.h"

namespace llatte {

class TextStream {
 public:
  // The tokenizer must outlive the stream. A stop text is UTF-8 and not empty.
  TextStream(const Tokenizer& tokenizer, std::vector<std::string> stops);
  // Text that may be shown now. Ids the tokenizer has no text for (a padded vocabulary) show nothing.
  std::string next(int32_t id);
  std::string finish();                      // the rest, when no token follows
  bool stopped() const { return stopped_; }  // a stop text was reached: nothing more will be shown

 private:
  std::string put(const std::string& piece);
  size_t undecided() const;

  const Tokenizer& tokenizer_;
  Tokenizer::Stream stream_;
  std::vector<std::string> stops_;
  std::string held_;
  bool stopped_ = false;
};

}  // namespace llatte
