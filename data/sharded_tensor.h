// One tensor that tensor parallelism has cut into blocks, each file holding some of them, as nanotron writes
// its parameters. A file holds one tensor, `data`, and in its metadata
//   unsharded_shape            "(32, 16)": the shape of the whole
//   local_global_slices_pairs  "0,8,None|None,None,None#16,24,None|None,None,None;...": pairs of a block of
//                              the file # the same block of the whole, each a start,stop,step per dimension
// A single file without these is the whole. Laws: all files agree on dtype and shape, and their blocks fill
// the whole, and each file, without gap or overlap. What does not is an Error naming file and values; no
// memory is asked for before all that is certain.
#pragma once
#include <filesystem>
#include <map>
#include <string>
#include <utility>
#include <vector>
#include "data/safetensors.h"

namespace llatte {

class ShardedTensor {
 public:
  struct Slice {
    int64_t begin = 0, end = 0;
    bool operator==(const Slice&) const = default;
  };
  using Block = std::vector<Slice>;  // one Slice per dimension
  struct Shard {
    SafetensorsFile file;
    std::vector<std::pair<Block, Block>> blocks;  // in the file, in the whole
  };

  static ShardedTensor open(const std::vector<std::filesystem::path>& files);

  const Shape& shape() const { return shape_; }
  const std::string& dtype() const;  // the files' word
  int64_t bytes() const;             // of the whole, on disk
  // Rows [begin, end) of the first dimension, as a new tensor of dtype t. Only files with such rows are read.
  Tensor read_rows(int64_t begin, int64_t end, DType t) const;

 private:
  bool is_one_file_as_it_is() const;

  Shape shape_;
  std::vector<Shard> shards_;
};

}  // namespace llatte
