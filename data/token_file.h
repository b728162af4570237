// Headerless little-endian token files (.ds): u16 if the vocabulary fits 65536, else u32. Sample i of a file
// at sequence length S is tokens [i(S+1), (i+1)(S+1)): S inputs and, one later, S targets.
#pragma once
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>
#include "data/files.h"  // AtomicFile
#include "tensor/tensor.h"

namespace llatte {

class TokenFile {
 public:
  // Refuses an empty file, one that is no whole number of tokens, and (checked on first touch) ids >=
  // vocab_size.
  static TokenFile open(const std::filesystem::path& file, int64_t vocab_size);
  int64_t size() const { return size_; }  // tokens
  int32_t operator[](int64_t i) const;    // checks i and the id
  int64_t samples(int64_t seq) const { return size_ / (seq + 1); }
  void copy(int64_t begin, int64_t count, int32_t* out) const;  // checks ids
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
  std::shared_ptr<const void> owner_;
  const std::byte* data_ = nullptr;
  int64_t size_ = 0, width_ = 2, vocab_size_ = 0;
};

// One file, or all *.ds of a folder in nanotron's order (sorted by name, then numpy's
// default_rng(42).permutation: training data is often written sorted by origin).
std::vector<TokenFile> open_token_files(const std::filesystem::path& file_or_folder, int64_t vocab_size);

// Tokens in, piece by piece; the file has its name only after finish() (fsync + rename).
class TokenFileWriter {
 public:
  TokenFileWriter(const std::filesystem::path& file, int64_t vocab_size);
  void append(std::span<const int32_t> ids);  // refuses ids outside [0, vocab_size)
  int64_t size() const { return size_; }      // tokens so far
  void finish() { out_.commit(); }

 private:
  template <class Word>
  void append_as(std::span<const int32_t> ids);
  std::filesystem::path path_;
  int64_t vocab_size_, size_ = 0;
  AtomicFile out_;
};
void write_token_file(const std::filesystem::path& file, const std::vector<int32_t>& ids, int64_t vocab_size);

struct Batch {
  Tensor tokens, targets;  // i32 [B,S]
};

// Which sample comes n-th is a pure function of (seed, n): any batch of any step can be made without the ones
// before, so resuming needs only the number of samples consumed. Weights blend several sources by nanotron's
// rule (data/blend.h), and the first epoch is nanotron's, sample for sample (seed < 2^32). After that
// nanotron repeats itself; here every epoch is a new shuffle, and a source that an epoch did not exhaust goes
// on where it stopped.
class Loader {
 public:
  struct Source {
    std::vector<TokenFile> files;
    double weight = 0;  // 0 for all: by number of samples
  };
  struct Place {
    int64_t source, sample;
  };
  Loader(std::vector<Source> sources, int64_t seq, uint64_t seed);
  ~Loader();
  int64_t samples_per_epoch() const;
  Place place(int64_t n) const;  // where sample n of the run comes from
  // Samples [first, first + B). An error in the data is thrown by the call that asks for it. One caller. The
  // batch at first + stride (0: first + B) is prepared in the background while this one is used.
  Batch batch(int64_t first, int64_t B, int64_t stride = 0);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace llatte
