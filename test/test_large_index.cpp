// Offsets that 32 bits do not hold. The tensors are large, but only a few rows of them are ever touched.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>
#include "tensor/kernels.h"
#include "test/near.h"
#include "test/on_device.h"

using namespace llatte;
using namespace llatte::test;

namespace {

constexpr int64_t kApart = int64_t(1) << 30;  // numbers between rows: row 2 begins at 2^31

// Rows of `shape` = (3, ...), each kApart after the one before it.
Tensor far_apart(const Shape& shape) {
  const int64_t row = numel_of(shape) / shape[0] / shape[1];
  Shape all = shape;
  all[1] = kApart / row;
  return empty(all, DType::bf16).slice(1, 0, shape[1]);
}

Tensor noise_bf16(const Shape& shape, unsigned seed) {
  std::mt19937 rng(seed);
  return to_tensor(noise(numel_of(shape), rng), shape, DType::bf16);
}

}  // namespace

TEST_CASE("copies to and from rows that lie 2^30 numbers apart") {
  for (const int64_t columns : {int64_t(3), int64_t(64)}) {  // number by number, and in packs
    const Tensor x = noise_bf16({3, columns}, 1);
    Tensor far = far_apart({3, columns});
    far.copy_from(x);
    CHECK(to_vec(far) == to_vec(x));
    CHECK(to_vec(far.contiguous().to(DType::f32)) == to_vec(x));
  }
}

TEST_CASE("attention reads a cache whose sequences lie 2^30 numbers apart") {
  const Tensor q = noise_bf16({3, 1, 4, 8}, 2), k = noise_bf16({3, 5, 2, 8}, 3),
               v = noise_bf16({3, 5, 2, 8}, 4);
  Tensor cache = far_apart({3, 5, 2, 8}), o = empty({3, 1, 4, 8}, DType::bf16),
         want = empty({3, 1, 4, 8}, DType::bf16);
  Tensor lse = empty({3, 4, 1});
  kernels::attention_fwd(q, k, v, 0.3, want, lse);
  cache.copy_from(k);
  kernels::attention_fwd(q, cache, v, 0.3, o, lse);
  CHECK(to_vec(o) == to_vec(want));
  cache.copy_from(v);
  kernels::attention_fwd(q, k, cache, 0.3, o, lse);
  CHECK(to_vec(o) == to_vec(want));
}
