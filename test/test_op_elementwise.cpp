// add, mul, scale.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "test/op_case.h"

using namespace llatte;
using namespace llatte::test;

namespace {
template <class F>
Vec zip(const Vec& a, const Vec& b, F f) {
  Vec y(a.size());
  for (size_t i = 0; i < a.size(); ++i) y[i] = f(a[i], b[i]);
  return y;
}
}  // namespace

TEST_CASE("add, mul, scale") {
  for (int64_t D : {1, 31, 33, 64}) {
    const Shape s{3, D};
    // One rounding each way.
    check({"add",
           {s, s},
           [](auto& v) { return add(v[0], v[1]); },
           [](auto& v) { return zip(v[0], v[1], std::plus<>()); },
           1});
    check({"mul",
           {s, s},
           [](auto& v) { return mul(v[0], v[1]); },
           [](auto& v) { return zip(v[0], v[1], std::multiplies<>()); },
           1});
    check({"scale",
           {s},
           [](auto& v) { return scale(v[0], -0.3); },
           [](auto& v) { return zip(v[0], v[0], [](double a, double) { return -0.3 * a; }); },
           1});
  }
}

TEST_CASE("a tensor without elements is no accident") {
  CHECK(add(some({0, 3}), some({0, 3})).shape() == Shape{0, 3});
}

TEST_CASE("elementwise: what does not fit is refused in words") {
  check_rejects([] { add(some({2, 3}), some({3, 2})); }, "add: shapes (2,3) and (3,2) differ");
  check_rejects([] { mul(some({2}), some({2}, DType::f64)); }, "mul: inputs are f32 and f64");
  check_rejects([] { add(some({2}, DType::i32), some({2}, DType::i32)); }, "not i32");
  check_rejects([] { scale(constant(Tensor()), 2); }, "scale: x was never set");
}
