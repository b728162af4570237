#include "eval/choices.h"
#include <algorithm>
#include <chrono>
#include "data/files.h"
#include "data/json.h"
#include "eval/lm_eval.h"

namespace llatte {
namespace {

using nlohmann::json;

const json& field(const json& object, const char* key, const std::string& where) {
  LLATTE_CHECK(object.contains(key), where, ": `", key, "` is missing; an item is {context, choices, label}");
  return object[key];
}

std::string text_field(const json& value, const std::string& what) {
  LLATTE_CHECK(value.is_string(), what, " is ", value.type_name(), ", not a string");
  return value.get<std::string>();
}

ChoiceItem item_of(std::string_view line, const std::string& where) {
  const json object = parse_json(line, where);
  LLATTE_CHECK(object.is_object(), where, ": ", object.type_name(),
               ", not an object {context, choices, label}");
  ChoiceItem item{text_field(field(object, "context", where), where + ": `context`"), {}, 0, where};
  const json &choices = field(object, "choices", where), &label = field(object, "label", where);
  LLATTE_CHECK(choices.is_array() && !choices.empty(), where,
               ": `choices` is not a list of at least one text");
  for (const json& choice : choices) item.choices.push_back(text_field(choice, where + ": a choice"));
  const auto n = static_cast<int64_t>(choices.size());
  // A number beyond int64 is stored unsigned and would wrap.
  const bool fits =
      label.is_number_integer() && (!label.is_number_unsigned() || label.get<uint64_t>() < choices.size());
  item.label = fits ? label.get<int64_t>() : -1;
  LLATTE_CHECK(0 <= item.label && item.label < n, where, ": `label` is ", printable(label.dump()),
               ", not the index of one of ", n, " choices, from 0");
  return item;
}

// Code points: what Python's len counts.
double characters(const std::string& utf8) {
  return static_cast<double>(
      std::count_if(utf8.begin(), utf8.end(), [](char c) { return (c & 0xC0) != 0x80; }));
}

bool first_maximum_is(const std::vector<double>& scores, int64_t label) {
  return std::max_element(scores.begin(), scores.end()) - scores.begin() == label;
}

ChoiceScore judge(const ChoiceItem& item, std::vector<double> lls) {
  std::vector<double> per_character;
  for (size_t i = 0; i < lls.size(); ++i) per_character.push_back(lls[i] / characters(item.choices[i]));
  const bool acc = first_maximum_is(lls, item.label), acc_norm = first_maximum_is(per_character, item.label);
  return {std::move(lls), acc, acc_norm};
}

std::vector<ChoiceTokens> encode_all(const Tokenizer& tokenizer, int32_t prefix,
                                     const std::vector<ChoiceItem>& items, int64_t window) {
  std::vector<ChoiceTokens> all;
  for (const ChoiceItem& item : items)
    for (const std::string& choice : item.choices) try {
        all.push_back(encode_choice(tokenizer, prefix, item.context, " " + choice, window));
      } catch (const Error& e) {
        LLATTE_FAIL(item.where, ": ", e.what());
      }
  return all;
}

}  // namespace

std::vector<ChoiceItem> read_choice_items(const std::filesystem::path& file) {
  const std::string text = read_file(file);
  std::vector<ChoiceItem> items;
  size_t number = 1;
  for (size_t at = 0; at < text.size(); ++number) {
    const size_t end = std::min(text.find('\n', at), text.size());
    const auto line = std::string_view(text).substr(at, end - at);
    if (!strip(line).empty()) items.push_back(item_of(line, str(file.string(), ":", number)));
    at = end + 1;
  }
  LLATTE_CHECK(!items.empty(), file.string(), " holds no items; give one {context, choices, label} a line");
  return items;
}

ChoiceTokens encode_choice(const Tokenizer& tokenizer, int32_t prefix_token, const std::string& context,
                           const std::string& continuation, int64_t window) {
  const std::string head(strip_right(context));
  ChoiceTokens c{tokenizer.encode(context + continuation), 0};
  if (head.empty()) {
    // A continuation that begins with the prefix token has its context already.
    if (c.tokens.empty() || c.tokens[0] != prefix_token) c.tokens.insert(c.tokens.begin(), prefix_token);
    c.scored = 1;
  } else {
    c.scored = static_cast<int64_t>(tokenizer.encode(head).size());
  }
  const auto n = static_cast<int64_t>(c.tokens.size());
  LLATTE_CHECK(c.scored < n, "the choice '", printable(continuation), "' adds no token to its context");
  LLATTE_CHECK(n - c.scored <= window, "the choice '", printable(continuation), "' has ", n - c.scored,
               " tokens, more than the window of ", window, "; use a longer one");
  const int64_t cut = std::max<int64_t>(0, n - (window + 1));
  c.tokens.erase(c.tokens.begin(), c.tokens.begin() + cut);
  c.scored -= cut;
  return c;
}

Choices score_choices(Llama& model, const Tokenizer& tokenizer, int32_t prefix_token,
                      const std::vector<ChoiceItem>& items, int64_t window, const ScoreSettings& s) {
  LLATTE_CHECK(!items.empty(), "choices: there are no items to score");
  const auto start = std::chrono::steady_clock::now();
  const std::vector<ChoiceTokens> encoded = encode_all(tokenizer, prefix_token, items, window);
  std::vector<ScoreRequest> requests;
  for (const ChoiceTokens& c : encoded) requests.push_back({c.tokens, c.scored});
  const std::vector<double> lls = log_likelihoods(model, requests, s);
  Choices result;
  auto at = lls.begin();
  for (const ChoiceItem& item : items) {
    const auto end = at + static_cast<std::ptrdiff_t>(item.choices.size());
    result.items.push_back(judge(item, {at, end}));
    result.acc += result.items.back().acc, result.acc_norm += result.items.back().acc_norm;
    at = end;
  }
  result.acc /= static_cast<double>(items.size());
  result.acc_norm /= static_cast<double>(items.size());
  result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return result;
}

}  // namespace llatte
