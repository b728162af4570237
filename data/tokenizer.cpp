// See tokenizer.h. Text -> [added tokens out] -> [NFC] -> words -> cache or merges -> ids.
#include "data/tokenizer.h"
#include <utf8proc.h>
#include <atomic>
#include <unordered_map>
#include "data/added_tokens.h"
#include "data/bpe_merge.h"
#include "data/files.h"
#include "data/tokenizer_json.h"
#include "data/tokenizer_utf8.h"
#include "data/word_cache.h"
#include "tensor/check.h"

namespace llatte {
namespace {

constexpr int32_t kDropped = -1;

uint32_t next_serial() {
  static std::atomic<uint32_t> last{0};
  return ++last;
}

bool is_ascii(std::string_view text) {
  return std::none_of(text.begin(), text.end(), [](char c) { return c & 0x80; });
}

std::string to_nfc(std::string_view text) {
  utf8proc_uint8_t* out = nullptr;
  const auto n = utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(text.data()), text.size(), &out,
                              utf8proc_option_t(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
  LLATTE_CHECK(n >= 0, "tokenizer: NFC of ", text.size(), " bytes: ", utf8proc_errmsg(n));
  std::string s(reinterpret_cast<const char*>(out), n);
  std::free(out);
  return s;
}

}  // namespace

struct Tokenizer::Impl {
  std::string json, where;
  uint32_t serial = next_serial();
  TokenizerSpec spec;
  PreTokenizer words;
  BpeMerges merges;
  std::unordered_map<std::string, int32_t> ids;  // by text in the file, added tokens included
  std::vector<std::string> bytes;                // by id: what it decodes to; empty where no token has the id
  std::vector<bool> special;
  std::array<int32_t, 256> byte_ids;
  std::unordered_map<std::string, int32_t> whole_words;  // bytes -> id, only with ignore_merges
  AddedTokenFinder added, added_normalized;

  Impl(const std::string& text, const std::string& file)
      : json(text),
        where(file),
        spec(read_tokenizer_spec(text, file)),
        words(spec.digits, spec.pattern, file),
        merges(spec.merges.size()) {
    check_ids();
    for (const auto& [token, id] : spec.vocab) add_vocab(token, id);
    for (const AddedToken& t : spec.added) add_added(t);
    for (int b = 0; b < 256; ++b) byte_ids[b] = byte_id(b);
    for (size_t i = 0; i < spec.merges.size(); ++i) add_merge(i);
    spec.vocab = {}, spec.merges = {};  // the tables above hold all that is needed
  }

  // Tables are indexed by id, so a hole of billions must not be believed. Small holes exist in the wild.
  void check_ids() {
    const int64_t tokens = spec.vocab.size() + spec.added.size();
    int64_t highest = -1;
    const auto check = [&](const std::string& token, int32_t id) {
      LLATTE_CHECK(id < 2 * tokens + 1024, where, ": token '", token, "' has id ", id,
                   ", far outside a vocabulary of ", tokens, " tokens");
      highest = std::max<int64_t>(highest, id);
    };
    for (const auto& [token, id] : spec.vocab) check(token, id);
    for (const AddedToken& t : spec.added) check(t.content, t.id);
    bytes.resize(highest + 1);
    special.resize(highest + 1);
  }

  void take_id(const std::string& token, int32_t id) {
    LLATTE_CHECK(!token.empty(), where, ": the token with id ", id, " is empty");
    LLATTE_CHECK(bytes[id].empty(), where, ": token '", token, "' has id ", id, ", which '", bytes[id],
                 "' has too");
    LLATTE_CHECK(ids.emplace(token, id).second, where, ": token '", token, "' has two ids, ", ids.at(token),
                 " and ", id);
    if (!alphabet_to_bytes(token, bytes[id])) bytes[id] = token;
  }

  void add_vocab(const std::string& token, int32_t id) {
    take_id(token, id);
    std::string word;
    if (spec.ignore_merges && alphabet_to_bytes(token, word)) whole_words.emplace(word, id);
  }

  void add_added(const AddedToken& t) {
    const auto known = ids.find(t.content);
    if (known == ids.end() || known->second != t.id) take_id(t.content, t.id);
    special[t.id] = t.special;
    if (t.normalized && spec.nfc) added_normalized.add(to_nfc(t.content), t.id);
    else if (t.normalized) added_normalized.add(t.content, t.id);
    else added.add(t.content, t.id);
  }

  int32_t vocab_id(const std::string& token, const std::string& of) const {
    const auto it = ids.find(token);
    LLATTE_CHECK(it != ids.end(), where, ": '", token, "' (", of, ") is not in the vocabulary");
    return it->second;
  }

  // Trained vocabularies lack the bytes their text never had (SmolLM2: 21 of them, such as 0x04). As in the
  // reference, these give the unknown token, or nothing (-1) if there is none. Without the bytes of plain
  // English text the file is not believed.
  int32_t byte_id(int b) const {
    const std::string token = byte_character(b);
    const bool plain = (b >= 0x20 && b <= 0x7E) || b == '\n';
    if (plain || ids.count(token)) return vocab_id(token, str("byte ", b));
    if (spec.unk_token.empty()) return kDropped;
    LLATTE_CHECK(!spec.fuse_unk, where, ": model.fuse_unk is true and '", token, "' (byte ", b,
                 ") is not in the vocabulary; supported is false");
    return vocab_id(spec.unk_token, "model.unk_token");
  }

  void add_merge(size_t rank) {
    const auto& [left, right] = spec.merges[rank];
    const std::string of = "model.merges[" + std::to_string(rank) + "]";
    merges.add(vocab_id(left, of), vocab_id(right, of), rank, vocab_id(left + right, of));
  }

  // Encoding. `Out` carries what would otherwise be allocated per word.
  struct Out {
    std::vector<int32_t>& ids;
    WordCache& cache;
    std::vector<int32_t> word;
  };

  void encode_word(std::string_view word, Out& out) const {
    const bool cached = word.size() <= WordCache::kMaxBytes;
    WordCache::Slot* slot = cached ? &out.cache.slot(serial, word) : nullptr;
    if (cached && slot->holds(serial, word)) {
      out.ids.insert(out.ids.end(), slot->ids, slot->ids + slot->count);
      return;
    }
    merge_word(word, out.word);
    if (cached) WordCache::fill(*slot, serial, word, out.word);
    out.ids.insert(out.ids.end(), out.word.begin(), out.word.end());
  }

  void merge_word(std::string_view word, std::vector<int32_t>& ids_out) const {
    ids_out.clear();
    if (spec.ignore_merges) {
      const auto whole = whole_words.find(std::string(word));
      if (whole != whole_words.end()) return ids_out.push_back(whole->second);
    }
    for (const char c : word)
      if (const int32_t id = byte_ids[uint8_t(c)]; id != kDropped) ids_out.push_back(id);
    merges.apply(ids_out);
  }

  void encode_words(std::string_view text, Out& out) const {
    PreTokenizer::Words cursor(words, text);
    for (std::string_view word; cursor.next(word);) encode_word(word, out);
  }

  // Cuts the text at the finder's tokens and gives the pieces between them to `rest`.
  template <class Rest>
  void around_added(const AddedTokenFinder& finder, std::string_view text, Out& out, Rest rest) const {
    while (!text.empty()) {
      const auto m = finder.empty() ? AddedTokenFinder::Match{} : finder.find(text);
      if (m.at != 0) rest(text.substr(0, m.at));
      if (m.id < 0) return;
      out.ids.push_back(m.id);
      text.remove_prefix(m.at + m.length);
    }
  }

  void encode_normalized(std::string_view text, Out& out) const {
    around_added(added_normalized, text, out, [&](std::string_view piece) { encode_words(piece, out); });
  }

  void encode(std::string_view text, Out& out) const {
    around_added(added, text, out, [&](std::string_view piece) {
      if (spec.nfc && !is_ascii(piece)) encode_normalized(to_nfc(piece), out);
      else encode_normalized(piece, out);
    });
  }

  const std::string& bytes_of(int32_t id) const {
    const bool known = id >= 0 && size_t(id) < bytes.size() && !bytes[id].empty();
    LLATTE_CHECK(known, "decode: id ", id, " is not in the vocabulary of ", where, " (highest id ",
                 bytes.size() - 1, ")");
    return bytes[id];
  }
};

Tokenizer Tokenizer::load(const std::filesystem::path& path) {
  const auto file = std::filesystem::is_directory(path) ? path / "tokenizer.json" : path;
  return parse(read_file(file), file.string());
}

Tokenizer Tokenizer::parse(const std::string& json, const std::string& where) {
  Tokenizer t;
  t.impl_ = std::make_shared<const Impl>(json, where);
  return t;
}

std::vector<int32_t> Tokenizer::encode(std::string_view text) const {
  std::string valid;
  if (!is_utf8(text)) {
    append_lossy(valid, text, true);
    text = valid;
  }
  std::vector<int32_t> ids;
  ids.reserve(text.size() / 3 + 8);
  Impl::Out out{ids, WordCache::of_this_thread(), {}};
  impl_->encode(text, out);
  return ids;
}

std::string Tokenizer::decode(std::span<const int32_t> ids, bool skip_special) const {
  std::string bytes, text;
  for (const int32_t id : ids)
    if (const std::string& b = impl_->bytes_of(id); !skip_special || !impl_->special[id]) bytes += b;
  append_lossy(text, bytes, true);
  return text;
}

int64_t Tokenizer::vocab_size() const { return impl_->bytes.size(); }

std::optional<int32_t> Tokenizer::id_of(std::string_view token) const {
  const auto it = impl_->ids.find(std::string(token));
  return it == impl_->ids.end() ? std::nullopt : std::optional(it->second);
}

bool Tokenizer::is_special(int32_t id) const {
  return id >= 0 && size_t(id) < impl_->special.size() && impl_->special[id];
}

const std::string& Tokenizer::json() const { return impl_->json; }

std::string Tokenizer::Stream::next(int32_t id) {
  pending_ += tokenizer_->impl_->bytes_of(id);
  std::string text;
  pending_.erase(0, append_lossy(text, pending_, false));
  return text;
}

std::string Tokenizer::Stream::finish() {
  std::string text;
  append_lossy(text, pending_, true);
  pending_.clear();
  return text;
}

}  // namespace llatte
