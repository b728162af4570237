// linear, with and without bias, over any leading dimensions.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "tensor/alloc.h"
#include "test/op_case.h"

using namespace llatte;
using namespace llatte::test;

namespace {

Vec linear_ref(const Vec& x, const Vec& w, const Vec& b, int64_t I, int64_t O) {
  const int64_t N = static_cast<int64_t>(x.size()) / I;
  Vec y(N * O, 0.0);
  for (int64_t n = 0; n < N; ++n)
    for (int64_t o = 0; o < O; ++o) {
      y[n * O + o] = b.empty() ? 0 : b[o];
      for (int64_t i = 0; i < I; ++i) y[n * O + o] += x[n * I + i] * w[o * I + i];
    }
  return y;
}

void check_linear(const Shape& x, int64_t O) {
  const int64_t I = x.back();
  check({str("linear ", x, " to ", O),
         {x, {O, I}},
         [](auto& v) { return linear(v[0], v[1]); },
         [=](auto& v) { return linear_ref(v[0], v[1], {}, I, O); },
         1});
  // The product is rounded, then the sum.
  check({str("linear with bias ", x, " to ", O),
         {x, {O, I}, {O}},
         [](auto& v) { return linear(v[0], v[1], v[2]); },
         [=](auto& v) { return linear_ref(v[0], v[1], v[2], I, O); },
         2});
}

}  // namespace

TEST_CASE("linear: values, views, gradients") {
  check_linear({2, 5, 33}, 31);
  check_linear({64}, 7);
  check_linear({3, 1}, 64);
  check_linear({1, 31}, 1);
}

TEST_CASE("a frozen weight costs no weight gradient") {
  const Var x = leaf(full({4, 64}, 1)), w = some({4096, 64});
  const Var y = linear(x, w);
  const Tensor dy = full(y.shape(), 1);
  reset_alloc_stats(test_device());
  backward(y, dy);
  CHECK(alloc_stats(test_device()).largest_request < 4096 * 64 * 4);  // dw would have been this large
  CHECK(x.grad().defined());
}

TEST_CASE("linear: what does not fit is refused in words") {
  check_rejects([] { linear(some({2, 3}), some({5, 4})); }, "inner sizes 3 and 4 differ");
  check_rejects([] { linear(some({2, 3}), some({3})); }, "linear: x must be (..,I) and w (O,I)");
  check_rejects([] { linear(some({}), some({3, 1})); }, "linear: x must be (..,I)");
  check_rejects([] { linear(some({2, 3}), some({5, 3}), some({4})); }, "but b is (4), expected (5)");
  check_rejects([] { linear(some({2, 3}), some({5, 3}, DType::bf16)); }, "f32 and bf16");
}
