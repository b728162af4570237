// What decoding keeps of earlier tokens, one LayerCache per layer. Each kind of attention has its own (keys
// and values for gqa, latents for mla and hla) behind this interface, which knows lengths and bytes and
// nothing else.
#pragma once
#include <cstdint>
#include <memory>
#include <vector>
#include "tensor/dtype.h"

namespace llatte {

// How a cache keeps its numbers. int8, int4: quantised, each token in groups with a scale.
enum class CacheType { f32, bf16, f64, int8, int4 };
inline CacheType cache_type(DType t) {
  return t == DType::bf16 ? CacheType::bf16 : t == DType::f64 ? CacheType::f64 : CacheType::f32;
}

class LayerCache {
 public:
  virtual ~LayerCache() = default;
  virtual int64_t length() const = 0;  // tokens held
  virtual int64_t capacity() const = 0;
  virtual void truncate(int64_t length) = 0;    // forget all but the first `length`
  virtual int64_t bytes_per_token() const = 0;  // of one sequence, from the allocated tensors
};

struct KvCache {
  std::vector<std::unique_ptr<LayerCache>> layers;
  int64_t length() const { return layers.empty() ? 0 : layers[0]->length(); }
  int64_t capacity() const { return layers.empty() ? 0 : layers[0]->capacity(); }
  int64_t bytes_per_token() const;
};

}  // namespace llatte
