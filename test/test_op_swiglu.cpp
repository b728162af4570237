// swiglu: silu(gate) * up.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "test/op_case.h"

using namespace llatte;
using namespace llatte::test;

namespace {
Vec swiglu_ref(const Vec& gate, const Vec& up) {
  Vec y(gate.size());
  for (size_t i = 0; i < y.size(); ++i) y[i] = gate[i] / (1 + std::exp(-gate[i])) * up[i];
  return y;
}
}  // namespace

TEST_CASE("swiglu: values, views, gradients") {
  for (int64_t F : {1, 31, 33, 64})  // arithmetic in f32, the result rounded once
    check({str("swiglu ", F),
           {{2, 3, F}, {2, 3, F}},
           [](auto& v) { return swiglu(v[0], v[1]); },
           [](auto& v) { return swiglu_ref(v[0], v[1]); },
           1});
}

TEST_CASE("large gates neither overflow nor turn into NaN") {
  const Var gate = leaf(from(Vec{-1000, -100, 0, 100, 1000}, {5}).to(DType::f32));
  const Var y = swiglu(gate, constant(full({5}, 1)));
  backward(y, full({5}, 1));
  // silu is 0 or the identity there, to far below f32.
  check_near("value", to_vec(y.value), {0, 0, 0, 100, 1000}, 1e-6);
  check_near("gradient", to_vec(gate.grad()), {0, 0, 0.5, 1, 1}, 1e-6);
}

TEST_CASE("swiglu: what does not fit is refused in words") {
  check_rejects([] { swiglu(some({2, 3}), some({2, 4})); }, "swiglu: shapes (2,3) and (2,4) differ");
  check_rejects([] { swiglu(some({2}), some({2}, DType::bf16)); }, "swiglu: inputs are f32 and bf16");
}
