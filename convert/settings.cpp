// `key.path=value` words into MlaSettings, and back for the plan's file.
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

Metric metric(const std::string& key, const std::string& text) {
  for (const Metric m : {Metric::plain, Metric::white, Metric::output, Metric::fisher})
    if (text == name(m)) return m;
  LLATTE_FAIL(key, " is '", text, "', expected plain, white, output or fisher");
}

void check_uniform(const std::string& key, const std::string& text) {
  LLATTE_CHECK(text == "uniform", key, " is '", text,
               "': in this layout every layer has the same ranks, so only uniform is possible");
}

using Setter = std::function<void(MlaSettings&, const std::string& key, const std::string& text)>;

template <class Member>
Setter count(Member member) {
  return [member](MlaSettings& s, const std::string& key, const std::string& text) {
    std::invoke(member, s) = integer(key, text);
  };
}
Setter flag(bool MlaSettings::*member) {
  return [member](MlaSettings& s, const std::string& key, const std::string& text) {
    s.*member = yes_or_no(key, text);
  };
}

const std::vector<std::pair<std::string, Setter>>& setters() {
  using S = MlaSettings;
  using Text = const std::string&;
  static const std::vector<std::pair<std::string, Setter>> all{
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
      {"SVD.metric", [](S& s, Text key, Text text) { s.metric = metric(key, text); }},
      {"SVD.allocate", [](S&, Text key, Text text) { check_uniform(key, text); }},
      {"convert.calibration", [](S& s, Text, Text text) { s.calibration = text; }},
      {"convert.refit_o", flag(&S::refit_o)},
      {"convert.gqa2mha", flag(&S::gqa2mha)},
      {"convert.from_scratch", flag(&S::from_scratch)},
      {"convert.balance", [](S& s, Text key, Text text) { s.balance = yes_or_no(key, text); }},
  };
  return all;
}

std::vector<std::string> known_keys() {
  std::vector<std::string> names;
  for (const auto& [key, set] : setters()) names.push_back(key);
  return names;
}

void apply(MlaSettings& s, const std::string& word) {
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
    case Metric::output: return "output";
    case Metric::fisher: return "fisher";
    default: return "plain";
  }
}

MlaSettings parse_mla_settings(const std::vector<std::string>& words) {
  MlaSettings s;
  for (const std::string& word : words) apply(s, word);
  return s;
}

std::vector<std::string> mla_setting_words(const MlaSettings& s) {
  const auto said = [](bool b) { return b ? "true" : "false"; };
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
                                 str("convert.refit_o=", said(s.refit_o)),
                                 str("convert.gqa2mha=", said(s.gqa2mha)),
                                 str("convert.from_scratch=", said(s.from_scratch)),
                                 str("convert.balance=", said(s.balanced()))};
  if (r.qk_tensor_path) words.push_back("RoPE.qk_tensor_path=" + *r.qk_tensor_path);
  if (r.n_gqa_group) words.push_back(str("RoPE.n_gqa_group=", *r.n_gqa_group));
  if (!s.calibration.empty()) words.push_back("convert.calibration=" + s.calibration);
  return words;
}

}  // namespace llatte
