// lm-eval's `wikitext` task: perplexity per word and per byte of the original text, whatever the tokenizer.
// A page of the raw file is turned from WikiText's tokenised form into ordinary text ("detokenised"), scored
// as one stream after the prefix token, and divided by the words and bytes of the ORIGINAL page.
#pragma once
#include <string>
#include <string_view>
#include <vector>
#include "data/tokenizer.h"
#include "eval/perplexity.h"

namespace llatte {

// Pages of a wiki.*.raw file: a heading of the first level begins one; blank pages are dropped.
std::vector<std::string> wikitext_pages(std::string_view raw);
std::string wikitext_detokenize(std::string page);
// Pieces between runs of whitespace; leading and trailing runs each add an empty one.
int64_t wikitext_words(std::string_view page);

// Windows over the stream [prefix] + t[0..n): inputs of `window` tokens at most, every t scored once, the
// last window moved back to end with the stream.
std::vector<EvalWindow> rolling_windows(int64_t n, int64_t window);

struct WikitextPage {
  double loglikelihood = 0;
  int64_t tokens = 0, words = 0, bytes = 0;
};

struct Wikitext {
  double word_perplexity = 0, byte_perplexity = 0, bits_per_byte = 0;
  WikitextPage sum;  // over all pages
  std::vector<WikitextPage> pages;
  double seconds = 0;
};

Wikitext wikitext(Llama& model, const Tokenizer& tokenizer, int32_t prefix_token,
                  const std::vector<std::string>& pages, int64_t window, const ScoreSettings& s = {});

}  // namespace llatte
