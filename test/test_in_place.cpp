// Kernels whose row in tensor/kernels.h lets the result be one of the inputs: the same bits as into a tensor
// of its own.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>
#include "tensor/kernels.h"
#include "test/near.h"
#include "test/on_device.h"

using namespace llatte;
using namespace llatte::test;

namespace {

const DType kTypes[] = {DType::f32, DType::bf16, DType::f64};

Tensor random_tensor(const Shape& shape, DType t, unsigned seed) {
  std::mt19937 rng(seed);
  return to_tensor(noise(numel_of(shape), rng), shape, t);
}

// op(x, y) writes y.
template <class Op>
void check_in_place(const char* what, const Tensor& x, Op&& op) {
  Tensor apart = Tensor::empty_like(x), same = x.clone();
  op(x, apart);
  op(same, same);
  CHECK_MESSAGE(to_vec(same) == to_vec(apart), what << " in " << name(x.dtype()));
}

}  // namespace

TEST_CASE("rope turns a tensor in its place, whole packs and tails") {
  for (const DType t : kTypes)
    for (const int64_t P : {1, 3, 8, 37}) {
      const Tensor pos = from<int32_t>({4, 0, 2}, {3});
      const Tensor cos = random_tensor({5, P}, acc_dtype(t), 1), sin = random_tensor({5, P}, acc_dtype(t), 2);
      for (const bool inverse : {false, true})
        check_in_place("rope", random_tensor({3, 5, 2 * P}, t, 3), [&](const Tensor& x, Tensor& y) {
          kernels::rope(x, cos, sin, pos, Tensor(), inverse, y);
        });
    }
}

TEST_CASE("elementwise kernels write over an input") {
  for (const DType t : kTypes)
    for (const int64_t n : {1, 33, 1000}) {
      const Tensor b = random_tensor({n}, t, 4), x = random_tensor({n}, t, 5);
      check_in_place("add", x, [&](const Tensor& a, Tensor& y) { kernels::add(a, b, y); });
      check_in_place("add", x, [&](const Tensor& a, Tensor& y) { kernels::add(b, a, y); });
      check_in_place("mul", x, [&](const Tensor& a, Tensor& y) { kernels::mul(a, b, y); });
      check_in_place("mul", x, [&](const Tensor& a, Tensor& y) { kernels::mul(a, a, y); });
      check_in_place("scale", x, [&](const Tensor& a, Tensor& y) { kernels::scale(a, -3.0, y); });
    }
}

TEST_CASE("causal softmax, one head's matrix") {
  for (const DType t : {DType::f32, DType::f64})
    for (const int64_t T : {1, 31, 70})
      check_in_place("causal_softmax", random_tensor({T, T}, t, 6),
                     [&](const Tensor& z, Tensor& p) { kernels::causal_softmax_fwd(z, 0.7, p); });
}
