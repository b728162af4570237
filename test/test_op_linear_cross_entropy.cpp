// linear_cross_entropy: the mean over the rows that count, their gradients, and rows that do not count.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "tensor/alloc.h"
#include "test/op_case.h"

using namespace llatte;
using namespace llatte::test;

namespace {

using Ids = std::vector<int32_t>;

double row_loss(const double* x, const Vec& w, int64_t D, int32_t target) {
  const int64_t V = static_cast<int64_t>(w.size()) / D;
  double sum = 0, at_target = 0;
  for (int64_t v = 0; v < V; ++v) {
    double z = 0;
    for (int64_t d = 0; d < D; ++d) z += x[d] * w[v * D + d];
    sum += std::exp(z);
    if (v == target) at_target = z;
  }
  return std::log(sum) - at_target;
}

Vec loss_ref(const Vec& x, const Vec& w, const Ids& targets, int64_t D, int32_t ignore) {
  double sum = 0, kept = 0;
  for (size_t n = 0; n < targets.size(); ++n)
    if (targets[n] != ignore) sum += row_loss(&x[n * D], w, D, targets[n]), ++kept;
  return {kept > 0 ? sum / kept : 0};
}

void check_loss(const Shape& rows, const Ids& targets, int64_t D, int64_t V, int32_t ignore = -100) {
  Shape x = rows;
  x.push_back(D);
  // bf16: logits are f32; their gradient is rounded for the products, then the result, which has order 1.
  check({str("linear_cross_entropy ", x, " V=", V),
         {x, {V, D}},
         [=](auto& v) {
           return linear_cross_entropy(v[0], v[1], from(targets, rows, v[0].value.device()), ignore);
         },
         [=](auto& v) { return loss_ref(v[0], v[1], targets, D, ignore); },
         2});
}

Ids some_targets(int64_t N, int64_t V) {
  std::mt19937 rng(3);
  Ids t(static_cast<size_t>(N));
  for (int32_t& e : t) e = static_cast<int32_t>(rng() % static_cast<uint64_t>(V));
  return t;
}

}  // namespace

TEST_CASE("linear_cross_entropy: values, views, gradients") {
  check_loss({1}, {0}, 1, 1);
  check_loss({2, 3}, some_targets(6, 33), 5, 33);
  check_loss({5}, {3, -100, 30, 0, -100}, 8, 31);
  check_loss({5}, {3, 0, 30, 0, 0}, 8, 31, 0);
  check_loss({137}, some_targets(137, 65), 7, 65);  // more rows than any chunk
}

TEST_CASE("the loss is kept in acc and has no shape") {
  const Tensor t = zeros({2}, DType::i32);
  const Var y = linear_cross_entropy(some({2, 3}, DType::bf16), some({5, 3}, DType::bf16), t);
  CHECK(y.shape() == Shape{});
  CHECK(y.value.dtype() == DType::f32);
  CHECK(std::abs(y.value.item() - std::log(5.0)) < 1e-6);  // equal logits; f32 carries 1e-7 of it
}

TEST_CASE("when every row is ignored the loss is 0, the gradients are 0, and nothing is NaN") {
  const Var x = leaf(full({3, 4}, 1)), w = leaf(full({5, 4}, 1));
  const Var y = linear_cross_entropy(x, w, full({3}, -100, DType::i32));
  CHECK(y.value.item() == 0);
  backward(y);
  CHECK(to_vec(x.grad()) == Vec(12, 0.0));
  CHECK(to_vec(w.grad()) == Vec(20, 0.0));
}

TEST_CASE("logits far from 0 do not overflow") {
  const Var x = leaf(from(Vec{100}, {1, 1}).to(DType::f32));
  const Var w = constant(from(Vec{-10, 10}, {2, 1}).to(DType::f32));
  const Var y = linear_cross_entropy(x, w, zeros({1}, DType::i32));
  backward(y);
  CHECK(y.value.item() == 2000);
  CHECK(x.grad().item() == 20);
}

TEST_CASE("no [N,V] tensor: logits exist a chunk of rows at a time") {
  const int64_t N = 2048, D = 8, V = 1024;
  const Var x = leaf(full({N, D}, 1)), w = leaf(full({V, D}, 1));
  const Tensor t = zeros({N}, DType::i32);
  reset_alloc_stats(test_device());
  backward(linear_cross_entropy(x, w, t));
  CHECK(alloc_stats(test_device()).largest_request <= N * V * 4 / 4);
}

TEST_CASE("without gradients, none are made") {
  const Var x = leaf(full({2, 64}, 1)), w = leaf(full({999, 64}, 1));
  const Tensor t = zeros({2}, DType::i32);
  const NoGrad off;
  reset_alloc_stats(test_device());
  CHECK(linear_cross_entropy(x, w, t).node == nullptr);
  CHECK(alloc_stats(test_device()).largest_request < 999 * 64 * 4);
}

TEST_CASE("linear_cross_entropy: what does not fit is refused in words") {
  const auto targets = [](const Ids& ids) { return from(ids, {int64_t(ids.size())}); };
  const Var x = some({2, 3}), w = some({5, 3});
  check_rejects([&] { linear_cross_entropy(x, w, targets({0, 5})); }, "target 5 at row 1");
  check_rejects([&] { linear_cross_entropy(x, w, targets({-1, 0})); }, "target -1 at row 0");
  check_rejects([&] { linear_cross_entropy(x, w, targets({0})); }, "targets must be (2), got (1)");
  check_rejects([&] { linear_cross_entropy(x, some({5, 4}), targets({0, 0})); }, "(2,3) and (5,4)");
  check_rejects([&] { linear_cross_entropy(x, w, zeros({2})); }, "targets must be i32, not f32");
  check_rejects([&] { linear_cross_entropy(some({0, 3}), w, zeros({0}, DType::i32)); }, "has no rows");
}
