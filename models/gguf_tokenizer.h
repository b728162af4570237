// The tokenizer in a GGUF file's metadata (tokenizer.ggml.*) <-> the text of a tokenizer.json. Byte-level BPE
// only, as everywhere here. The metadata name the pre-tokenizer by one word; the words we know:
//   smollm     Digits + ByteLevel          llama-bpe  Llama 3's Split, ignore_merges
//   gpt-2      ByteLevel                   qwen2      Qwen 2's Split, after NFC
// The name says nothing of NFC: an imported qwen2 has it, as the published tokenizers do.
#pragma once
#include <string>
#include <utility>
#include <vector>
#include "data/gguf.h"

namespace llatte {

// Empty if the file has no tokenizer; one that is not supported is an Error that names it.
std::string read_gguf_tokenizer(const GgufFile& file);

// model, pre, tokens, token_type and merges, filled up to `vocab_size` tokens. `where` opens the sentence of
// every Error.
std::vector<std::pair<std::string, GgufValue>> gguf_tokenizer(const std::string& tokenizer_json,
                                                              int64_t vocab_size, const std::string& where);

}  // namespace llatte
