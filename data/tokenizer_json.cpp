// See tokenizer_json.h. One small reader per part of the file; each either fills its part of the spec or says
// which field has which value it should not have.
#include "data/tokenizer_json.h"
#include <initializer_list>
#include "data/json.h"
#include "tensor/check.h"

namespace llatte {
namespace {

using nlohmann::json;

constexpr int64_t kMaxId = INT32_MAX;

// A value and the words for it: "assets/tokenizer.json: model.vocab".
struct Field {
  const json& value;
  std::string name;

  Field at(const char* key) const {
    LLATTE_CHECK(value.contains(key), name, " has no '", key, "'");
    return {value[key], name + sub(key)};
  }
  Field at(size_t i) const { return {value[i], name + "[" + std::to_string(i) + "]"}; }
  // A missing key and null say the same.
  bool has(const char* key) const { return value.contains(key) && !value[key].is_null(); }
  std::string sub(const char* key) const {
    return std::string(1, name.back() == ':' ? ' ' : '.').append(key);
  }

  const Field& want(bool ok, const char* type) const {
    LLATTE_CHECK(ok, name, " is ", shown(), ", not ", type);
    return *this;
  }
  const Field& object() const { return want(value.is_object(), "an object"); }
  const Field& array() const { return want(value.is_array(), "an array"); }
  std::string text() const { return want(value.is_string(), "a string").value.get<std::string>(); }
  bool flag() const { return want(value.is_boolean(), "true or false").value.get<bool>(); }
  bool flag(const char* key, bool otherwise) const {
    return value.contains(key) ? at(key).flag() : otherwise;
  }
  int32_t id() const {
    want(value.is_number_unsigned() && value.get<uint64_t>() <= uint64_t(kMaxId), "an id (0 to 2^31 - 1)");
    return value.get<int32_t>();
  }

  // Only the head of large values: an error is a sentence, not the file.
  std::string shown() const {
    if (value.is_structured()) return value.is_array() ? "an array" : "an object";
    const std::string s = value.dump(-1, ' ', true);
    return s.size() > 60 ? s.substr(0, 60) + "..." : s;
  }
  std::string type() const { return object().at("type").text(); }
};

void refuse_unless_off(const Field& owner, std::initializer_list<const char*> keys) {
  for (const char* key : keys) {
    if (!owner.has(key)) continue;
    const Field f = owner.at(key);
    const bool off = f.value == false || f.value == "" || (f.value.is_number() && f.value == 0);
    LLATTE_CHECK(off, f.name, " is ", f.shown(), ", which is not supported (only null)");
  }
}

AddedToken read_added(const Field& f) {
  f.object();
  refuse_unless_off(f, {"single_word", "lstrip", "rstrip"});
  const AddedToken t{f.at("id").id(), f.at("content").text(), f.flag("special", false),
                     f.flag("normalized", false)};
  LLATTE_CHECK(!t.content.empty(), f.name, ".content is empty: it would match everywhere");
  return t;
}

void read_split(const Field& f, TokenizerSpec& spec) {
  LLATTE_CHECK(spec.pattern.empty(), f.name, " is a second split, which is not supported");
  const Field pattern = f.at("pattern").object();
  LLATTE_CHECK(pattern.has("Regex"), pattern.name, " is no Regex, which is the only kind supported");
  const std::string behavior = f.at("behavior").text();
  LLATTE_CHECK(behavior == "Isolated", f.name, ".behavior is '", behavior, "'; supported is 'Isolated'");
  refuse_unless_off(f, {"invert"});
  spec.pattern = pattern.at("Regex").text();
}

void read_byte_level(const Field& f, TokenizerSpec& spec) {
  refuse_unless_off(f, {"add_prefix_space"});
  if (!f.flag("use_regex", true)) return;
  LLATTE_CHECK(spec.pattern.empty(), f.name, ".use_regex is true after a Split; supported is one of the two");
  spec.pattern = PreTokenizer::gpt2_pattern;
}

void read_digits(const Field& f, TokenizerSpec& spec) {
  LLATTE_CHECK(spec.pattern.empty(), f.name, " is Digits after a Split; supported is Digits first");
  spec.digits = f.flag("individual_digits", false) ? Digits::single : Digits::runs;
}

// The steps in order: [Digits] [Split] ByteLevel, the last of which is a must.
void read_pre_tokenizer(const Field& f, TokenizerSpec& spec) {
  const bool sequence = f.type() == "Sequence";
  const Field steps = sequence ? f.at("pretokenizers").array() : f;
  const size_t n = sequence ? steps.value.size() : 1;
  for (size_t i = 0; i < n; ++i) {
    const Field step = sequence ? steps.at(i) : f;
    const std::string type = step.type();
    const bool last = i + 1 == n;
    if (type == "ByteLevel" && last) read_byte_level(step, spec);
    else if (type == "Digits" && !last) read_digits(step, spec);
    else if (type == "Split" && !last) read_split(step, spec);
    else
      LLATTE_FAIL(step.name, ".type is '", type, "', step ", i + 1, " of ", n,
                  "; supported are Digits and Split, then ByteLevel at the end");
  }
  LLATTE_CHECK(n > 0, f.name, " is an empty Sequence; a byte-level tokenizer needs ByteLevel");
}

void read_normalizer(const Field& f, TokenizerSpec& spec) {
  const bool sequence = f.type() == "Sequence";
  const Field steps = sequence ? f.at("normalizers").array() : f;
  for (size_t i = 0; i < (sequence ? steps.value.size() : 1); ++i) {
    const Field step = sequence ? steps.at(i) : f;
    LLATTE_CHECK(step.type() == "NFC", step.name, ".type is '", step.type(), "'; supported is NFC");
    spec.nfc = true;
  }
}

void read_vocab(const Field& f, TokenizerSpec& spec) {
  f.object();
  spec.vocab.reserve(f.value.size());
  for (const auto& [token, id] : f.value.items())
    spec.vocab.emplace_back(token, Field{id, f.name + "['" + token + "']"}.id());
}

// "left right" or ["left", "right"].
std::pair<std::string, std::string> read_merge(const Field& f) {
  if (f.value.is_array()) {
    LLATTE_CHECK(f.value.size() == 2, f.name, " has ", f.value.size(), " parts, not 2");
    return {f.at(size_t(0)).text(), f.at(1).text()};
  }
  const std::string s = f.want(f.value.is_string(), "a string or a pair of strings").text();
  const size_t space = s.find(' ');
  const bool two = space != s.npos && s.find(' ', space + 1) == s.npos && space > 0 && space + 1 < s.size();
  LLATTE_CHECK(two, f.name, " is '", s, "', not two tokens with a space between");
  return {s.substr(0, space), s.substr(space + 1)};
}

void read_model(const Field& f, TokenizerSpec& spec) {
  // Old files have no type; vocab and merges then say what it is.
  const std::string type = f.object().has("type") ? f.at("type").text() : "BPE";
  LLATTE_CHECK(type == "BPE", f.name, ".type is '", type, "'; supported is BPE (byte-level)");
  refuse_unless_off(f, {"dropout", "byte_fallback", "continuing_subword_prefix", "end_of_word_suffix"});
  spec.ignore_merges = f.flag("ignore_merges", false);
  if (f.has("unk_token")) spec.unk_token = f.at("unk_token").text();
  spec.fuse_unk = f.flag("fuse_unk", false);
  read_vocab(f.at("vocab"), spec);
  const Field merges = f.at("merges").array();
  spec.merges.reserve(merges.value.size());
  for (size_t i = 0; i < merges.value.size(); ++i) spec.merges.push_back(read_merge(merges.at(i)));
}

// They add tokens around a text or move offsets, neither of which encode() does; an unknown one is refused.
void check_post_processor(const Field& f) {
  const std::string type = f.type();
  if (type == "Sequence") {
    const Field steps = f.at("processors").array();
    for (size_t i = 0; i < steps.value.size(); ++i) check_post_processor(steps.at(i));
    return;
  }
  LLATTE_CHECK(type == "ByteLevel" || type == "TemplateProcessing", f.name, ".type is '", type,
               "'; supported are ByteLevel and TemplateProcessing");
}

}  // namespace

TokenizerSpec read_tokenizer_spec(const std::string& text, const std::string& where) {
  const json parsed = parse_json(text, where);
  const Field top{parsed, where + ":"};
  LLATTE_CHECK(parsed.is_object(), where, ": the top level is not an object");
  TokenizerSpec spec;
  refuse_unless_off(top, {"truncation", "padding"});
  if (top.has("normalizer")) read_normalizer(top.at("normalizer"), spec);
  read_pre_tokenizer(top.at("pre_tokenizer"), spec);
  if (top.has("post_processor")) check_post_processor(top.at("post_processor"));
  const Field decoder = top.at("decoder");
  LLATTE_CHECK(decoder.type() == "ByteLevel", decoder.name, ".type is '", decoder.type(),
               "'; supported is ByteLevel");
  if (top.has("added_tokens")) {
    const Field added = top.at("added_tokens").array();
    for (size_t i = 0; i < added.value.size(); ++i) spec.added.push_back(read_added(added.at(i)));
  }
  read_model(top.at("model"), spec);
  return spec;
}

}  // namespace llatte
