#include "train/data_sources.h"
#include <algorithm>
#include "data/files.h"

namespace llatte {
namespace {

namespace fs = std::filesystem;

bool is_text(const fs::path& p) {
  const std::string e = p.extension().string();
  return e == ".txt" || e == ".raw" || e == ".tokens";
}

std::vector<fs::path> files_with(const fs::path& folder, bool (*wanted)(const fs::path&)) {
  std::vector<fs::path> out;
  for (const auto& entry : fs::recursive_directory_iterator(folder))
    if (entry.is_regular_file() && wanted(entry.path())) out.push_back(entry.path());
  std::sort(out.begin(), out.end());  // the order of a folder's entries is nobody's promise
  return out;
}

// FNV-1a over both, 64 bits.
uint64_t hash_of(const std::string& a, const std::string& b) {
  uint64_t h = 0xcbf29ce484222325ull;
  for (const std::string* s : {&a, &b})
    for (const char c : *s) h = (h ^ static_cast<unsigned char>(c)) * 0x100000001b3ull;
  return h;
}

}  // namespace

DataSources::DataSources(fs::path cache, TokenizerText tokenizer, int64_t vocab_size)
    : cache_(std::move(cache)), text_(std::move(tokenizer)), vocab_size_(vocab_size) {}

const Tokenizer& DataSources::tokenizer_for(const fs::path& text) {
  LLATTE_CHECK(!text_.json.empty(), text.string(),
               " is text, but no tokenizer is named; set tokenizer.tokenizer_name_or_path");
  if (!tokenizer_) tokenizer_ = Tokenizer::parse(text_.json, text_.from);
  LLATTE_CHECK(tokenizer_->vocab_size() <= vocab_size_, text_.from, " has ids up to ",
               tokenizer_->vocab_size() - 1, " but the model's vocab_size is ", vocab_size_,
               "; raise model.model_config.vocab_size");
  return *tokenizer_;
}

TokenFile DataSources::tokenised(const fs::path& text) {
  const Tokenizer& t = tokenizer_for(text);
  const std::string contents = read_file(text);
  const fs::path cached = cache_ / str(text.stem().string(), "-", std::hex, hash_of(contents, t.json()), "-",
                                       std::dec, vocab_size_, ".ds");
  if (!fs::exists(cached)) {
    fs::create_directories(cache_);
    write_token_file(cached, t.encode(contents), vocab_size_);
  }
  return TokenFile::open(cached, vocab_size_);
}

std::vector<TokenFile> DataSources::open(const std::string& file_or_folder) {
  const fs::path path = file_or_folder;
  LLATTE_CHECK(fs::exists(path), path.string(),
               ": no such data set; name a .ds file, a text file or a folder of either");
  const auto is_ds = [](const fs::path& p) { return p.extension() == ".ds"; };
  std::vector<fs::path> files{path};
  if (fs::is_directory(path)) {
    files = files_with(path, is_ds);
    if (files.empty()) files = files_with(path, is_text);
    LLATTE_CHECK(!files.empty(), path.string(), " holds no .ds file and no text (.txt, .raw, .tokens)");
  }
  std::vector<TokenFile> out;
  for (const fs::path& f : files) out.push_back(is_ds(f) ? TokenFile::open(f, vocab_size_) : tokenised(f));
  return out;
}

std::unique_ptr<Loader> DataSources::loader(const DataStage& stage, int64_t sequence_length) {
  std::vector<Loader::Source> sources;
  for (size_t i = 0; i < stage.folders.size(); ++i) {
    Loader::Source s{open(stage.folders[i]), stage.weights.empty() ? 0 : stage.weights[i]};
    int64_t samples = 0;
    for (const TokenFile& f : s.files) samples += f.samples(sequence_length);
    LLATTE_CHECK(samples > 0, stage.folders[i], " has no whole sample of ", sequence_length,
                 " + 1 tokens; shorten tokens.sequence_length or name more data");
    sources.push_back(std::move(s));
  }
  return std::make_unique<Loader>(std::move(sources), sequence_length, stage.seed);
}

TokenizerText read_tokenizer(const std::string& path) {
  if (path.empty()) return {};
  return {read_file(fs::is_directory(path) ? fs::path(path) / "tokenizer.json" : fs::path(path)), path};
}

}  // namespace llatte
