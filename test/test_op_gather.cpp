// gather: places of a dimension by index, repeated ones, left out ones, and zeros for -1.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "test/op_case.h"

using namespace llatte;
using namespace llatte::test;

namespace {

using Ids = std::vector<int32_t>;

Vec gather_ref(const Vec& x, int64_t N, int64_t C, int64_t I, const Ids& index) {
  Vec y;
  for (int64_t n = 0; n < N; ++n)
    for (const int32_t c : index)
      for (int64_t i = 0; i < I; ++i) y.push_back(c < 0 ? 0 : x[static_cast<size_t>((n * C + c) * I + i)]);
  return y;
}

Tensor ids(const Ids& v, Device d = test_device()) { return from(v, {static_cast<int64_t>(v.size())}, d); }

// Values are copied. A gradient sums as many terms as an index repeats: in f32, rounded to bf16 once.
void check_gather(const Shape& shape, int dim, const Ids& index) {
  int64_t N = 1, I = 1;
  for (int d = 0; d < dim; ++d) N *= shape[static_cast<size_t>(d)];
  for (size_t d = static_cast<size_t>(dim) + 1; d < shape.size(); ++d) I *= shape[d];
  const int64_t C = shape[static_cast<size_t>(dim)];
  check({str("gather of ", shape, " along ", dim),
         {shape},
         [=](auto& v) { return gather(v[0], dim, ids(index, v[0].value.device())); },
         [=](auto& v) { return gather_ref(v[0], N, C, I, index); },
         1});
}

}  // namespace

TEST_CASE("gather: values, views, gradients") {
  check_gather({1}, 0, {0});
  check_gather({3, 31}, 1, {30, 0, 5, 5, -1, 5, 17});
  check_gather({2, 3, 33}, 2, {32, -1, 1, 0, 1, 1, -1, 31});
  check_gather({5, 31}, 0, {4, 4, -1, 0, 2, 2, 2});
  check_gather({2, 4, 3, 5}, 1, {3, 1, 1, -1, 0});
  check_gather({2, 3}, 1, {-1, -1});
}

TEST_CASE("gather: a dimension counts from the end too, and nothing may be picked") {
  const Var x = constant(from(Vec{1, 2, 3, 4}, {2, 2}));
  CHECK(to_vec(gather(x, -1, ids({1})).value) == Vec{2, 4});
  CHECK(gather(x, 0, zeros({0}, DType::i32)).shape() == Shape{0, 2});
}

TEST_CASE("gather: what does not fit is refused in words") {
  const Var x = some({2, 3});
  check_rejects([&] { gather(x, 1, ids({0, 3})); }, "index 3 at place 1 is outside [-1,3)");
  check_rejects([&] { gather(x, 1, ids({-2})); }, "index -2 at place 0");
  check_rejects([&] { gather(x, 2, ids({0})); }, "dimension 2 of a tensor of shape (2,3)");
  check_rejects([&] { gather(x, 0, zeros({1})); }, "index must be i32, not f32");
  check_rejects([&] { gather(x, 0, zeros({1, 1}, DType::i32)); }, "index must be (M)");
}
