// The replacements and their order are lm_eval's, quirks included: results are compared with published ones.
#include "eval/wikitext.h"
#include <chrono>
#include <cmath>
#include "eval/lm_eval.h"

namespace llatte {
namespace {

std::string replace_all(const std::string& s, std::string_view what, std::string_view by) {
  std::string out;
  size_t at = 0;
  for (size_t hit; (hit = s.find(what, at)) != s.npos; at = hit + what.size())
    out.append(s, at, hit - at).append(by);
  return out.append(s, at);
}

// re.sub(r"/' [0-9]/", r"/'[0-9]/", s): the slashes are part of the text and the replacement is literal, an
// oversight in lm_eval that its published numbers contain.
std::string replace_quoted_digit(const std::string& s) {
  std::string out;
  size_t at = 0;
  for (size_t hit = 0; (hit = s.find("/' ", hit)) != s.npos;) {
    const bool matches = hit + 4 < s.size() && s[hit + 3] >= '0' && s[hit + 3] <= '9' && s[hit + 4] == '/';
    if (!matches) {
      ++hit;
      continue;
    }
    out.append(s, at, hit - at).append("/'[0-9]/");
    at = hit += 5;
  }
  return out.append(s, at);
}

// Whitespace after an opener and before the first closer that follows it goes, newlines too.
std::string strip_inside(const std::string& s, char opener, char closer) {
  std::string out;
  for (size_t at = 0;;) {
    const size_t begin = s.find(opener, at), end = begin == s.npos ? s.npos : s.find(closer, begin + 1);
    if (end == s.npos) return out.append(s, at);
    out.append(s, at, begin + 1 - at);
    out.append(strip(std::string_view(s).substr(begin + 1, end - begin - 1))) += closer;
    at = end + 1;
  }
}

bool begins_page(std::string_view line) {
  const std::string joined = replace_all(replace_all(std::string(line), "= = =", "==="), "= =", "==");
  const std::string_view title = strip(joined);
  return title.starts_with("= ") && title.ends_with(" =");
}

// Each page's stream, prefix first.
std::vector<std::vector<int32_t>> streams_of(const std::vector<std::string>& pages,
                                             const Tokenizer& tokenizer, int32_t prefix) {
  std::vector<std::vector<int32_t>> streams;
  for (const std::string& page : pages) {
    streams.push_back({prefix});
    const std::vector<int32_t> ids = tokenizer.encode(wikitext_detokenize(page));
    streams.back().insert(streams.back().end(), ids.begin(), ids.end());
  }
  return streams;
}

void finish(Wikitext& w) {
  for (const WikitextPage& p : w.pages) {
    w.sum.loglikelihood += p.loglikelihood;
    w.sum.tokens += p.tokens, w.sum.words += p.words, w.sum.bytes += p.bytes;
  }
  const double nll = -w.sum.loglikelihood, bytes = static_cast<double>(w.sum.bytes);
  w.word_perplexity = std::exp(nll / static_cast<double>(w.sum.words));
  w.byte_perplexity = std::exp(nll / bytes);
  w.bits_per_byte = nll / (bytes * std::log(2.0));
}

}  // namespace

std::vector<std::string> wikitext_pages(std::string_view raw) {
  std::vector<std::string> pages;
  size_t page = 0;
  const auto close = [&](size_t end) {
    if (const auto text = raw.substr(page, end - page); !strip(text).empty()) pages.emplace_back(text);
    page = end + 1;
  };
  for (size_t line = 0; line <= raw.size();) {
    const size_t end = std::min(raw.find('\n', line), raw.size());
    if (line > 0 && begins_page(raw.substr(line, end - line))) close(line - 1);  // not its last line's end
    line = end + 1;
  }
  close(raw.size());
  return pages;
}

std::string wikitext_detokenize(std::string s) {
  const auto replace = [&s](std::string_view what, std::string_view by) { s = replace_all(s, what, by); };
  replace("s '", "s'");
  s = replace_quoted_digit(s);
  replace(" @-@ ", "-"), replace(" @,@ ", ","), replace(" @.@ ", ".");
  replace(" : ", ": "), replace(" ; ", "; "), replace(" . ", ". ");
  replace(" ! ", "! "), replace(" ? ", "? "), replace(" , ", ", ");
  for (const char* pair : {"()", "[]", "{}", "\"\"", "''"}) s = strip_inside(s, pair[0], pair[1]);
  replace("= = = =", "===="), replace("= = =", "==="), replace("= =", "==");
  replace(" \u00B0 ", "\u00B0");
  replace(" \n", "\n"), replace("\n ", "\n");
  replace(" N ", " 1 ");
  replace(" 's", "'s");
  return s;
}

int64_t wikitext_words(std::string_view page) {
  int64_t words = 1;
  for (size_t i = 0, run_end = page.npos; i < page.size();) {
    const size_t space = leading_space(page.substr(i));
    if (space && i != run_end) ++words;
    i += space ? space : 1;
    if (space) run_end = i;
  }
  return words;
}

std::vector<EvalWindow> rolling_windows(int64_t n, int64_t window) {
  if (n == 0) return {};
  // A window reads `window` tokens and its last target, and is as far from the next as it scores.
  return sliding_windows(n + 1, window + 1, window);
}

Wikitext wikitext(Llama& model, const Tokenizer& tokenizer, int32_t prefix_token,
                  const std::vector<std::string>& pages, int64_t window, const ScoreSettings& s) {
  LLATTE_CHECK(!pages.empty(), "wikitext: the text has no pages; give a wiki.*.raw file");
  LLATTE_CHECK(window >= 1, "wikitext: a window of ", window, " tokens reads nothing; use 1 or more");
  const auto start = std::chrono::steady_clock::now();
  const auto streams = streams_of(pages, tokenizer, prefix_token);
  std::vector<ScoreRequest> requests;
  std::vector<size_t> page_of;
  Wikitext w;
  for (size_t p = 0; p < pages.size(); ++p) {
    const auto n = static_cast<int64_t>(streams[p].size()) - 1;
    w.pages.push_back({0, n, wikitext_words(pages[p]), static_cast<int64_t>(pages[p].size())});
    for (const ScoreRequest& r : requests_of(streams[p], rolling_windows(n, window)))
      requests.push_back(r), page_of.push_back(p);
  }
  const std::vector<double> lls = log_likelihoods(model, requests, s);
  for (size_t i = 0; i < lls.size(); ++i) w.pages[page_of[i]].loglikelihood += lls[i];
  finish(w);
  w.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return w;
}

}  // namespace llatte
