// Safetensors files, read by mapping and written atomically. The format: u64 header length, JSON header,
// tensor bytes. Reading checks every length and offset before use (SPEC of the format: sorted, contiguous, no
// holes, no duplicates); what does not fit is an Error naming file, tensor and reason.
#pragma once
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>
#include "data/files.h"
#include "tensor/tensor.h"

namespace llatte {

// An entry as it stands in the file; dtype is the file's word (F32, BF16, F16, I64, U8, ...).
struct SafetensorsEntry {
  std::string dtype;
  Shape shape;
  const std::byte* data = nullptr;  // in the mapped file; may be unaligned
  size_t bytes = 0;
};

class SafetensorsFile {
 public:
  static SafetensorsFile open(const std::filesystem::path& file);
  // A folder's model.safetensors, or all shards of its model.safetensors.index.json, as one.
  // Shards are plain file names beside the index, and each must hold the tensors it is said to; tensors the
  // weight_map does not name are left out. A wrong total_size is one warning line on stderr, no error:
  // it is bookkeeping that published checkpoints often have wrong, and no reader depends on it.
  static SafetensorsFile open_folder(const std::filesystem::path& folder);
  static SafetensorsFile open_index(const std::filesystem::path& index_file);

  const std::filesystem::path& path() const { return path_; }
  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  const std::map<std::string, SafetensorsEntry>& entries() const { return entries_; }
  bool has(const std::string& name) const { return entries_.count(name) > 0; }
  // F32, F16, BF16, F64, I32, U8, I64 (values must fit i32) -> a new tensor of dtype t, safe to write to.
  // Floats are not read as i32. Throws if there is no such tensor.
  Tensor read(const std::string& name, DType t) const;
  // In the file's own type: F16 widens to f32, I64 and U8 to i32.
  Tensor read(const std::string& name) const;

 private:
  std::filesystem::path path_;
  std::map<std::string, std::string> metadata_;
  std::map<std::string, SafetensorsEntry> entries_;
  std::vector<MappedFile> mappings_;
};

// Writes all tensors (any device and strides) under their names: {"format":"pt"} plus `metadata`, header
// padded to 8 bytes, dtype descending (F64, F32, I32, BF16) then name: byte for byte what the safetensors
// library writes. Temp file + fsync + rename.
void write_safetensors(const std::filesystem::path& file,
                       const std::vector<std::pair<std::string, Tensor>>& tensors,
                       const std::map<std::string, std::string>& metadata = {});

// The same with each tensor asked for when its turn comes: only one need be in memory at a time.
struct TensorSource {
  std::string name;
  DType dtype;
  Shape shape;
  std::function<Tensor()> get;  // of that dtype and shape
};
// For types a Tensor cannot have (U8, F16, ...): `data` is little-endian, row-major.
struct RawTensor {
  std::string name, dtype;
  Shape shape;
  std::string data;
};
// `format` is the metadata's entry of that name; null: none, for readers that accept no entry but theirs.
void write_safetensors(const std::filesystem::path& file, const std::vector<TensorSource>& tensors,
                       const std::map<std::string, std::string>& metadata = {}, const char* format = "pt",
                       const std::vector<RawTensor>& raw = {});
void write_safetensors_raw(const std::filesystem::path& file, const std::vector<RawTensor>& tensors,
                           const std::map<std::string, std::string>& metadata = {});

}  // namespace llatte
