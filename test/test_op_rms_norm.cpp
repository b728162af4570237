// rms_norm: over rows (the model's norms) and over each head (Qwen3).
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "test/op_case.h"

using namespace llatte;
using namespace llatte::test;

namespace {

Vec rms_norm_ref(const Vec& x, const Vec& w, double eps) {
  const size_t D = w.size();
  Vec y(x.size());
  for (size_t n = 0; n < x.size() / D; ++n) {
    double squares = 0;
    for (size_t d = 0; d < D; ++d) squares += x[n * D + d] * x[n * D + d];
    for (size_t d = 0; d < D; ++d) y[n * D + d] = x[n * D + d] * w[d] / std::sqrt(squares / double(D) + eps);
  }
  return y;
}

void check_rms_norm(const Shape& x, double eps) {
  // Statistics and products are in f32; the result is rounded once, and perhaps x * r before it.
  check({str("rms_norm ", x),
         {x, {x.back()}},
         [=](auto& v) { return rms_norm(v[0], v[1], eps); },
         [=](auto& v) { return rms_norm_ref(v[0], v[1], eps); },
         2});
}

}  // namespace

TEST_CASE("rms_norm: values, views, gradients") {
  // Width 1 turns any x into +-1, and its derivative is eps over a cube: a larger eps keeps that tame.
  check_rms_norm({2, 3, 1}, 0.1);
  for (int64_t D : {31, 33, 64, 384}) check_rms_norm({2, 3, D}, 1e-5);
  check_rms_norm({2, 5, 3, 32}, 1e-6);  // per head
  check_rms_norm({7}, 1e-5);
}

TEST_CASE("a row of zeros gives zeros, thanks to eps") {
  const Var x = leaf(zeros({2, 33}));
  const Var y = rms_norm(x, constant(full({33}, 2)), 1e-5);
  backward(y, full({2, 33}, 1));
  check_near("value", to_vec(y.value), Vec(66, 0.0), 0);
  check_near("gradient", to_vec(x.grad()), Vec(66, 2 / std::sqrt(1e-5)), 2e-6);  // dy w r
}

TEST_CASE("rms_norm: what does not fit is refused in words") {
  check_rejects(
      [] {
        rms_norm(some({2, 3}), some({4}), 1e-5);
      },
      "rms_norm: x is (2,3) but w is (4), expected (3)");
  check_rejects([] { rms_norm(some({}), some({1}), 1e-5); }, "rms_norm: x must be (..,D), got ()");
  check_rejects([] { rms_norm(some({2, 3}), some({3}, DType::f64), 1e-5); }, "f32 and f64");
  check_rejects([] { rms_norm(some({2, 3}), some({3}), -1); }, "eps is -1");
}
