// softmax over the last dimension.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "test/op_case.h"

using namespace llatte;
using namespace llatte::test;

namespace {
Vec softmax_ref(const Vec& x, size_t D) {
  Vec y(x.size());
  for (size_t n = 0; n < x.size() / D; ++n) {
    double sum = 0;
    for (size_t d = 0; d < D; ++d) sum += std::exp(x[n * D + d]);
    for (size_t d = 0; d < D; ++d) y[n * D + d] = std::exp(x[n * D + d]) / sum;
  }
  return y;
}
}  // namespace

TEST_CASE("softmax: values, views, gradients") {
  // The gradient is made from the rounded output: two roundings and its own.
  for (int64_t D : {1, 31, 33, 64})
    check({str("softmax ", D),
           {{2, 3, D}},
           [](auto& v) { return softmax(v[0]); },
           [=](auto& v) { return softmax_ref(v[0], size_t(D)); },
           3});
}

TEST_CASE("large inputs: the maximum is taken off first") {
  const Var y = softmax(constant(from(Vec{1000, 1000, -1000}, {1, 3}).to(DType::f32)));
  check_near("value", to_vec(y.value), {0.5, 0.5, 0}, 1e-7);  // one f32 rounding
}

TEST_CASE("softmax: what does not fit is refused in words") {
  check_rejects([] { softmax(some({})); }, "softmax: x must be (..,D), got ()");
  check_rejects([] { softmax(some({2}, DType::i32)); }, "softmax: x must be f32, bf16 or f64, not i32");
}
