// `key.path=value` words into ConversionSettings, and back for the plan's file.
#include "convert/settings.h"
#include <charconv>
#include <functional>
#include "data/nearest_key.h"

namespace llatte {
namespace {

int64_t integer(const std::string& key, const std::string& text) {
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  LLATTE_CHECK(error == std::errc() && end == text.data() + text.size(), key, " is '", text,
               "', expected a whole number");
  return value;
}

bool yes_or_no(const std::string& key, const std::string& text) {
  LLATTE_CHECK(text == "true" || text == "false", key, " is '", text, "', expected true or false");
  return text == "true";
}

SvdMethod svd_method(const std::string& key, const std::string& text) {
  static const std::vector<std::string> words{"none",     "average",    "split", "sqrt_split", "sqrt_average",
                                              "key_down", "value_down", "joint", "only_key",   "only_value"};
  for (size_t i = 0; i < words.size(); ++i)
    if (text == words[i]) return static_cast<SvdMethod>(i);
  int64_t number = -1;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  const bool whole = error == std::errc() && end == text.data() + text.size();
  LLATTE_CHECK(whole && 0 <= number && number <= 7, key, " is '", text,
               "', expected 0 to 7, none, split, joint, only_key or only_value");
  return static_cast<SvdMethod>(number);
}

Metric hla_metric(const std::string& key, const std::string& text) {
  for (const Metric m : {Metric::plain, Metric::white, Metric::omega, Metric::output, Metric::fisher})
    if (text == name(m)) return m;
  LLATTE_FAIL(key, " is '", text, "', expected plain, white, omega, output or fisher");
}

Metric svd_metric(const std::string& key, const std::string& text) {
  for (const Metric m : {Metric::plain, Metric::white, Metric::output, Metric::fisher})
    if (text == name(m)) return m;
  LLATTE_FAIL(key, " is '", text, "', expected plain, white, output or fisher");
}

HlaRope hla_rope(const std::string& key, const std::string& text) {
  for (size_t i = 0; i < std::size(kHlaRopes); ++i)
    if (text == kHlaRopes[i]) return static_cast<HlaRope>(i);
  LLATTE_FAIL(key, " is '", text, "', expected original, latent, aligned, hybrid, unified or latent_literal");
}

Allocation allocation(const std::string& key, const std::string& text) {
  for (const Allocation a : {Allocation::layer, Allocation::global, Allocation::joint})
    if (text == name(a)) return a;
  LLATTE_FAIL(key, " is '", text, "', expected layer, global or joint");
}

double share(const std::string& key, const std::string& text) {
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  LLATTE_CHECK(error == std::errc() && end == text.data() + text.size() && 0 < value && value <= 1, key,
               " is '", text, "', expected a share of the cache above 0, up to 1");
  return value;
}

void check_uniform(const std::string& key, const std::string& text) {
  LLATTE_CHECK(text == "uniform", key, " is '", text,
               "': in this layout every layer has the same ranks, so only uniform is possible");
}

using Setter = std::function<void(ConversionSettings&, const std::string& key, const std::string& text)>;

template <class Member>
Setter count(Member member) {
  return [member](ConversionSettings& s, const std::string& key, const std::string& text) {
    std::invoke(member, s) = integer(key, text);
  };
}
Setter flag(bool ConversionSettings::*member) {
  return [member](ConversionSettings& s, const std::string& key, const std::string& text) {
    s.*member = yes_or_no(key, text);
  };
}

HlaSettings& hla_of(ConversionSettings& s) {
  if (!s.hla) s.hla.emplace();
  return *s.hla;
}

// A width or a number of pairs, 1 or more (`least` 0: or none).
template <class T>
Setter hla_count(T HlaSettings::*member, int64_t least = 1) {
  return [member, least](ConversionSettings& s, const std::string& key, const std::string& text) {
    const int64_t value = integer(key, text);
    LLATTE_CHECK(value >= least, key, " is ", value, ", expected ", least, " or more");
    hla_of(s).*member = value;
  };
}

const std::vector<std::pair<std::string, Setter>>& hla_setters() {
  using S = ConversionSettings;
  using Text = const std::string&;
  using H = HlaSettings;
  static const std::vector<std::pair<std::string, Setter>> all{
      {"HLA.rope", [](S& s, Text key, Text text) { hla_of(s).rope = hla_rope(key, text); }},
      {"HLA.cache", [](S& s, Text key, Text text) { hla_of(s).cache = share(key, text); }},
      {"HLA.cache_values", hla_count(&H::cache_values)},
      {"HLA.factor_q", [](S& s, Text key, Text text) { hla_of(s).factor_q = yes_or_no(key, text); }},
      {"HLA.rank_q", hla_count(&H::rank_q)},
      {"HLA.rank_k", hla_count(&H::rank_k)},
      {"HLA.rank_v", hla_count(&H::rank_v)},
      {"HLA.metric", [](S& s, Text key, Text text) { hla_of(s), s.metric = hla_metric(key, text); }},
      {"HLA.allocate", [](S& s, Text key, Text text) { hla_of(s).allocate = allocation(key, text); }},
      {"HLA.frequencies",
       [](S& s, Text key, Text text) {
         LLATTE_CHECK(text == "even" || text == "first", key, " is '", text, "', expected even or first");
         hla_of(s).even = text == "even";
       }},
      {"HLA.rope_pairs", hla_count(&H::rope_pairs, 0)},
      {"HLA.head_block", hla_count(&H::head_block, 0)},
      {"HLA.calibration", [](S& s, Text, Text text) { hla_of(s), s.calibration = text; }},
  };
  return all;
}

std::vector<std::pair<std::string, Setter>> all_setters() {
  using S = ConversionSettings;
  using Text = const std::string&;
  std::vector<std::pair<std::string, Setter>> all{
      {"RoPE.partial_rope_version", count([](S& s) -> int64_t& { return s.rope.partial_rope_version; })},
      {"RoPE.top_k_rope_dim", count([](S& s) -> int64_t& { return s.rope.top_k_rope_dim; })},
      {"RoPE.last_k_rope_dim", count([](S& s) -> int64_t& { return s.rope.last_k_rope_dim; })},
      {"RoPE.uniform_start_point", count([](S& s) -> int64_t& { return s.rope.uniform_start_point; })},
      {"RoPE.uniform_step", count([](S& s) -> int64_t& { return s.rope.uniform_step; })},
      {"RoPE.qk_tensor_path", [](S& s, Text, Text text) { s.rope.qk_tensor_path = text; }},
      {"RoPE.n_gqa_group", [](S& s, Text key, Text text) { s.rope.n_gqa_group = integer(key, text); }},
      {"SVD.method", [](S& s, Text key, Text text) { s.svd.method = svd_method(key, text); }},
      {"SVD.version", [](S& s, Text key, Text text) { s.svd.method = svd_method(key, text); }},
      {"SVD.low_rank", count([](S& s) -> int64_t& { return s.svd.low_rank; })},
      {"SVD.metric", [](S& s, Text key, Text text) { s.metric = svd_metric(key, text); }},
      {"SVD.allocate", [](S&, Text key, Text text) { check_uniform(key, text); }},
      {"convert.calibration", [](S& s, Text, Text text) { s.calibration = text; }},
      {"convert.refit_o", flag(&S::refit_o)},
      {"convert.gqa2mha", flag(&S::gqa2mha)},
      {"convert.from_scratch", flag(&S::from_scratch)},
      {"convert.balance", [](S& s, Text key, Text text) { s.balance = yes_or_no(key, text); }},
  };
  all.insert(all.end(), hla_setters().begin(), hla_setters().end());
  return all;
}

const std::vector<std::pair<std::string, Setter>>& setters() {
  static const auto all = all_setters();
  return all;
}

std::vector<std::string> known_keys() {
  std::vector<std::string> names;
  for (const auto& [key, set] : setters()) names.push_back(key);
  return names;
}

void apply(ConversionSettings& s, const std::string& word) {
  const size_t equals = word.find('=');
  LLATTE_CHECK(equals != std::string::npos && equals > 0, "'", word,
               "' is no setting; write key.path=value, for example SVD.method=joint");
  const std::string key = word.substr(0, equals), text = word.substr(equals + 1);
  for (const auto& [known, set] : setters())
    if (key == known) {
      if (text == "null") return;  // as if left out
      return set(s, key, text);
    }
  LLATTE_FAIL("unknown setting ", key, "; did you mean ", nearest_key(key, known_keys()), "?");
}

}  // namespace

const char* name(Metric m) {
  switch (m) {
    case Metric::white: return "white";
    case Metric::omega: return "omega";
    case Metric::output: return "output";
    case Metric::fisher: return "fisher";
    default: return "plain";
  }
}

const char* name(Allocation a) {
  return a == Allocation::layer ? "layer" : a == Allocation::global ? "global" : "joint";
}

ConversionSettings parse_settings(const std::vector<std::string>& words) {
  ConversionSettings s;
  for (const std::string& word : words) apply(s, word);
  if (!s.hla) return s;
  for (const std::string& word : words)
    for (const char* other : {"RoPE.", "SVD.", "convert.gqa2mha", "convert.from_scratch"})
      LLATTE_CHECK(!word.starts_with(other) || word.ends_with("=null"), word,
                   " is for a conversion to MLA, and HLA.* asks for one to HLA; keep one of the two");
  return s;
}

namespace {

// With as many digits as it takes to read the same number again.
std::string digits(double x) {
  char text[32];
  return {text, std::to_chars(text, text + sizeof text, x).ptr};
}

const char* said(bool b) { return b ? "true" : "false"; }

std::vector<std::string> mla_words(const ConversionSettings& s) {
  const PartialRope& r = s.rope;
  const std::string method = s.svd.method == SvdMethod::only_key     ? "only_key"
                             : s.svd.method == SvdMethod::only_value ? "only_value"
                                                                     : str(static_cast<int>(s.svd.method));
  std::vector<std::string> words{str("RoPE.partial_rope_version=", r.partial_rope_version),
                                 str("RoPE.top_k_rope_dim=", r.top_k_rope_dim),
                                 str("RoPE.last_k_rope_dim=", r.last_k_rope_dim),
                                 str("RoPE.uniform_start_point=", r.uniform_start_point),
                                 str("RoPE.uniform_step=", r.uniform_step),
                                 "SVD.method=" + method,
                                 str("SVD.low_rank=", s.svd.low_rank),
                                 str("SVD.metric=", name(s.metric)),
                                 str("convert.gqa2mha=", said(s.gqa2mha)),
                                 str("convert.from_scratch=", said(s.from_scratch))};
  if (r.qk_tensor_path) words.push_back("RoPE.qk_tensor_path=" + *r.qk_tensor_path);
  if (r.n_gqa_group) words.push_back(str("RoPE.n_gqa_group=", *r.n_gqa_group));
  return words;
}

std::vector<std::string> hla_words(const HlaSettings& h, Metric metric) {
  std::vector<std::string> words{
      str("HLA.rope=", name(h.rope)),         "HLA.cache=" + digits(h.cache),
      str("HLA.factor_q=", said(h.factor_q)), str("HLA.metric=", name(metric)),
      str("HLA.allocate=", name(h.allocate)), str("HLA.frequencies=", h.even ? "even" : "first"),
      str("HLA.rope_pairs=", h.rope_pairs),   str("HLA.head_block=", h.head_block)};
  const auto add = [&](const char* key, const std::optional<int64_t>& value) {
    if (value) words.push_back(str("HLA.", key, '=', *value));
  };
  add("cache_values", h.cache_values);
  add("rank_q", h.rank_q), add("rank_k", h.rank_k), add("rank_v", h.rank_v);
  return words;
}

}  // namespace

std::vector<std::string> setting_words(const ConversionSettings& s) {
  std::vector<std::string> words = s.hla ? hla_words(*s.hla, s.metric) : mla_words(s);
  words.push_back(str("convert.refit_o=", said(s.refit_o)));
  words.push_back(str("convert.balance=", said(s.balanced())));
  if (!s.calibration.empty()) words.push_back("convert.calibration=" + s.calibration);
  return words;
}

}  // namespace llatte
