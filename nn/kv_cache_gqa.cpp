// Keys and values in two stores, a section for each head.
#include "nn/kv_cache_gqa.h"

namespace llatte {

GqaCache::GqaCache(int64_t B, int64_t S, int64_t K, int64_t E, CacheType t, Device d)
    : K_(K),
      E_(E),
      k_(B, S, std::vector<int64_t>(static_cast<size_t>(K), E), t, d),
      v_(B, S, std::vector<int64_t>(static_cast<size_t>(K), E), t, d) {}

void GqaCache::truncate(int64_t length) {
  k_.truncate(length);
  v_.truncate(length);
}

void GqaCache::append(const Tensor& k_BTKE, const Tensor& v_BTKE) {
  const Shape rows{k_BTKE.size(0), k_BTKE.size(1), K_ * E_};
  k_.append(k_BTKE.contiguous().reshape(rows));
  v_.append(v_BTKE.contiguous().reshape(rows));
}

}  // namespace llatte
