// See gguf_tokenizer.h. Ids are positions in tokenizer.ggml.tokens; everything else follows from `pre`.
#include "models/gguf_tokenizer.h"
#include <algorithm>
#include "data/json.h"
#include "data/tokenizer_json.h"
#include "data/tokenizer_write.h"

namespace llatte {
namespace {

using nlohmann::ordered_json;

// tokenizer.ggml.token_type
enum TokenType : int64_t { kNormal = 1, kUnknown = 2, kControl = 3, kUserDefined = 4, kUnused = 5 };

struct Pre {
  const char* name;
  Digits digits;
  const std::string& pattern;
  bool ignore_merges, nfc;
};

const std::vector<Pre>& pres() {
  static const std::vector<Pre> all = {
      {"smollm", Digits::single, PreTokenizer::gpt2_pattern, false, false},
      {"gpt-2", Digits::together, PreTokenizer::gpt2_pattern, false, false},
      {"llama-bpe", Digits::together, PreTokenizer::llama3_pattern, true, false},
      {"qwen2", Digits::together, PreTokenizer::qwen2_pattern, false, true}};
  return all;
}

const Pre& pre_named(const std::string& name, const std::string& where) {
  for (const Pre& p : pres())
    if (name == p.name) return p;
  LLATTE_FAIL(where, ": tokenizer.ggml.pre is '", printable(name),
              "', which is not supported; have smollm, gpt-2, llama-bpe, qwen2");
}

// ---- metadata to tokenizer.json --------------------------------------------------------------------------

ordered_json pre_tokenizers(const Pre& p) {
  const bool gpt2 = p.pattern == PreTokenizer::gpt2_pattern;
  ordered_json steps = ordered_json::array();
  if (p.digits == Digits::single) steps.push_back(digits_alone());
  if (!gpt2)
    steps.push_back({{"type", "Split"},
                     {"pattern", {{"Regex", p.pattern}}},
                     {"behavior", "Isolated"},
                     {"invert", false}});
  steps.push_back(byte_level(gpt2));
  return steps;
}

struct Tokens {
  ordered_json vocab = ordered_json::object(), added = ordered_json::array();
};

// Added tokens behind the vocabulary stay out of it; those between its tokens are listed twice, because
// readers of tokenizer.json give an added token its id from the vocabulary. Unused entries fill the embedding
// up and are no tokens.
Tokens read_tokens(const GgufFile& file) {
  const auto& texts = file.texts("tokenizer.ggml.tokens");
  const auto& types = file.integers("tokenizer.ggml.token_type");
  const std::string where = file.path().string();
  LLATTE_CHECK(types.size() == texts.size(), where, ": tokenizer.ggml.token_type has ", types.size(),
               " entries, tokenizer.ggml.tokens ", texts.size());
  const size_t normal_end = types.rend() - std::find(types.rbegin(), types.rend(), kNormal);
  Tokens t;
  auto& vocab = t.vocab.get_ref<ordered_json::object_t&>();  // operator[] would search from the front
  for (size_t id = 0; id < texts.size(); ++id) {
    const int64_t type = types[id];
    LLATTE_CHECK(type >= kNormal && type <= kUnused, where, ": tokenizer.ggml.token_type[", id, "] is ", type,
                 ", which is not supported; have 1 (normal) to 5 (unused)");
    if (type == kUnused) continue;
    if (id < normal_end) vocab.push_back({texts[id], ordered_json(id)});
    if (type != kNormal) t.added.push_back(added_token(id, texts[id], type != kUserDefined));
  }
  return t;
}

// What puts the beginning-of-text token in front, for the programs that ask for it.
ordered_json post_processor(const GgufFile& file) {
  if (!file.flag("tokenizer.ggml.add_bos_token", false) || !file.has("tokenizer.ggml.bos_token_id"))
    return nullptr;
  const auto& texts = file.texts("tokenizer.ggml.tokens");
  const int64_t id = file.integer("tokenizer.ggml.bos_token_id");
  LLATTE_CHECK(id >= 0 && id < static_cast<int64_t>(texts.size()), file.path().string(),
               ": tokenizer.ggml.bos_token_id is ", id, ", the vocabulary has ", texts.size(), " tokens");
  const std::string& bos = texts[static_cast<size_t>(id)];
  const auto special = [&](int type) {
    return ordered_json{{"SpecialToken", {{"id", bos}, {"type_id", type}}}};
  };
  const auto text = [](const char* which, int type) {
    return ordered_json{{"Sequence", {{"id", which}, {"type_id", type}}}};
  };
  ordered_json tokens;
  tokens[bos] = {{"id", bos}, {"ids", ordered_json::array({id})}, {"tokens", ordered_json::array({bos})}};
  return {{"type", "TemplateProcessing"},
          {"single", {special(0), text("A", 0)}},
          {"pair", {special(0), text("A", 0), special(1), text("B", 1)}},
          {"special_tokens", tokens}};
}

// ---- tokenizer.json to metadata --------------------------------------------------------------------------

const Pre& pre_of(const TokenizerSpec& s, const std::string& where) {
  for (const Pre& p : pres())
    if (s.digits == p.digits && s.pattern == p.pattern) {
      LLATTE_CHECK(s.ignore_merges == p.ignore_merges, where, ": ignore_merges is ", s.ignore_merges,
                   ", but GGUF's name for this pre-tokenizer, ", p.name, ", means ", p.ignore_merges);
      return p;
    }
  LLATTE_FAIL(where, ": GGUF has no name for this pre-tokenizer; have smollm, gpt-2, llama-bpe, qwen2");
}

struct TokenList {
  std::vector<std::string> texts;
  std::vector<int64_t> types;

  void set(int64_t id, const std::string& text, TokenType type, const std::string& where) {
    LLATTE_CHECK(id < static_cast<int64_t>(texts.size()), where, ": token '", printable(text), "' has id ",
                 id, ", the model has ", texts.size(), " embeddings");
    texts[static_cast<size_t>(id)] = text;
    types[static_cast<size_t>(id)] = type;
  }
};

TokenList list_tokens(const TokenizerSpec& s, int64_t vocab_size, const std::string& where) {
  TokenList list;
  for (int64_t id = 0; id < vocab_size; ++id) {
    list.texts.push_back("[PAD" + std::to_string(id) + "]");  // what other converters call them
    list.types.push_back(kUnused);
  }
  for (const auto& [text, id] : s.vocab) list.set(id, text, kNormal, where);
  for (const AddedToken& t : s.added) list.set(t.id, t.content, t.special ? kControl : kUserDefined, where);
  return list;
}

}  // namespace

std::string read_gguf_tokenizer(const GgufFile& file) {
  const std::string kind = file.text("tokenizer.ggml.model", "none"), where = file.path().string();
  if (kind == "none" || kind == "no_vocab") return "";
  LLATTE_CHECK(kind == "gpt2", where, ": tokenizer.ggml.model is '", printable(kind),
               "', which is not supported, only gpt2 (byte-level BPE)");
  const Pre& pre = pre_named(file.text("tokenizer.ggml.pre", "default"), where);
  Tokens tokens = read_tokens(file);
  TokenizerParts p;
  p.vocab = std::move(tokens.vocab), p.added_tokens = std::move(tokens.added);
  p.merges = file.texts("tokenizer.ggml.merges"), p.ignore_merges = pre.ignore_merges;
  p.pre_tokenizers = pre_tokenizers(pre), p.post_processor = post_processor(file);
  if (pre.nfc) p.normalizer = {{"type", "NFC"}};
  return write_tokenizer_json(std::move(p));
}

std::vector<std::pair<std::string, GgufValue>> gguf_tokenizer(const std::string& tokenizer_json,
                                                              int64_t vocab_size, const std::string& where) {
  const TokenizerSpec spec = read_tokenizer_spec(tokenizer_json, where);
  TokenList list = list_tokens(spec, vocab_size, where);
  std::vector<std::string> merges;
  for (const auto& [left, right] : spec.merges) merges.push_back(left + " " + right);
  return {{"tokenizer.ggml.model", gguf_text("gpt2")},
          {"tokenizer.ggml.pre", gguf_text(pre_of(spec, where).name)},
          {"tokenizer.ggml.tokens", gguf_texts(std::move(list.texts))},
          {"tokenizer.ggml.token_type", gguf_i32s(std::move(list.types))},
          {"tokenizer.ggml.merges", gguf_texts(std::move(merges))}};
}

}  // namespace llatte
