// A tokenizer.json as this program understands it: byte-level BPE, checked in full. What is not here (another
// model type, normalizer, pre-tokenizer, decoder, truncation, ...) was refused by name while reading, so that
// ids never differ silently from those of the library that wrote the file.
#pragma once
#include <string>
#include <utility>
#include <vector>
#include "data/pre_tokenizer.h"

namespace llatte {

struct AddedToken {
  int32_t id;
  std::string content;
  bool special;     // skipped by decode(skip_special)
  bool normalized;  // looked for after normalisation instead of before
};

struct TokenizerSpec {
  std::vector<std::pair<std::string, int32_t>> vocab;  // token as written (byte alphabet) -> id
  std::vector<std::pair<std::string, std::string>> merges;
  std::vector<AddedToken> added;
  bool ignore_merges = false;  // a word that is a token stays one, whatever the merges would make of it
  std::string unk_token;       // for bytes the vocabulary lacks; empty: they are dropped
  bool fuse_unk = false;       // one unknown token for a run of them
  bool nfc = false;
  Digits digits = Digits::together;
  std::string pattern;  // of PreTokenizer; empty: no split
};

// `where` names the file and opens the sentence of every Error.
TokenizerSpec read_tokenizer_spec(const std::string& json, const std::string& where);

}  // namespace llatte
