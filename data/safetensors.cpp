#include "data/safetensors.h"
#include <algorithm>
#include <cstring>
#include <iostream>
#include <tuple>
#include "data/files.h"
#include "data/half.h"
#include "data/json.h"

namespace llatte {
namespace fs = std::filesystem;
using nlohmann::json;
namespace {

constexpr uint64_t kMaxHeader = 100'000'000;  // the safetensors library's own limit

struct FileDType {
  const char* name;
  size_t bytes;
};
// In the library's order, which is the order of its writer, backwards.
constexpr FileDType kDTypes[] = {{"BOOL", 1},    {"U8", 1},  {"I8", 1},  {"F8_E5M2", 1}, {"F8_E4M3", 1},
                                 {"F8_E8M0", 1}, {"I16", 2}, {"U16", 2}, {"F16", 2},     {"BF16", 2},
                                 {"I32", 4},     {"U32", 4}, {"F32", 4}, {"C64", 8},     {"F64", 8},
                                 {"I64", 8},     {"U64", 8}};

int rank_of(const std::string& dtype) {  // -1: no such type
  for (size_t i = 0; i < std::size(kDTypes); ++i)
    if (dtype == kDTypes[i].name) return static_cast<int>(i);
  return -1;
}

// ---- reading the header ----------------------------------------------------------------------------------

struct Span {
  std::string name;
  SafetensorsEntry entry;
  uint64_t begin = 0, end = 0;
};

std::vector<uint64_t> unsigned_list(const json& list, const std::string& what) {
  LLATTE_CHECK(list.is_array(), what, " must be a list of numbers, not ", list.type_name());
  std::vector<uint64_t> values;
  for (const json& v : list) {
    LLATTE_CHECK(v.is_number_unsigned(), what, " holds ", v.dump(-1, ' ', true).substr(0, 40),
                 ", which is no whole number in [0, 2^64)");
    values.push_back(v.get<uint64_t>());
  }
  return values;
}

// shape x size of an element. A dimension of 0 does not excuse the others: strides are made of them too.
uint64_t bytes_of(const std::vector<uint64_t>& shape, size_t element, const std::string& what) {
  int64_t product = static_cast<int64_t>(element);
  bool empty = false;
  for (uint64_t d : shape) {
    empty |= d == 0;
    LLATTE_CHECK(!__builtin_mul_overflow(product, std::max<uint64_t>(d, 1), &product), what,
                 " has a shape whose size overflows 63 bits (dimension ", d, ")");
  }
  return empty ? 0 : static_cast<uint64_t>(product);
}

const json& field(const json& entry, const char* name, const std::string& what) {
  const auto it = entry.find(name);
  LLATTE_CHECK(it != entry.end(), what, " has no ", name);
  return *it;
}

Span parse_entry(const std::string& name, const json& j, const std::string& file) {
  const std::string what = str(file, ": tensor '", printable(name), "'");
  LLATTE_CHECK(j.is_object(), what, " must be an object, not ", j.type_name());
  const json& dtype = field(j, "dtype", what);
  const auto shape = unsigned_list(field(j, "shape", what), what + ": shape");
  const auto offsets = unsigned_list(field(j, "data_offsets", what), what + ": data_offsets");
  LLATTE_CHECK(j.size() == 3, what, " has a field besides dtype, shape and data_offsets");
  LLATTE_CHECK(dtype.is_string(), what, ": dtype must be a string, not ", dtype.type_name());
  const int rank = rank_of(dtype.get<std::string>());
  LLATTE_CHECK(rank >= 0, what, ": unknown dtype '", printable(dtype.get<std::string>()), "'");
  LLATTE_CHECK(offsets.size() == 2, what, ": data_offsets has ", offsets.size(), " entries, not 2");
  LLATTE_CHECK(offsets[0] <= offsets[1], what, ": data_offsets end before they begin (", offsets[0], ", ",
               offsets[1], ")");
  const uint64_t bytes = bytes_of(shape, kDTypes[rank].bytes, what);
  LLATTE_CHECK(bytes == offsets[1] - offsets[0], what, ": shape and dtype need ", bytes,
               " bytes, data_offsets span ", offsets[1] - offsets[0]);
  Span s{name, {}, offsets[0], offsets[1]};
  s.entry = {dtype.get<std::string>(), Shape(shape.begin(), shape.end()), nullptr, bytes};
  return s;
}

std::map<std::string, std::string> parse_metadata(const json& j, const std::string& file) {
  LLATTE_CHECK(j.is_object(), file, ": __metadata__ must be an object, not ", j.type_name());
  std::map<std::string, std::string> metadata;
  for (const auto& [key, value] : j.items()) {
    LLATTE_CHECK(value.is_string(), file, ": __metadata__ '", printable(key), "' must be a string, not ",
                 value.type_name());
    metadata[key] = value.get<std::string>();
  }
  return metadata;
}

// Sorted by offset, the tensors must fill [0, bytes) without a hole or an overlap.
void check_contiguous(std::vector<Span>& spans, uint64_t bytes, const std::string& file) {
  std::sort(spans.begin(), spans.end(), [](const Span& a, const Span& b) {
    return std::tie(a.begin, a.end, a.name) < std::tie(b.begin, b.end, b.name);
  });
  uint64_t at = 0;
  for (const Span& s : spans) {
    LLATTE_CHECK(s.begin <= at, file, ": hole in the data, bytes [", at, ", ", s.begin, ") before tensor '",
                 printable(s.name), "' belong to none");
    LLATTE_CHECK(s.begin == at, file, ": tensor '", printable(s.name), "' overlaps another (begins at ",
                 s.begin, ", the one before ends at ", at, ")");
    at = s.end;
  }
  LLATTE_CHECK(at == bytes, file, ": the tensors end at byte ", at, " of the data, but the file holds ",
               bytes, at > bytes ? "; it is cut short" : "; there are bytes that belong to none");
}

std::string_view header_text(std::span<const std::byte> bytes, const std::string& file) {
  uint64_t n = 0;
  LLATTE_CHECK(bytes.size() >= sizeof n, file, ": ", bytes.size(),
               " bytes are too few for a safetensors file");
  std::memcpy(&n, bytes.data(), sizeof n);
  LLATTE_CHECK(n <= kMaxHeader, file, ": header length ", n, " is above the limit of ", kMaxHeader,
               "; not a safetensors file?");
  LLATTE_CHECK(n <= bytes.size() - sizeof n, file, ": header length ", n, " is beyond the end of the file (",
               bytes.size(), " bytes)");
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()) + sizeof n, n);
  LLATTE_CHECK(!text.empty() && text[0] == '{', file, ": the header must begin with '{'");
  return text;
}

}  // namespace

SafetensorsFile SafetensorsFile::open(const fs::path& file) {
  const MappedFile map = map_file(file);
  const std::string where = file.string();
  const std::string_view text = header_text(map.bytes, where);
  const json header = parse_json(text, where + ": header");
  SafetensorsFile f;
  std::vector<Span> spans;
  for (const auto& [name, j] : header.items()) {
    if (name == "__metadata__") f.metadata_ = parse_metadata(j, where);
    else spans.push_back(parse_entry(name, j, where));
  }
  const auto data = map.bytes.subspan(sizeof(uint64_t) + text.size());
  check_contiguous(spans, data.size(), where);
  for (Span& s : spans) {
    s.entry.data = data.data() + s.begin;
    f.entries_.emplace(std::move(s.name), std::move(s.entry));
  }
  f.path_ = file;
  f.mappings_.push_back(map);
  return f;
}

// ---- several files as one --------------------------------------------------------------------------------

SafetensorsFile SafetensorsFile::open_folder(const fs::path& folder) {
  const fs::path one = folder / "model.safetensors", index = folder / "model.safetensors.index.json";
  std::error_code ignored;
  if (fs::exists(one, ignored)) return open(one);
  LLATTE_CHECK(fs::exists(index, ignored), folder.string(),
               " holds neither model.safetensors nor model.safetensors.index.json");
  return open_index(index);
}

namespace {

std::string shard_name(const std::string& tensor, const json& value, const std::string& where) {
  LLATTE_CHECK(value.is_string(), where, ": the shard of tensor '", printable(tensor),
               "' must be a string, not ", value.type_name());
  const std::string shard = value.get<std::string>();
  const bool plain = !shard.empty() && shard != "." && shard != ".." &&
                     shard.find_first_of(std::string_view("/\\\0", 3)) == std::string::npos;
  LLATTE_CHECK(plain, where, ": the shard '", printable(shard), "' of tensor '", printable(tensor),
               "' must be the name of a file in the same folder");
  return shard;
}

void warn_wrong_total(const json& index, uint64_t bytes, const std::string& where) {
  const json* total = nullptr;
  if (const auto m = index.find("metadata"); m != index.end() && m->is_object())
    if (const auto t = m->find("total_size"); t != m->end()) total = &*t;
  if (!total || (total->is_number() && total->get<double>() == static_cast<double>(bytes))) return;
  std::cerr << "warning: " << where << ": total_size is " << total->dump(-1, ' ', true)
            << " but the tensors have " << bytes << " bytes; ignored\n";
}

}  // namespace

SafetensorsFile SafetensorsFile::open_index(const fs::path& index_file) {
  const std::string where = index_file.string();
  const json index = read_json(index_file);
  LLATTE_CHECK(index.is_object() && index.contains("weight_map"), where, ": there is no weight_map");
  const json& weight_map = index["weight_map"];
  LLATTE_CHECK(weight_map.is_object(), where, ": weight_map must be an object, not ", weight_map.type_name());
  SafetensorsFile all;
  std::map<std::string, SafetensorsFile> shards;
  uint64_t bytes = 0;
  for (const auto& [tensor, value] : weight_map.items()) {
    const std::string name = shard_name(tensor, value, where);
    if (!shards.count(name)) shards[name] = open(index_file.parent_path() / name);
    const SafetensorsFile& shard = shards[name];
    LLATTE_CHECK(shard.has(tensor), where, ": tensor '", printable(tensor), "' is not in its shard ", name);
    bytes += all.entries_.emplace(tensor, shard.entries_.at(tensor)).first->second.bytes;
  }
  for (const auto& [name, shard] : shards) {
    all.metadata_.insert(shard.metadata_.begin(), shard.metadata_.end());
    all.mappings_.insert(all.mappings_.end(), shard.mappings_.begin(), shard.mappings_.end());
  }
  warn_wrong_total(index, bytes, where);
  all.path_ = index_file;
  return all;
}

// ---- tensors out of the file -----------------------------------------------------------------------------

namespace {

struct f16 {
  uint16_t bits;
  operator float() const { return f16_to_f32(bits); }
};

// Values [0,n) at `from`, which may be unaligned, each turned into a To. Pages of the mapped file are given
// back as soon as they were read: the file must not be in memory beside the tensor.
template <class From, class To>
void convert(const std::byte* from, int64_t n, To* to) {
  constexpr int64_t kPart = int64_t(1) << 20, kBytes = sizeof(From);
  for (int64_t begin = 0; begin < n; begin += kPart) {
    const int64_t end = std::min(n, begin + kPart);
    for (int64_t i = begin; i < end; ++i) {
      From v;
      std::memcpy(&v, from + i * kBytes, sizeof v);
      if constexpr (std::is_same_v<To, bf16>) to[i] = static_cast<float>(v);
      else to[i] = static_cast<To>(v);
    }
    release_pages({from + begin * kBytes, static_cast<size_t>((end - begin) * kBytes)});
  }
}

template <class From>
Tensor convert(const SafetensorsEntry& e, DType t, const std::string& what) {
  constexpr bool whole = std::is_integral_v<From>;
  LLATTE_CHECK(whole || t != DType::i32, what, " is ", e.dtype, ", which cannot be read as i32");
  Tensor y = Tensor::empty(e.shape, t);
  if constexpr (!whole)
    dispatch_float(t, "safetensors", [&]<class To>() { convert<From>(e.data, y.numel(), y.data<To>()); });
  else dispatch_any(t, "safetensors", [&]<class To>() { convert<From>(e.data, y.numel(), y.data<To>()); });
  return y;
}

void check_fits_i32(const SafetensorsEntry& e, const std::string& what) {
  for (size_t i = 0; i < e.bytes / sizeof(int64_t); ++i) {
    int64_t v;
    std::memcpy(&v, e.data + i * sizeof v, sizeof v);
    LLATTE_CHECK(v == static_cast<int32_t>(v), what, " holds ", v, " at position ", i,
                 ", which does not fit in 32 bits");
  }
}

Tensor read_entry(const SafetensorsEntry& e, DType t, const std::string& what) {
  if (e.dtype == "F32") return convert<float>(e, t, what);
  if (e.dtype == "BF16") return convert<bf16>(e, t, what);
  if (e.dtype == "F16") return convert<f16>(e, t, what);
  if (e.dtype == "F64") return convert<double>(e, t, what);
  if (e.dtype == "I32") return convert<int32_t>(e, t, what);
  if (e.dtype == "U8") return convert<uint8_t>(e, t, what);
  LLATTE_CHECK(e.dtype == "I64", what, " is ", e.dtype,
               "; only F32, F16, BF16, F64, I32, I64 and U8 are read");
  check_fits_i32(e, what);
  return convert<int64_t>(e, t, what);
}

bool holds(const MappedFile& m, const SafetensorsEntry& e) {
  return m.bytes.data() <= e.data && e.data <= m.bytes.data() + m.bytes.size();
}

}  // namespace

Tensor SafetensorsFile::read(const std::string& name, DType t) const {
  const auto it = entries_.find(name);
  LLATTE_CHECK(it != entries_.end(), path_.string(), ": there is no tensor '", name, "'");
  const Tensor y = read_entry(it->second, t, str(path_.string(), ": tensor '", name, "'"));
  for (const MappedFile& m : mappings_)
    if (holds(m, it->second)) release_pages(m.bytes);
  return y;
}

Tensor SafetensorsFile::read(const std::string& name) const {
  const auto it = entries_.find(name);
  const std::string dtype = it == entries_.end() ? "" : it->second.dtype;
  if (dtype == "BF16") return read(name, DType::bf16);
  if (dtype == "F64") return read(name, DType::f64);
  const bool whole = dtype == "I32" || dtype == "I64" || dtype == "U8";
  return read(name, whole ? DType::i32 : DType::f32);
}

// ---- writing ---------------------------------------------------------------------------------------------

namespace {

struct Item {
  const std::string* name;
  int rank;  // in kDTypes
  const Shape* shape;
  size_t bytes;
  std::function<void(AtomicFile&)> put;  // its bytes
};

void sort_items(std::vector<Item>& items, const fs::path& file) {
  std::sort(items.begin(), items.end(), [](const Item& a, const Item& b) {
    return a.rank != b.rank ? a.rank > b.rank : *a.name < *b.name;
  });
  std::vector<std::string> names;
  for (const Item& i : items) names.push_back(*i.name);
  std::sort(names.begin(), names.end());
  const auto twice = std::adjacent_find(names.begin(), names.end());
  LLATTE_CHECK(twice == names.end(), "cannot write ", file.string(), ": two tensors are named '", *twice,
               "'");
  LLATTE_CHECK(!std::binary_search(names.begin(), names.end(), "__metadata__"), "cannot write ",
               file.string(), ": no tensor may be named __metadata__");
}

std::string header_of(const std::vector<Item>& items, const std::map<std::string, std::string>& metadata,
                      const char* format, const fs::path& file) {
  nlohmann::ordered_json header;
  header["__metadata__"] = nlohmann::ordered_json::object();
  if (format) header["__metadata__"]["format"] = format;
  for (const auto& [key, value] : metadata) header["__metadata__"][key] = value;
  size_t at = 0;
  for (const Item& i : items) {
    auto& entry = header[*i.name];
    entry["dtype"] = kDTypes[i.rank].name;
    entry["shape"] = *i.shape;
    entry["data_offsets"] = {at, at + i.bytes};
    at += i.bytes;
  }
  try {
    std::string text = header.dump();
    text.resize((text.size() + 7) / 8 * 8, ' ');
    return text;
  } catch (const json::exception&) {
    LLATTE_FAIL("cannot write ", file.string(), ": a tensor's name or the metadata is not valid UTF-8");
  }
}

void write_items(const fs::path& file, std::vector<Item> items,
                 const std::map<std::string, std::string>& metadata, const char* format = "pt") {
  sort_items(items, file);
  const std::string header = header_of(items, metadata, format, file);
  const uint64_t n = header.size();
  LLATTE_CHECK(n <= kMaxHeader, "cannot write ", file.string(), ": the header would have ", n,
               " bytes, more than ", kMaxHeader);
  AtomicFile out(file);
  out.write(&n, sizeof n);
  out.write(header);
  for (const Item& i : items) i.put(out);
  out.commit();
}

int rank_of(DType t) {
  const char* names[] = {"F32", "BF16", "F64", "I32"};
  return rank_of(std::string(names[static_cast<int>(t)]));
}

void add_raw(std::vector<Item>& items, const std::vector<RawTensor>& tensors, const fs::path& file) {
  for (const RawTensor& t : tensors) {
    const int rank = rank_of(t.dtype);
    LLATTE_CHECK(rank >= 0, "cannot write ", file.string(), ": tensor '", t.name, "' has the unknown dtype '",
                 t.dtype, "'");
    const size_t bytes = static_cast<size_t>(numel_of(t.shape)) * kDTypes[rank].bytes;
    LLATTE_CHECK(bytes == t.data.size(), "cannot write ", file.string(), ": tensor '", t.name, "' needs ",
                 bytes, " bytes, got ", t.data.size());
    const auto put = [&](AtomicFile& out) { out.write(t.data); };
    items.push_back({&t.name, rank, &t.shape, bytes, put});
  }
}

}  // namespace

void write_safetensors(const fs::path& file, const std::vector<TensorSource>& tensors,
                       const std::map<std::string, std::string>& metadata, const char* format,
                       const std::vector<RawTensor>& raw) {
  std::vector<Item> items;
  add_raw(items, raw, file);
  for (const TensorSource& s : tensors) {
    const auto put = [&](AtomicFile& out) {
      const Tensor t = s.get().to(Device::cpu).contiguous();
      LLATTE_CHECK(t.dtype() == s.dtype && t.shape() == s.shape, "cannot write ", file.string(), ": tensor '",
                   s.name, "' was announced as ", llatte::name(s.dtype), ' ', s.shape, " and is ",
                   llatte::name(t.dtype()), ' ', t.shape());
      out.write(t.raw(), t.bytes());
    };
    const size_t bytes = static_cast<size_t>(numel_of(s.shape)) * size_of(s.dtype);
    items.push_back({&s.name, rank_of(s.dtype), &s.shape, bytes, put});
  }
  write_items(file, std::move(items), metadata, format);
}

void write_safetensors(const fs::path& file, const std::vector<std::pair<std::string, Tensor>>& tensors,
                       const std::map<std::string, std::string>& metadata) {
  std::vector<TensorSource> sources;
  for (const auto& [name, t] : tensors) {
    LLATTE_CHECK(t.defined(), "cannot write ", file.string(), ": tensor '", name, "' was never set");
    sources.push_back({name, t.dtype(), t.shape(), [t = t] { return t; }});
  }
  write_safetensors(file, sources, metadata);
}

void write_safetensors_raw(const fs::path& file, const std::vector<RawTensor>& tensors,
                           const std::map<std::string, std::string>& metadata) {
  std::vector<Item> items;
  add_raw(items, tensors, file);
  write_items(file, std::move(items), metadata);
}

}  // namespace llatte
