#include "data/token_file.h"
#include <algorithm>
#include <cstring>
#include "data/blend.h"

namespace llatte {
namespace fs = std::filesystem;
namespace {

void check_vocab(int64_t vocab_size, const fs::path& file) {
  LLATTE_CHECK(vocab_size > 0 && vocab_size <= int64_t(1) << 31, file.string(), ": vocab_size ", vocab_size,
               " must be in [1, 2^31]");
}

int64_t width_of(int64_t vocab_size) { return vocab_size <= 65536 ? 2 : 4; }

// The mapping need not be aligned for Word in theory, and memcpy costs nothing.
template <class Word>
uint32_t word(const std::byte* data, int64_t i) {
  Word w;
  std::memcpy(&w, data + i * static_cast<int64_t>(sizeof w), sizeof w);
  return w;
}

template <class Word>
uint32_t copy_words(const std::byte* data, int64_t count, int32_t* out) {  // returns the largest
  uint32_t largest = 0;
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t id = word<Word>(data, i);
    largest = std::max(largest, id);
    out[i] = static_cast<int32_t>(id);
  }
  return largest;
}

}  // namespace

TokenFile TokenFile::open(const fs::path& file, int64_t vocab_size) {
  check_vocab(vocab_size, file);
  const MappedFile map = map_file(file);
  TokenFile t;
  t.width_ = width_of(vocab_size);
  const auto bytes = static_cast<int64_t>(map.bytes.size());
  LLATTE_CHECK(bytes > 0, file.string(), ": the token file is empty");
  LLATTE_CHECK(bytes % t.width_ == 0, file.string(), ": ", bytes, " bytes are no whole number of ", t.width_,
               "-byte tokens (the width for vocab_size ", vocab_size, ")");
  t.path_ = file;
  t.owner_ = map.owner;
  t.data_ = map.bytes.data();
  t.size_ = bytes / t.width_;
  t.vocab_size_ = vocab_size;
  return t;
}

int32_t TokenFile::operator[](int64_t i) const {
  int32_t id = 0;
  copy(i, 1, &id);
  return id;
}

void TokenFile::copy(int64_t begin, int64_t count, int32_t* out) const {
  LLATTE_CHECK(begin >= 0 && count >= 0 && begin <= size_ && count <= size_ - begin, path_.string(),
               ": tokens [", begin, ", ", begin, " + ", count, ") asked for, the file has ", size_);
  const std::byte* from = data_ + begin * width_;
  const uint32_t largest =
      width_ == 2 ? copy_words<uint16_t>(from, count, out) : copy_words<uint32_t>(from, count, out);
  if (largest < vocab_size_ || count == 0) return;
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t id = static_cast<uint32_t>(out[i]);
    LLATTE_CHECK(id < vocab_size_, path_.string(), ": token ", begin + i, " is ", id, ", but vocab_size is ",
                 vocab_size_, "; was it made with another tokenizer?");
  }
}

std::vector<TokenFile> open_token_files(const fs::path& file_or_folder, int64_t vocab_size) {
  std::error_code ignored;
  if (!fs::is_directory(file_or_folder, ignored)) return {TokenFile::open(file_or_folder, vocab_size)};
  std::vector<fs::path> names;
  std::error_code failed;
  for (const auto& entry : fs::directory_iterator(file_or_folder, failed))
    if (entry.path().extension() == ".ds" && !entry.is_directory()) names.push_back(entry.path());
  LLATTE_CHECK(!failed, "cannot read the folder ", file_or_folder.string(), ": ", failed.message());
  LLATTE_CHECK(!names.empty(), file_or_folder.string(), ": the folder holds no .ds file");
  std::sort(names.begin(), names.end());
  std::vector<TokenFile> files;
  for (int64_t i : default_rng_42_permutation(static_cast<int64_t>(names.size())))
    files.push_back(TokenFile::open(names[i], vocab_size));
  return files;
}

TokenFileWriter::TokenFileWriter(const fs::path& file, int64_t vocab_size)
    : path_(file), vocab_size_(vocab_size), out_(file) {
  check_vocab(vocab_size, file);
}

template <class Word>
void TokenFileWriter::append_as(std::span<const int32_t> ids) {
  Word block[4096];
  for (size_t done = 0; done < ids.size();) {
    const size_t n = std::min(std::size(block), ids.size() - done);
    for (size_t i = 0; i < n; ++i) block[i] = static_cast<Word>(ids[done + i]);
    out_.write(block, n * sizeof(Word));
    done += n;
  }
}

void TokenFileWriter::append(std::span<const int32_t> ids) {
  for (size_t i = 0; i < ids.size(); ++i)
    LLATTE_CHECK(ids[i] >= 0 && ids[i] < vocab_size_, "cannot write ", path_.string(), ": token ",
                 size_ + static_cast<int64_t>(i), " is ", ids[i], ", but vocab_size is ", vocab_size_);
  if (width_of(vocab_size_) == 2) append_as<uint16_t>(ids);
  else append_as<uint32_t>(ids);
  size_ += static_cast<int64_t>(ids.size());
}

void write_token_file(const fs::path& file, const std::vector<int32_t>& ids, int64_t vocab_size) {
  TokenFileWriter out(file, vocab_size);
  out.append(ids);
  out.finish();
}

}  // namespace llatte
