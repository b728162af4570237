// reshape, transpose, slice, concat, cast. They move numbers, so values are exact in every dtype.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "test/op_case.h"

using namespace llatte;
using namespace llatte::test;

namespace {

// y[j][i] = x[i][j]
Vec transposed(const Vec& x, int64_t I, int64_t J) {
  Vec y(x.size());
  for (int64_t i = 0; i < I; ++i)
    for (int64_t j = 0; j < J; ++j) y[j * I + i] = x[i * J + j];
  return y;
}

// Columns [a,b) of rows of width W.
Vec columns(const Vec& x, int64_t W, int64_t a, int64_t b) {
  Vec y;
  for (size_t r = 0; r < x.size() / W; ++r) y.insert(y.end(), x.begin() + r * W + a, x.begin() + r * W + b);
  return y;
}

Vec joined(const Vec& a, const Vec& b, int64_t A, int64_t B) {
  Vec y;
  for (size_t r = 0; r < a.size() / A; ++r) {
    y.insert(y.end(), a.begin() + r * A, a.begin() + (r + 1) * A);
    y.insert(y.end(), b.begin() + r * B, b.begin() + (r + 1) * B);
  }
  return y;
}

}  // namespace

TEST_CASE("reshape, transpose, slice, concat: values, views, gradients") {
  check({"reshape",
         {{3, 31, 2}},
         [](auto& v) {
           return reshape(v[0], {31, -1});
         },
         [](auto& v) { return v[0]; }});
  check({"transpose",
         {{33, 31}},
         [](auto& v) { return transpose(v[0], 0, 1); },
         [](auto& v) { return transposed(v[0], 33, 31); }});
  check({"transpose by negative dimensions",
         {{5, 7}},
         [](auto& v) { return transpose(v[0], -1, -2); },
         [](auto& v) { return transposed(v[0], 5, 7); }});
  check({"slice",
         {{3, 2, 31}},
         [](auto& v) { return slice(v[0], -1, 4, 21); },
         [](auto& v) { return columns(v[0], 31, 4, 21); }});
  check({"slice of rows",
         {{7, 3}},
         [](auto& v) { return slice(v[0], 0, 2, 5); },
         [](auto& v) { return Vec(v[0].begin() + 6, v[0].begin() + 15); }});
  check({"concat",
         {{3, 2, 31}, {3, 2, 1}},
         [](auto& v) { return concat(v[0], v[1], -1); },
         [](auto& v) { return joined(v[0], v[1], 31, 1); }});
  check({"concat of rows",
         {{2, 33}, {5, 33}},
         [](auto& v) { return concat(v[0], v[1], 0); },
         [](auto& v) { return joined(v[0], v[1], 66, 165); }});
}

TEST_CASE("slice then concat gives the tensor back, and its gradient is exact") {
  const Var x = leaf(from(Vec{1, 2, 3, 4, 5, 6}, {2, 3}));
  const Var y = concat(slice(x, 1, 0, 1), slice(x, 1, 1, 3), 1);
  CHECK(to_vec(y.value) == to_vec(x.value));
  const Vec c{1, -2, 3, -4, 5, -6};
  backward(y, from(c, {2, 3}));
  CHECK(to_vec(x.grad()) == c);
}

TEST_CASE("cast rounds once on the way up and keeps f32 gradients of bf16 leaves whole") {
  const float third = 1.0f / 3;
  const Var x = leaf(from(std::vector<float>{third}, {1}));
  const Var y = cast(x, DType::bf16);
  CHECK(y.value.item() == double(float(bf16(third))));
  backward(y, full({1}, 2, DType::bf16));
  CHECK(x.grad().dtype() == DType::f32);
  CHECK(x.grad().item() == 2);

  const Var b = leaf(full({1}, 1, DType::bf16));
  backward(cast(b, DType::f32), from(std::vector<float>{third}, {1}));
  CHECK(b.grad().dtype() == DType::f32);
  CHECK(b.grad().item() == double(third));  // not rounded to bf16
}

TEST_CASE("views are views: no copy on the way forward") {
  const Var x = some({4, 6});
  CHECK(transpose(x, 0, 1).value.raw() == x.value.raw());
  CHECK(reshape(x, {24}).value.raw() == x.value.raw());
  CHECK(slice(x, 0, 0, 2).value.raw() == x.value.raw());
}

TEST_CASE("shapes: what does not fit is refused in words") {
  check_rejects([] { reshape(some({2, 3}), {4, 2}); }, "do not fill (4,2)");
  check_rejects([] { reshape(some({2, 3}), {4, -1}); }, "do not fill (4,-1)");
  check_rejects([] { transpose(some({2, 3}), 0, 2); }, "transpose: dimensions 0 and 2");
  check_rejects([] { slice(some({2, 3}), 1, 2, 5); }, "[2,5) of dimension 1");
  check_rejects([] { slice(some({2, 3}), 2, 0, 1); }, "slice: dimension 2");
  check_rejects([] { concat(some({2, 3}), some({3, 3}), 1); }, "concat: shapes (2,3) and (3,3)");
  check_rejects([] { concat(some({2, 3}), some({2}), 0); }, "concat: shapes (2,3) and (2)");
  check_rejects([] { concat(some({2, 3}), some({2, 3}), 2); }, "concat: dimension 2");
  check_rejects([] { concat(some({2, 3}), some({2, 3}, DType::f64), 0); }, "f32 and f64");
  check_rejects([] { cast(some({2}), DType::i32); }, "not i32");
}
