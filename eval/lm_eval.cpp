#include "eval/lm_eval.h"
#include "data/json.h"
#include "data/tokenizer_utf8.h"

namespace llatte {
namespace {

// str.isspace(), which \s of Python's re agrees with.
bool is_space(char32_t c) {
  return (c >= 0x09 && c <= 0x0D) || (c >= 0x1C && c <= 0x20) || c == 0x85 || c == 0xA0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F ||
         c == 0x3000;
}

// Length of the character at the front, 1 where the bytes are no UTF-8.
size_t character_bytes(std::string_view text) {
  const int n = utf8_length(text);
  return n > 0 ? static_cast<size_t>(n) : 1;
}

// The token that tokenizer_config.json calls `key`: text, or an object with the text as `content`.
std::optional<int32_t> named_token(const nlohmann::json& config, const char* key, const Tokenizer& t,
                                   const std::string& file) {
  if (!config.is_object() || !config.contains(key) || config[key].is_null()) return std::nullopt;
  const nlohmann::json& token = config[key];
  const nlohmann::json& text = token.is_object() && token.contains("content") ? token["content"] : token;
  LLATTE_CHECK(text.is_string(), file, ": `", key,
               "` is neither a token's text nor an object with `content`");
  const auto id = t.id_of(text.get<std::string>());
  LLATTE_CHECK(id, file, ": `", key, "` ", printable(text.get<std::string>()), " is not in the tokenizer");
  return id;
}

}  // namespace

int32_t prefix_token(const Tokenizer& tokenizer, const std::filesystem::path& tokenizer_config,
                     const LlamaConfig& c) {
  if (std::filesystem::exists(tokenizer_config)) {
    const nlohmann::json config = read_json(tokenizer_config);
    for (const char* key : {"bos_token", "eos_token"})
      if (const auto id = named_token(config, key, tokenizer, tokenizer_config.string())) return *id;
  }
  const auto id = c.bos_token_id ? c.bos_token_id : c.eos_token_id;
  LLATTE_CHECK(
      id,
      "neither the tokenizer nor the model's config names a bos or eos token to stand before a text; "
      "add bos_token_id to config.json");
  return static_cast<int32_t>(*id);
}

size_t leading_space(std::string_view text) {
  if (text.empty() || utf8_length(text) <= 0 || !is_space(utf8_code_point(text))) return 0;
  return character_bytes(text);
}

std::string_view strip_right(std::string_view text) {
  size_t end = 0;
  for (size_t i = 0; i < text.size();) {
    const size_t space = leading_space(text.substr(i));
    i += space ? space : character_bytes(text.substr(i));
    if (!space) end = i;
  }
  return text.substr(0, end);
}

std::string_view strip(std::string_view text) {
  while (const size_t n = leading_space(text)) text.remove_prefix(n);
  return strip_right(text);
}

}  // namespace llatte
