// GGUF files, read by mapping and written atomically. The format (version 3; 2 is the same): magic, version,
// counts of tensors and of metadata; typed metadata; for each tensor name, dimensions, type and offset; the
// data, every tensor on a multiple of general.alignment. Reading checks every length, count and offset before
// use; what does not fit is an Error naming file and field. Nothing here knows what the tensors are for.
#pragma once
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <variant>
#include <vector>
#include "data/files.h"
#include "data/gguf_quants.h"
#include "tensor/tensor.h"

namespace llatte {

// Types of metadata, numbered as in the files.
enum class GgufKind : uint32_t { u8, i8, u16, i16, u32, i32, f32, boolean, text, array, u64, i64, f64 };

// A value, or all values of an array (whose elements have the type `kind`). Integers that do not fit 63 bits
// are not read.
struct GgufValue {
  GgufKind kind;
  bool is_array;
  std::variant<std::vector<int64_t>, std::vector<double>, std::vector<std::string>> items;
};
GgufValue gguf_u32(int64_t v);
GgufValue gguf_f32(double v);
GgufValue gguf_flag(bool v);
GgufValue gguf_text(std::string v);
GgufValue gguf_texts(std::vector<std::string> v);
GgufValue gguf_i32s(std::vector<int64_t> v);

struct GgufTensor {
  GgufType type;
  Shape shape;                      // rows first, as everywhere here (the file has it the other way round)
  const std::byte* data = nullptr;  // in the mapped file
  size_t bytes = 0;
};

class GgufFile {
 public:
  static GgufFile open(const std::filesystem::path& file);

  const std::filesystem::path& path() const { return path_; }
  const std::map<std::string, GgufTensor>& tensors() const { return tensors_; }
  bool has_tensor(const std::string& name) const { return tensors_.count(name) > 0; }

  // Metadata. Without `otherwise` the key must be there; a value of another type is an Error that names it.
  bool has(const std::string& key) const { return metadata_.count(key) > 0; }
  int64_t integer(const std::string& key) const;
  int64_t integer(const std::string& key, int64_t otherwise) const;
  double number(const std::string& key) const;
  double number(const std::string& key, double otherwise) const;
  bool flag(const std::string& key, bool otherwise) const;
  std::string text(const std::string& key) const;
  std::string text(const std::string& key, const std::string& otherwise) const;
  const std::vector<std::string>& texts(const std::string& key) const;
  const std::vector<int64_t>& integers(const std::string& key) const;

  // A new tensor of float type t. Row r of the result is row `row_of(r)` of the file; null: row r.
  Tensor read(const std::string& name, DType t,
              const std::function<int64_t(int64_t)>& row_of = nullptr) const;

 private:
  const GgufValue& at(const std::string& key) const;
  template <class Item>
  const std::vector<Item>& items(const std::string& key, bool array, const char* wanted) const;

  std::filesystem::path path_;
  std::map<std::string, GgufValue> metadata_;
  std::map<std::string, GgufTensor> tensors_;
  MappedFile mapping_;
};

// Writes version 3, alignment 32, metadata and tensors in the order given. `get` is asked for f32 numbers of
// that shape when the tensor's turn comes: only one need be in memory at a time.
struct GgufSource {
  std::string name;
  GgufType type;
  Shape shape;
  std::function<Tensor()> get;
  std::function<int64_t(int64_t)> row_of;  // as in GgufFile::read; null: row r
};
void write_gguf(const std::filesystem::path& file,
                const std::vector<std::pair<std::string, GgufValue>>& metadata,
                const std::vector<GgufSource>& tensors);

}  // namespace llatte
