// Every string and number of the metadata is checked before use: a slice is within its tensor, a block is as
// large in the file as in the whole, and the blocks tile both. The whole can then be no larger than the files
// are, so that a metadata of petabytes is refused and not allocated.
#include "data/sharded_tensor.h"
#include <algorithm>
#include <optional>
#include <string_view>
#include "data/json.h"

namespace llatte {
namespace {

using Slice = ShardedTensor::Slice;
using Block = ShardedTensor::Block;
using Shard = ShardedTensor::Shard;

constexpr size_t kMaxBlocks = 4096;  // of one tensor; they are compared pair by pair

std::vector<std::string_view> split(std::string_view text, char separator) {
  std::vector<std::string_view> pieces;
  for (size_t at; (at = text.find(separator)) != text.npos; text.remove_prefix(at + 1))
    pieces.push_back(text.substr(0, at));
  pieces.push_back(text);
  return pieces;
}

// Digits alone, few enough to fit; anything else is nothing.
std::optional<int64_t> whole_number(std::string_view text) {
  const bool digits = std::all_of(text.begin(), text.end(), [](char c) { return '0' <= c && c <= '9'; });
  if (text.empty() || text.size() > 18 || !digits) return std::nullopt;
  return std::stoll(std::string(text));
}

// The metadata of one file, and the opening of every complaint about it.
struct Metadata {
  std::string where, shape, pairs;
};

const SafetensorsEntry& data_of(const SafetensorsFile& f) {
  LLATTE_CHECK(f.has("data") && f.entries().size() == 1, f.path().string(), ": holds ", f.entries().size(),
               " tensors, expected one named data");
  return f.entries().at("data");
}

Metadata metadata_of(const SafetensorsFile& f) {
  const auto text = [&](const char* key) {
    const auto it = f.metadata().find(key);
    LLATTE_CHECK(it != f.metadata().end(), f.path().string(), ": its metadata have no ", key,
                 ", so its place in the whole tensor is unknown");
    return it->second;
  };
  return {f.path().string(), text("unsharded_shape"), text("local_global_slices_pairs")};
}

// "(32, 16)", "(32,)"
Shape shape_of(const Metadata& m) {
  std::string_view text = m.shape;
  const bool tuple = text.size() > 2 && text.front() == '(' && text.back() == ')';
  Shape shape;
  if (tuple) {
    text = text.substr(1, text.size() - 2);
    if (text.back() == ',') text.remove_suffix(1);
    for (std::string_view piece : split(text, ',')) {
      if (!shape.empty() && piece.starts_with(' ')) piece.remove_prefix(1);
      shape.push_back(whole_number(piece).value_or(0));
    }
  }
  const bool positive = std::all_of(shape.begin(), shape.end(), [](int64_t d) { return d > 0; });
  LLATTE_CHECK(tuple && positive, m.where, ": unsharded_shape '", printable(m.shape),
               "' is no shape; expected one like (32, 16)");
  return shape;
}

// "0,8,None"; None is the end of the dimension, and the only step is 1.
std::optional<Slice> parse_slice(std::string_view text, int64_t size) {
  const auto pieces = split(text, ',');
  if (pieces.size() != 3 || (pieces[2] != "None" && pieces[2] != "1")) return std::nullopt;
  const auto begin = pieces[0] == "None" ? 0 : whole_number(pieces[0]);
  const auto end = pieces[1] == "None" ? size : whole_number(pieces[1]);
  if (!begin || !end) return std::nullopt;
  return Slice{*begin, *end};
}

[[noreturn]] void refuse_pairs(const Metadata& m, std::string_view part) {
  LLATTE_FAIL(m.where, ": local_global_slices_pairs has '", printable(std::string(part)),
              "'; expected start,stop,None for every dimension, joined by |, of the file # of the whole");
}

Block parse_block(std::string_view text, const Shape& shape, const char* of, const Metadata& m) {
  const auto pieces = split(text, '|');
  if (pieces.size() != shape.size()) refuse_pairs(m, text);
  Block block;
  for (size_t d = 0; d < shape.size(); ++d) {
    const auto slice = parse_slice(pieces[d], shape[d]);
    if (!slice) refuse_pairs(m, text);
    LLATTE_CHECK(slice->begin < slice->end && slice->end <= shape[d], m.where, ": slice ", slice->begin, ",",
                 slice->end, " of dimension ", d, " is not within ", of, ", which is ", shape);
    block.push_back(*slice);
  }
  return block;
}

Shape size_of(const Block& b) {
  Shape s;
  for (const Slice& slice : b) s.push_back(slice.end - slice.begin);
  return s;
}

std::vector<std::pair<Block, Block>> parse_pairs(const Metadata& m, const Shape& local, const Shape& whole) {
  std::vector<std::pair<Block, Block>> blocks;
  for (const std::string_view pair : split(m.pairs, ';')) {
    const auto sides = split(pair, '#');
    if (sides.size() != 2) refuse_pairs(m, pair);
    const Block from = parse_block(sides[0], local, "the file's tensor", m);
    const Block to = parse_block(sides[1], whole, "the whole tensor", m);
    LLATTE_CHECK(size_of(from) == size_of(to), m.where, ": a block of ", size_of(from),
                 " in the file is said to be ", size_of(to), " in the whole tensor");
    blocks.emplace_back(from, to);
    LLATTE_CHECK(blocks.size() <= kMaxBlocks, m.where, ": more than ", kMaxBlocks, " blocks");
  }
  return blocks;
}

bool overlap(const Block& a, const Block& b) {
  for (size_t d = 0; d < a.size(); ++d)
    if (a[d].end <= b[d].begin || b[d].end <= a[d].begin) return false;
  return true;
}

std::string shown(const Block& b) {
  std::string text;
  for (const Slice& s : b) text += str(text.empty() ? "[" : ", [", s.begin, ",", s.end, ")");
  return text;
}

// Blocks within `shape` that fill it, each number once. None is larger than the files: no sum can overflow.
void check_tiling(const std::vector<Block>& blocks, const Shape& shape, const std::string& where) {
  LLATTE_CHECK(blocks.size() <= kMaxBlocks, where, ": more than ", kMaxBlocks, " blocks");
  int64_t covered = 0;
  for (size_t i = 0; i < blocks.size(); ++i) {
    covered += numel_of(size_of(blocks[i]));
    for (size_t j = 0; j < i; ++j)
      LLATTE_CHECK(!overlap(blocks[i], blocks[j]), where, ": the blocks ", shown(blocks[j]), " and ",
                   shown(blocks[i]), " overlap");
  }
  LLATTE_CHECK(covered == numel_of(shape), where, ": the blocks cover ", covered, " of ", numel_of(shape),
               " numbers");
}

// The whole is as large as all files together: what cannot be is refused before anything is multiplied.
void check_size(const Shape& whole, const std::vector<Shard>& shards, const std::string& where) {
  int64_t held = 0, asked = 1;
  for (const Shard& s : shards) held += numel_of(data_of(s.file).shape);
  bool overflow = false;
  for (const int64_t d : whole) overflow |= __builtin_mul_overflow(asked, d, &asked);
  LLATTE_CHECK(!overflow && asked == held, where, ": unsharded_shape ", whole, " is not what its ",
               shards.size(), " files hold, ", held, " numbers");
}

void check_same(const SafetensorsFile& a, const SafetensorsFile& b) {
  const std::string &x = data_of(a).dtype, &y = data_of(b).dtype;
  LLATTE_CHECK(x == y, b.path().string(), ": dtype ", y, " differs from ", x, " in ", a.path().string());
  const Shape s = shape_of(metadata_of(a)), t = shape_of(metadata_of(b));
  LLATTE_CHECK(s == t, b.path().string(), ": unsharded_shape ", t, " differs from ", s, " in ",
               a.path().string());
}

void place(std::vector<Shard>& shards, const Shape& whole, const std::string& where) {
  std::vector<Block> all;
  for (Shard& s : shards) {
    const Shape& local = data_of(s.file).shape;
    s.blocks = parse_pairs(metadata_of(s.file), local, whole);
    std::vector<Block> in_file;
    for (const auto& [from, to] : s.blocks) in_file.push_back(from), all.push_back(to);
    check_tiling(in_file, local, s.file.path().string());
  }
  check_tiling(all, whole, where);
}

}  // namespace

ShardedTensor ShardedTensor::open(const std::vector<std::filesystem::path>& files) {
  LLATTE_CHECK(!files.empty(), "a sharded tensor has no files");
  ShardedTensor t;
  for (const auto& file : files) t.shards_.push_back({SafetensorsFile::open(file), {}});
  const SafetensorsFile& first = t.shards_[0].file;
  if (files.size() == 1 && !first.metadata().contains("unsharded_shape")) {
    t.shape_ = data_of(first).shape;
    Block all;
    for (const int64_t d : t.shape_) all.push_back({0, d});
    t.shards_[0].blocks = {{all, all}};
    return t;
  }
  for (const Shard& s : t.shards_) check_same(first, s.file);
  const std::string where = files[0].parent_path().string();
  t.shape_ = shape_of(metadata_of(first));
  check_size(t.shape_, t.shards_, where);
  place(t.shards_, t.shape_, where);
  return t;
}

const std::string& ShardedTensor::dtype() const { return data_of(shards_[0].file).dtype; }

int64_t ShardedTensor::bytes() const {
  int64_t sum = 0;
  for (const Shard& s : shards_) sum += static_cast<int64_t>(data_of(s.file).bytes);
  return sum;
}

namespace {

Tensor view(Tensor t, const Block& b) {
  for (size_t d = 0; d < b.size(); ++d) t = t.slice(static_cast<int>(d), b[d].begin, b[d].end);
  return t;
}

// What of the pair lies in rows [begin, end) of the whole; the second block counts from row `begin`.
std::optional<std::pair<Block, Block>> clipped(std::pair<Block, Block> pair, int64_t begin, int64_t end) {
  Slice &from = pair.first[0], &to = pair.second[0];
  const int64_t low = std::max(to.begin, begin), high = std::min(to.end, end);
  if (low >= high) return std::nullopt;
  from = {from.begin + low - to.begin, from.begin + high - to.begin};
  to = {low - begin, high - begin};
  return pair;
}

}  // namespace

bool ShardedTensor::is_one_file_as_it_is() const {
  return shards_.size() == 1 && std::all_of(shards_[0].blocks.begin(), shards_[0].blocks.end(),
                                            [](const auto& pair) { return pair.first == pair.second; });
}

Tensor ShardedTensor::read_rows(int64_t begin, int64_t end, DType t) const {
  LLATTE_CHECK(!shape_.empty() && 0 <= begin && begin <= end && end <= shape_[0], "rows ", begin, " to ", end,
               " of a tensor of shape ", shape_);
  if (begin == 0 && end == shape_[0] && is_one_file_as_it_is()) return shards_[0].file.read("data", t);
  Shape shape = shape_;
  shape[0] = end - begin;
  Tensor y = Tensor::empty(shape, t);
  for (const Shard& s : shards_) {
    Tensor x;
    for (const auto& pair : s.blocks) {
      const auto part = clipped(pair, begin, end);
      if (!part) continue;
      if (!x.defined()) x = s.file.read("data", t);
      view(y, part->second).copy_from(view(x, part->first));
    }
  }
  return y;
}

}  // namespace llatte
