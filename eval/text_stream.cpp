// A plain search: stop texts are few and short.
#include "eval/text_stream.h"
#include <algorithm>
#include <utility>
#include "data/tokenizer_utf8.h"
#include "tensor/check.h"

namespace llatte {

TextStream::TextStream(const Tokenizer& tokenizer, std::vector<std::string> stops)
    : tokenizer_(tokenizer), stream_(tokenizer_), stops_(std::move(stops)) {
  // Of whole characters, so that holding one back never splits a character of the text.
  for (const std::string& stop : stops_)
    LLATTE_CHECK(!stop.empty() && is_utf8(stop), "generate: a stop text ",
                 stop.empty() ? "is empty" : "is not valid UTF-8");
}

// How much of the end of `held_` could be the beginning of a stop text.
size_t TextStream::undecided() const {
  size_t most = 0;
  for (const std::string& stop : stops_)
    for (size_t n = std::min(stop.size() - 1, held_.size()); n > most; --n)
      if (held_.compare(held_.size() - n, n, stop, 0, n) == 0) most = n;
  return most;
}

std::string TextStream::put(const std::string& piece) {
  if (stopped_) return "";
  held_ += piece;
  size_t first = std::string::npos;
  for (const std::string& stop : stops_) first = std::min(first, held_.find(stop));
  stopped_ = first != std::string::npos;
  const size_t show = stopped_ ? first : held_.size() - undecided();
  std::string shown = held_.substr(0, show);
  held_.erase(0, stopped_ ? held_.size() : show);
  return shown;
}

std::string TextStream::next(int32_t id) {
  if (id >= tokenizer_.vocab_size() || tokenizer_.is_special(id)) return "";
  return put(stream_.next(id));
}

std::string TextStream::finish() {
  std::string rest = put(stream_.finish());
  return rest + std::exchange(held_, "");
}

}  // namespace llatte
