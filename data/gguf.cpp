// See gguf.h. The header is read value by value through a cursor that never passes the end; tensors are
// placed only after that. Law: no number out of a file is added, multiplied or reserved by before it was
// compared.
#include "data/gguf.h"
#include <algorithm>
#include <charconv>
#include <cstring>
#include <set>
#include <span>
#include "data/files.h"
#include "data/json.h"
#include "data/tokenizer_utf8.h"

namespace llatte {
namespace fs = std::filesystem;
namespace {

constexpr std::string_view kMagic = "GGUF";
constexpr uint64_t kAlignment = 32, kMaxDimensions = 4;

const char* kind_name(GgufKind k) {
  constexpr const char* names[] = {"u8",   "i8",   "u16",   "i16", "u32", "i32", "f32",
                                   "bool", "text", "array", "u64", "i64", "f64"};
  return names[static_cast<uint32_t>(k)];
}

bool is_integer(GgufKind k) { return k < GgufKind::f32 || k == GgufKind::u64 || k == GgufKind::i64; }

size_t size_of(GgufKind k) {  // the least that a value of this type takes in the file
  switch (k) {
    case GgufKind::u8:
    case GgufKind::i8:
    case GgufKind::boolean: return 1;
    case GgufKind::u16:
    case GgufKind::i16: return 2;
    case GgufKind::u32:
    case GgufKind::i32:
    case GgufKind::f32: return 4;
    default: return 8;
  }
}

uint64_t round_up(uint64_t n, uint64_t alignment) { return (n + alignment - 1) / alignment * alignment; }

// ---- reading the header ----------------------------------------------------------------------------------

// The bytes of the header one after the other. `what` says what is being read when they end too early.
class Cursor {
 public:
  Cursor(std::span<const std::byte> bytes, std::string where) : bytes_(bytes), where_(std::move(where)) {}

  const std::byte* take(uint64_t n, std::string_view what) {
    LLATTE_CHECK(n <= left(), where_, ": ", printable(std::string(what)), " needs ", n, " bytes at byte ",
                 at_, ", but the file ends at byte ", bytes_.size());
    at_ += n;
    return bytes_.data() + (at_ - n);
  }
  template <class T>
  T number(std::string_view what) {
    T v;
    std::memcpy(&v, take(sizeof v, what), sizeof v);
    return v;
  }
  std::string text(std::string_view what) {
    const auto n = number<uint64_t>(what);
    const auto* p = reinterpret_cast<const char*>(take(n, what));
    return {p, static_cast<size_t>(n)};
  }
  std::string key(std::string_view what) {
    std::string s = text(what);
    LLATTE_CHECK(is_utf8(s), where_, ": ", what, " '", printable(s), "' is not valid UTF-8");
    return s;
  }
  // A count of things that take at least `least` bytes each.
  uint64_t count(size_t least, const std::string& what) {
    const auto n = number<uint64_t>(what);
    LLATTE_CHECK(n <= left() / least, where_, ": ", printable(what), " is ", n, ", more than the ", left(),
                 " bytes that follow can hold");
    return n;
  }
  uint64_t at() const { return at_; }
  uint64_t left() const { return bytes_.size() - at_; }
  const std::string& where() const { return where_; }

 private:
  std::span<const std::byte> bytes_;
  std::string where_;
  uint64_t at_ = 0;
};

template <class T>
int64_t integer_from(Cursor& c, const std::string& key) {
  const T v = c.number<T>(key);
  LLATTE_CHECK(static_cast<int64_t>(v) >= 0 || std::is_signed_v<T>, c.where(), ": ", printable(key), " is ",
               v, ", beyond 2^63 - 1");
  return static_cast<int64_t>(v);
}

int64_t bool_from(Cursor& c, const std::string& key) {
  const int v = c.number<uint8_t>(key);
  LLATTE_CHECK(v <= 1, c.where(), ": ", printable(key), " is a bool of value ", v, ", expected 0 or 1");
  return v;
}

int64_t integer_of(Cursor& c, GgufKind k, const std::string& key) {
  switch (k) {
    case GgufKind::u8: return integer_from<uint8_t>(c, key);
    case GgufKind::i8: return integer_from<int8_t>(c, key);
    case GgufKind::u16: return integer_from<uint16_t>(c, key);
    case GgufKind::i16: return integer_from<int16_t>(c, key);
    case GgufKind::u32: return integer_from<uint32_t>(c, key);
    case GgufKind::i32: return integer_from<int32_t>(c, key);
    case GgufKind::u64: return integer_from<uint64_t>(c, key);
    case GgufKind::i64: return integer_from<int64_t>(c, key);
    default: return bool_from(c, key);
  }
}

// The double whose shortest decimal is the float's: 1e-05 and not 9.9999997e-06, which nobody wrote.
double as_written(float f) {
  char text[64];
  const auto end = std::to_chars(text, text + sizeof text, f).ptr;
  double d = static_cast<double>(f);
  std::from_chars(text, end, d);
  return d;
}

template <class Item, class Read>
std::vector<Item> read_items(uint64_t n, Read&& read) {
  std::vector<Item> v;
  v.reserve(std::min<uint64_t>(n, 1 << 16));  // n may be a lie that the file ends soon after
  while (v.size() < n) v.push_back(read());
  return v;
}

GgufKind read_kind(Cursor& c, const std::string& key) {
  const auto k = c.number<uint32_t>(key);
  LLATTE_CHECK(k <= static_cast<uint32_t>(GgufKind::f64), c.where(), ": ", printable(key),
               " has the unknown metadata type ", k);
  return static_cast<GgufKind>(k);
}

GgufValue read_value(Cursor& c, const std::string& key) {
  GgufValue v{read_kind(c, key), false, {}};
  uint64_t n = 1;
  if (v.kind == GgufKind::array) {
    v.is_array = true;
    v.kind = read_kind(c, key);
    LLATTE_CHECK(v.kind != GgufKind::array, c.where(), ": ", printable(key),
                 " is an array of arrays, which is not supported");
    n = c.count(size_of(v.kind), "the length of " + key);
  }
  if (v.kind == GgufKind::text) v.items = read_items<std::string>(n, [&] { return c.text(key); });
  else if (v.kind == GgufKind::f64) v.items = read_items<double>(n, [&] { return c.number<double>(key); });
  else if (v.kind == GgufKind::f32)
    v.items = read_items<double>(n, [&] { return as_written(c.number<float>(key)); });
  else v.items = read_items<int64_t>(n, [&] { return integer_of(c, v.kind, key); });
  return v;
}

void check_version(Cursor& c) {
  const auto* magic = reinterpret_cast<const char*>(c.take(kMagic.size(), "the magic 'GGUF'"));
  LLATTE_CHECK(std::string_view(magic, kMagic.size()) == kMagic, c.where(),
               ": does not begin with 'GGUF'; not a GGUF file?");
  const auto version = c.number<uint32_t>("the version");
  LLATTE_CHECK((version & 0xffff) != 0 || version == 0, c.where(), ": version ", version,
               " looks like a big-endian file; supported are little-endian files");
  LLATTE_CHECK(version == 2 || version == 3, c.where(), ": version ", version,
               " is not supported, only 2 and 3; convert the model again with a present-day program");
}

struct TensorInfo {
  std::string name;
  GgufTensor tensor;
  uint64_t offset;
};

Shape read_shape(Cursor& c, const std::string& what) {
  const auto n = c.number<uint32_t>(what);
  LLATTE_CHECK(n >= 1 && n <= kMaxDimensions, c.where(), ": ", what, " has ", n,
               " dimensions, expected 1 to ", kMaxDimensions);
  Shape shape;
  for (uint32_t i = 0; i < n; ++i) {
    const auto d = c.number<uint64_t>(what);
    LLATTE_CHECK(d >= 1 && d <= uint64_t(INT64_MAX), c.where(), ": ", what, " has a dimension of ", d);
    shape.insert(shape.begin(), static_cast<int64_t>(d));
  }
  return shape;
}

// Bytes of a tensor: whole blocks in every row, overflow-checked.
uint64_t bytes_of(const Shape& shape, const GgufTypeInfo& type, const std::string& what) {
  LLATTE_CHECK(shape.back() % type.block == 0, what, " has rows of ", shape.back(),
               " values, no whole number of ", type.name, " blocks of ", type.block);
  int64_t bytes = shape.back() / type.block;
  bool fits = !__builtin_mul_overflow(bytes, type.bytes, &bytes);
  for (size_t i = 0; i + 1 < shape.size(); ++i)
    fits = fits && !__builtin_mul_overflow(bytes, shape[i], &bytes);
  int64_t values = 1;
  for (const int64_t d : shape) fits = fits && !__builtin_mul_overflow(values, d, &values);
  LLATTE_CHECK(fits, what, " has a shape ", shape, " whose size overflows 63 bits");
  return static_cast<uint64_t>(bytes);
}

TensorInfo read_info(Cursor& c) {
  TensorInfo t;
  t.name = c.key("a tensor's name");
  const std::string what = "tensor '" + printable(t.name) + "'";
  t.tensor.shape = read_shape(c, what);
  const auto id = c.number<uint32_t>(what);
  const GgufTypeInfo* type = find_gguf_type(id);
  LLATTE_CHECK(
      type, c.where(), ": ", what, " has type ", gguf_type_name(id),
      ", which is not supported; have F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K, Q6_K");
  t.tensor.type = type->type;
  t.tensor.bytes = bytes_of(t.tensor.shape, *type, c.where() + ": " + what);
  t.offset = c.number<uint64_t>(what);
  return t;
}

uint64_t alignment_of(const std::map<std::string, GgufValue>& metadata, const std::string& where) {
  const auto it = metadata.find("general.alignment");
  if (it == metadata.end()) return kAlignment;
  const GgufValue& v = it->second;
  LLATTE_CHECK(v.kind == GgufKind::u32 && !v.is_array, where, ": general.alignment must be a u32, not ",
               v.is_array ? "an array" : kind_name(v.kind));
  const int64_t n = std::get<0>(v.items)[0];
  LLATTE_CHECK(n > 0 && (n & (n - 1)) == 0, where, ": general.alignment is ", n, ", expected a power of two");
  return static_cast<uint64_t>(n);
}

// Sets the data pointers, after checking that every tensor lies in the data and no two share a byte.
void place(std::vector<TensorInfo>& infos, std::span<const std::byte> data, uint64_t alignment,
           const std::string& where) {
  std::sort(infos.begin(), infos.end(),
            [](const TensorInfo& a, const TensorInfo& b) { return a.offset < b.offset; });
  uint64_t end = 0;
  for (TensorInfo& t : infos) {
    const std::string what = str(where, ": tensor '", printable(t.name), "'");
    LLATTE_CHECK(t.offset % alignment == 0, what, " is at offset ", t.offset,
                 ", no multiple of the alignment ", alignment);
    LLATTE_CHECK(t.offset <= data.size() && t.tensor.bytes <= data.size() - t.offset, what, " takes ",
                 t.tensor.bytes, " bytes at offset ", t.offset, " of the data, but the file has only ",
                 data.size(), " bytes of data; is it cut short?");
    LLATTE_CHECK(t.offset >= end, what, " overlaps another (begins at offset ", t.offset,
                 ", the one before ends at ", end, ")");
    end = t.offset + t.tensor.bytes;
    t.tensor.data = data.data() + t.offset;
  }
}

}  // namespace

GgufFile GgufFile::open(const fs::path& file) {
  const MappedFile map = map_file(file);
  Cursor c(map.bytes, file.string());
  check_version(c);
  const uint64_t tensors = c.count(1, "the number of tensors"), pairs = c.count(1, "the number of metadata");
  GgufFile f;
  for (uint64_t i = 0; i < pairs; ++i) {
    const std::string key = c.key("a metadata key");
    LLATTE_CHECK(!f.metadata_.count(key), c.where(), ": the key '", printable(key), "' is there twice");
    f.metadata_.emplace(key, read_value(c, key));
  }
  LLATTE_CHECK(tensors > 0, c.where(), ": holds no tensors; is it a vocabulary without a model?");
  std::vector<TensorInfo> infos = read_items<TensorInfo>(tensors, [&] { return read_info(c); });
  const uint64_t alignment = alignment_of(f.metadata_, c.where());
  const uint64_t begin = std::min<uint64_t>(round_up(c.at(), alignment), map.bytes.size());
  place(infos, map.bytes.subspan(begin), alignment, c.where());
  for (TensorInfo& t : infos)
    LLATTE_CHECK(f.tensors_.emplace(t.name, std::move(t.tensor)).second, c.where(), ": the tensor '",
                 printable(t.name), "' is there twice");
  f.path_ = file;
  f.mapping_ = map;
  return f;
}

// ---- metadata --------------------------------------------------------------------------------------------

const GgufValue& GgufFile::at(const std::string& key) const {
  const auto it = metadata_.find(key);
  LLATTE_CHECK(it != metadata_.end(), path_.string(), ": ", key, " is missing");
  return it->second;
}

template <class Item>
const std::vector<Item>& GgufFile::items(const std::string& key, bool array, const char* wanted) const {
  const GgufValue& v = at(key);
  const auto* list = std::get_if<std::vector<Item>>(&v.items);
  LLATTE_CHECK(list && v.is_array == array, path_.string(), ": ", key, " is of type ",
               v.is_array ? "array of " : "", kind_name(v.kind), ", expected ", wanted);
  return *list;
}

int64_t GgufFile::integer(const std::string& key) const {
  const GgufValue& v = at(key);
  LLATTE_CHECK(is_integer(v.kind) && !v.is_array, path_.string(), ": ", key, " is of type ",
               v.is_array ? "array of " : "", kind_name(v.kind), ", expected an integer");
  return std::get<0>(v.items)[0];
}
int64_t GgufFile::integer(const std::string& key, int64_t otherwise) const {
  return has(key) ? integer(key) : otherwise;
}
double GgufFile::number(const std::string& key) const {
  return items<double>(key, false, "a floating-point number")[0];
}
double GgufFile::number(const std::string& key, double otherwise) const {
  return has(key) ? number(key) : otherwise;
}
bool GgufFile::flag(const std::string& key, bool otherwise) const {
  if (!has(key)) return otherwise;
  LLATTE_CHECK(at(key).kind == GgufKind::boolean, path_.string(), ": ", key, " is of type ",
               kind_name(at(key).kind), ", expected a bool");
  return items<int64_t>(key, false, "a bool")[0] != 0;
}
std::string GgufFile::text(const std::string& key) const {
  const std::string& s = items<std::string>(key, false, "text")[0];
  LLATTE_CHECK(is_utf8(s), path_.string(), ": ", key, " is not valid UTF-8");
  return s;
}
std::string GgufFile::text(const std::string& key, const std::string& otherwise) const {
  return has(key) ? text(key) : otherwise;
}
const std::vector<std::string>& GgufFile::texts(const std::string& key) const {
  const auto& list = items<std::string>(key, true, "an array of text");
  for (size_t i = 0; i < list.size(); ++i)
    LLATTE_CHECK(is_utf8(list[i]), path_.string(), ": ", key, "[", i, "] is not valid UTF-8");
  return list;
}
const std::vector<int64_t>& GgufFile::integers(const std::string& key) const {
  return items<int64_t>(key, true, "an array of integers");
}

// ---- tensors out of the file -----------------------------------------------------------------------------

Tensor GgufFile::read(const std::string& name, DType t, const std::function<int64_t(int64_t)>& row_of) const {
  const auto it = tensors_.find(name);
  LLATTE_CHECK(it != tensors_.end(), path_.string(), ": there is no tensor '", name, "'");
  const GgufTensor& g = it->second;
  const int64_t width = g.shape.back(), rows = numel_of(g.shape) / width;
  const size_t row_bytes = g.bytes / static_cast<size_t>(rows);
  Tensor y = Tensor::empty(g.shape, t);
  std::vector<float> row(static_cast<size_t>(width));
  size_t released = 0;  // in the file's order, pages go back as they were read
  dispatch_float(t, "gguf", [&]<class To>() {
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t from = row_of ? row_of(r) : r;
      dequantize(g.type, g.data + static_cast<size_t>(from) * row_bytes, width, row.data());
      std::copy(row.begin(), row.end(), y.data<To>() + r * width);
      const size_t done = static_cast<size_t>(r + 1) * row_bytes;
      if (row_of || done - released < kReleaseFrom) continue;
      release_pages({g.data + released, done - released});
      released = done;
    }
  });
  release_pages(mapping_.bytes);
  return y;
}

// ---- writing ---------------------------------------------------------------------------------------------

GgufValue gguf_u32(int64_t v) { return {GgufKind::u32, false, std::vector<int64_t>{v}}; }
GgufValue gguf_f32(double v) { return {GgufKind::f32, false, std::vector<double>{v}}; }
GgufValue gguf_flag(bool v) { return {GgufKind::boolean, false, std::vector<int64_t>{v}}; }
GgufValue gguf_text(std::string v) { return {GgufKind::text, false, std::vector<std::string>{std::move(v)}}; }
GgufValue gguf_texts(std::vector<std::string> v) { return {GgufKind::text, true, std::move(v)}; }
GgufValue gguf_i32s(std::vector<int64_t> v) { return {GgufKind::i32, true, std::move(v)}; }

namespace {

template <class T>
void put(std::string& out, T v) {
  out.append(reinterpret_cast<const char*>(&v), sizeof v);
}

void put_text(std::string& out, const std::string& s) {
  put<uint64_t>(out, s.size());
  out += s;
}

void put_integer(std::string& out, int64_t v, GgufKind k) {
  out.append(reinterpret_cast<const char*>(&v), size_of(k));  // little-endian: the low bytes come first
}

void put_value(std::string& out, const GgufValue& v) {
  if (v.is_array) put(out, GgufKind::array);
  put(out, v.kind);
  std::visit(
      [&](const auto& items) {
        if (v.is_array) put<uint64_t>(out, items.size());
        for (const auto& item : items) {
          using Item = std::decay_t<decltype(item)>;
          if constexpr (std::is_same_v<Item, std::string>) put_text(out, item);
          else if constexpr (std::is_same_v<Item, int64_t>) put_integer(out, item, v.kind);
          else if (v.kind == GgufKind::f32) put(out, static_cast<float>(item));
          else put(out, item);
        }
      },
      v.items);
}

uint64_t bytes_of(const GgufSource& s, const fs::path& file) {
  return bytes_of(s.shape, info_of(s.type), str("cannot write ", file.string(), ": tensor '", s.name, "'"));
}

std::string header_of(const fs::path& file, const std::vector<std::pair<std::string, GgufValue>>& metadata,
                      const std::vector<GgufSource>& tensors) {
  std::string out(kMagic);
  put<uint32_t>(out, 3);
  put<uint64_t>(out, tensors.size());
  put<uint64_t>(out, metadata.size());
  for (const auto& [key, value] : metadata) put_text(out, key), put_value(out, value);
  uint64_t at = 0;
  for (const GgufSource& s : tensors) {
    put_text(out, s.name);
    put<uint32_t>(out, static_cast<uint32_t>(s.shape.size()));
    for (size_t i = s.shape.size(); i-- > 0;) put<uint64_t>(out, static_cast<uint64_t>(s.shape[i]));
    put(out, s.type);
    put<uint64_t>(out, at);
    at += round_up(bytes_of(s, file), kAlignment);
  }
  out.resize(round_up(out.size(), kAlignment));
  return out;
}

void write_tensor(AtomicFile& out, const GgufSource& s, const fs::path& file) {
  const Tensor t = s.get().contiguous();
  LLATTE_CHECK(t.dtype() == DType::f32 && t.shape() == s.shape, "cannot write ", file.string(), ": tensor '",
               s.name, "' was announced as f32 ", s.shape, " and is ", name(t.dtype()), ' ', t.shape());
  const int64_t width = s.shape.back(), rows = t.numel() / width;
  const uint64_t bytes = bytes_of(s, file);
  std::vector<std::byte> row(bytes / static_cast<uint64_t>(rows));
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t from = s.row_of ? s.row_of(r) : r;
    try {
      quantize(s.type, t.data<float>() + from * width, width, row.data());
    } catch (const Error& e) {
      LLATTE_FAIL("cannot write ", file.string(), ": tensor '", s.name, "': ", e.what());
    }
    out.write(row.data(), row.size());
  }
  out.write(std::string(round_up(bytes, kAlignment) - bytes, '\0'));
}

}  // namespace

void write_gguf(const fs::path& file, const std::vector<std::pair<std::string, GgufValue>>& metadata,
                const std::vector<GgufSource>& tensors) {
  std::set<std::string> names;
  for (const GgufSource& s : tensors)
    LLATTE_CHECK(names.insert(s.name).second, "cannot write ", file.string(), ": two tensors are named '",
                 s.name, "'");
  const std::string header = header_of(file, metadata, tensors);
  AtomicFile out(file);
  out.write(header);
  for (const GgufSource& s : tensors) write_tensor(out, s, file);
  out.commit();
}

}  // namespace llatte
