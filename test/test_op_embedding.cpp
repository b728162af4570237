// embedding: rows of a table by id, and the sum of their gradients.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "test/op_case.h"

using namespace llatte;
using namespace llatte::test;

namespace {

void check_embedding(const std::vector<int32_t>& ids, const Shape& shape, int64_t V, int64_t D) {
  // Values are copied; gradients are summed in f32: nothing is rounded but the comparison's own result.
  check({str("embedding of ", shape, " in ", Shape{V, D}),
         {{V, D}},
         [=](auto& v) { return embedding(from(ids, shape, v[0].value.device()), v[0]); },
         [=](auto& v) {
           Vec y;
           for (int32_t id : ids) y.insert(y.end(), v[0].begin() + id * D, v[0].begin() + (id + 1) * D);
           return y;
         },
         1});
}

}  // namespace

TEST_CASE("embedding: values and gradients, ids that repeat, ids that never occur") {
  check_embedding({0}, {1}, 1, 1);
  check_embedding({4, 0, 4, 2, 4, 4}, {2, 3}, 5, 31);
  check_embedding({32, 1, 1}, {3}, 33, 64);
}

TEST_CASE("ids may be a strided view") {
  const Tensor ids = from(std::vector<int32_t>{0, 9, 1, 9, 2, 9}, {3, 2}).slice(1, 0, 1);
  const Var y = embedding(ids, constant(from(Vec{1, 2, 3}, {3, 1})));
  CHECK(y.shape() == Shape{3, 1, 1});
  CHECK(to_vec(y.value) == Vec{1, 2, 3});
}

TEST_CASE("embedding: what does not fit is refused in words") {
  const Tensor ids = from(std::vector<int32_t>{0, 7}, {2});
  const Tensor below = from(std::vector<int32_t>{-1}, {1});
  check_rejects([&] { embedding(ids, some({5, 3})); }, "7");
  check_rejects([&] { embedding(below, some({5, 3})); }, "-1");
  check_rejects([&] { embedding(ids, some({5})); }, "w must be (V,D), got (5)");
  check_rejects([&] { embedding(zeros({2}), some({5, 3})); }, "ids must be i32, not f32");
}
