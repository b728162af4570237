// The cache of ordinary attention: rotated keys and values of every earlier token, (B,S,K,E) each.
//   B sequences  S capacity in tokens  K kv heads  E head width
#pragma once
#include "nn/kv_cache.h"
#include "tensor/tensor.h"

namespace llatte {

class GqaCache final : public LayerCache {
 public:
  GqaCache(int64_t B, int64_t S, int64_t K, int64_t E, CacheType t);
  int64_t length() const override { return length_; }
  int64_t capacity() const override { return k_BSKE_.size(1); }
  void truncate(int64_t length) override;
  int64_t bytes_per_token() const override;

  // Adds T tokens (B,T,K,E) after those held.
  void append(const Tensor& k_BTKE, const Tensor& v_BTKE);
  // All tokens held, (B,length,K,E): views of the cache, strided where B > 1.
  Tensor keys() const { return k_BSKE_.slice(1, 0, length_); }
  Tensor values() const { return v_BSKE_.slice(1, 0, length_); }

 private:
  Tensor k_BSKE_, v_BSKE_;
  int64_t length_ = 0;
};

}  // namespace llatte
