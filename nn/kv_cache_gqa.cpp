// Keys and values in two tensors, filled from the front.
#include "nn/kv_cache_gqa.h"

namespace llatte {

namespace {

DType dtype_of_cache(CacheType t) {
  switch (t) {
    case CacheType::f32: return DType::f32;
    case CacheType::bf16: return DType::bf16;
    case CacheType::f64: return DType::f64;
    default: LLATTE_FAIL("kv cache: keys and values are kept as f32, bf16 or f64");
  }
}

}  // namespace

GqaCache::GqaCache(int64_t B, int64_t S, int64_t K, int64_t E, CacheType t)
    : k_BSKE_(Tensor::empty({B, S, K, E}, dtype_of_cache(t))),
      v_BSKE_(Tensor::empty({B, S, K, E}, dtype_of_cache(t))) {}

void GqaCache::truncate(int64_t length) {
  LLATTE_CHECK(0 <= length && length <= length_, "kv cache: cannot truncate ", length_, " tokens to ",
               length);
  length_ = length;
}

int64_t GqaCache::bytes_per_token() const {
  const int64_t tokens = k_BSKE_.size(0) * k_BSKE_.size(1);
  return tokens ? static_cast<int64_t>(k_BSKE_.bytes() + v_BSKE_.bytes()) / tokens : 0;
}

void GqaCache::append(const Tensor& k_BTKE, const Tensor& v_BTKE) {
  const int64_t T = k_BTKE.size(1);
  LLATTE_CHECK(k_BTKE.size(0) == k_BSKE_.size(0), "kv cache: made for ", k_BSKE_.size(0),
               " sequences, given ", k_BTKE.size(0));
  LLATTE_CHECK(length_ + T <= capacity(), "kv cache: ", length_, " tokens held and ", T,
               " new ones exceed its capacity of ", capacity(), "; make a larger cache");
  k_BSKE_.slice(1, length_, length_ + T).copy_from(k_BTKE);
  v_BSKE_.slice(1, length_, length_ + T).copy_from(v_BTKE);
  length_ += T;
}

}  // namespace llatte
