// Sums over the layers of a cache.
#include "nn/kv_cache.h"

namespace llatte {

int64_t KvCache::bytes_per_token() const {
  int64_t bytes = 0;
  for (const auto& layer : layers) bytes += layer->bytes_per_token();
  return bytes;
}

}  // namespace llatte
