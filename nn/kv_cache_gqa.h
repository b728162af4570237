// The cache of ordinary attention: rotated keys and values of every earlier token, K E numbers each.
//   B sequences  S capacity in tokens  K kv heads  E head width
#pragma once
#include "nn/token_store.h"

namespace llatte {

class GqaCache final : public LayerCache {
 public:
  GqaCache(int64_t B, int64_t S, int64_t K, int64_t E, CacheType t, Device d);
  int64_t length() const override { return k_.length(); }
  int64_t capacity() const override { return k_.capacity(); }
  void truncate(int64_t length) override;
  int64_t bytes_per_token() const override { return k_.bytes_per_token() + v_.bytes_per_token(); }

  // Adds T tokens (B,T,K,E) after those held.
  void append(const Tensor& k_BTKE, const Tensor& v_BTKE);
  // All tokens held, (B,length,K,E), in dtype t: views of the cache where it keeps t, strided where B > 1.
  Tensor keys(DType t) const { return k_.read(t, {K_, E_}); }
  Tensor values(DType t) const { return v_.read(t, {K_, E_}); }

 private:
  int64_t K_, E_;
  TokenStore k_, v_;
};

}  // namespace llatte
