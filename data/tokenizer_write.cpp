#include "data/tokenizer_write.h"

namespace llatte {
namespace {

using nlohmann::ordered_json;

ordered_json byte_level_step(bool add_prefix_space, bool use_regex) {
  return {{"type", "ByteLevel"},
          {"add_prefix_space", add_prefix_space},
          {"trim_offsets", true},
          {"use_regex", use_regex}};
}

}  // namespace

ordered_json digits_alone() { return {{"type", "Digits"}, {"individual_digits", true}}; }

ordered_json byte_level(bool use_regex) { return byte_level_step(false, use_regex); }

ordered_json added_token(size_t id, const std::string& content, bool special) {
  return {{"id", id},        {"content", content},  {"single_word", false}, {"lstrip", false},
          {"rstrip", false}, {"normalized", false}, {"special", special}};
}

std::string write_tokenizer_json(TokenizerParts p) {
  const ordered_json model{{"type", "BPE"},
                           {"dropout", nullptr},
                           {"unk_token", nullptr},
                           {"continuing_subword_prefix", nullptr},
                           {"end_of_word_suffix", nullptr},
                           {"fuse_unk", false},
                           {"byte_fallback", false},
                           {"ignore_merges", p.ignore_merges},
                           {"vocab", std::move(p.vocab)},
                           {"merges", std::move(p.merges)}};
  const ordered_json split{{"type", "Sequence"}, {"pretokenizers", std::move(p.pre_tokenizers)}};
  const ordered_json file{{"version", "1.0"},
                          {"truncation", nullptr},
                          {"padding", nullptr},
                          {"added_tokens", std::move(p.added_tokens)},
                          {"normalizer", std::move(p.normalizer)},
                          {"pre_tokenizer", split},
                          {"post_processor", std::move(p.post_processor)},
                          {"decoder", byte_level_step(true, true)},  // of a decoder the first says nothing
                          {"model", model}};
  return file.dump(2) + "\n";
}

}  // namespace llatte
