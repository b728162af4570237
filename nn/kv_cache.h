// What decoding keeps of earlier tokens, one LayerCache per layer. Each kind of attention has its own (keys
// and values for gqa, latents for mla and hla) behind this interface, which knows lengths and bytes and
// nothing else.
#pragma once
#include <cstdint>
#include <memory>
#include <vector>

namespace llatte {

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
