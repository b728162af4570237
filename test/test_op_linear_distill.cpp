// linear_distill: value and gradients of kl and cross-entropy together, its parts, rows that do not count.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "tensor/alloc.h"
#include "tensor/kernels.h"
#include "test/op_case.h"

using namespace llatte;
using namespace llatte::test;

namespace {

using Ids = std::vector<int32_t>;

// log softmax(x w^T / tau) of one row.
Vec log_softmax(const double* x, const Vec& w, int64_t D, double tau) {
  Vec z(w.size() / D);
  double sum = 0;
  for (size_t v = 0; v < z.size(); ++v) {
    for (int64_t d = 0; d < D; ++d) z[v] += x[d] * w[v * D + d] / tau;
    sum += std::exp(z[v]);
  }
  for (double& e : z) e -= std::log(sum);
  return z;
}

struct Teacher {
  Vec x, w;
  int64_t D;
};

// {kl, ce} of one row.
std::pair<double, double> row_ref(const double* x, const double* tx, const Vec& w, const Teacher& t,
                                  int64_t D, int32_t target, double tau) {
  const Vec q = log_softmax(x, w, D, tau), p = log_softmax(tx, t.w, t.D, tau);
  double kl = 0;
  for (size_t v = 0; v < q.size(); ++v) kl += std::exp(p[v]) * (p[v] - q[v]);
  return {tau * tau * kl, -log_softmax(x, w, D, 1)[target]};
}

Vec loss_ref(const Vec& x, const Vec& w, const Teacher& t, const Ids& targets, int64_t D,
             const DistillRule& r) {
  double sum = 0, kept = 0;
  for (size_t n = 0; n < targets.size(); ++n) {
    if (targets[n] == -100) continue;
    const auto [kl, ce] = row_ref(&x[n * D], &t.x[n * t.D], w, t, D, targets[n], r.temperature);
    sum += r.weight * kl + (1 - r.weight) * ce, ++kept;
  }
  return {kept > 0 ? sum / kept : 0};
}

void check_loss(const Ids& targets, int64_t D, int64_t V, int64_t teacher_D, const DistillRule& r) {
  const auto N = static_cast<int64_t>(targets.size());
  std::mt19937 rng(9);
  const Teacher teacher{noise(N * teacher_D, rng), noise(V * teacher_D, rng), teacher_D};
  const auto of = [=](const Vec& v, int64_t rows, const Tensor& like) {
    return to_tensor(v, {rows, teacher_D}, like.dtype(), like.device());
  };
  // bf16: as linear_cross_entropy, logits are f32; their gradient is rounded for the products, then the
  // result.
  check({str("linear_distill N=", N, " V=", V, " weight=", r.weight, " tau=", r.temperature),
         {{N, D}, {V, D}},
         [=](auto& v) {
           const Tensor& x = v[0].value;
           return linear_distill(v[0], v[1], of(teacher.x, N, x), of(teacher.w, V, x),
                                 from(targets, {N}, x.device()), r)
               .loss;
         },
         [=](auto& v) { return loss_ref(v[0], v[1], teacher, targets, D, r); },
         2});
}

Ids some_targets(int64_t N, int64_t V) {
  std::mt19937 rng(3);
  Ids t(static_cast<size_t>(N));
  for (int32_t& e : t) e = static_cast<int32_t>(rng() % static_cast<uint64_t>(V));
  return t;
}

DistillLoss distil(const Var& x, const Var& w, const DistillRule& r) {
  return linear_distill(x, w, full({2, 3}, 1), full({5, 3}, 1), zeros({2}, DType::i32), r);
}

}  // namespace

TEST_CASE("linear_distill: values, views, gradients") {
  for (const DistillRule r : {DistillRule{1, 1}, {0.3, 1}, {0.6, 2.5}, {1, 0.5}, {0, 3}}) {
    check_loss({0}, 1, 2, 1, r);
    check_loss({3, -100, 30, 0, -100}, 8, 31, 5, r);
  }
  check_loss(some_targets(137, 65), 7, 65, 9, {0.5, 1.5});  // more rows than any chunk
}

TEST_CASE("the parts are those the loss is made of, and a teacher that agrees has kl 0") {
  const Tensor targets = from(Ids{1, 4}, {2});
  std::mt19937 rng(1);
  const Tensor x = to_tensor(noise(6, rng), {2, 3}, DType::f64),
               w = to_tensor(noise(15, rng), {5, 3}, DType::f64);
  const DistillLoss same = linear_distill(constant(x), constant(w), x, w, targets, {0.25, 2});
  CHECK(std::abs(same.kl.item()) < 1e-14);  // differences of numbers of order 1
  CHECK(near(same.ce.item(), linear_cross_entropy(constant(x), constant(w), targets).value.item(), 1e-14));
  CHECK(near(same.loss.value.item(), 0.75 * same.ce.item(), 1e-14));
  const Tensor tx = to_tensor(noise(6, rng), {2, 3}, DType::f64);
  const DistillLoss other = linear_distill(constant(x), constant(w), tx, w, targets, {0.25, 2});
  CHECK(other.kl.item() > 0.01);
  CHECK(near(other.loss.value.item(), 0.25 * other.kl.item() + 0.75 * other.ce.item(), 1e-14));
}

TEST_CASE("when every row is ignored loss and gradients are 0") {
  const Var x = leaf(full({2, 3}, 1)), w = leaf(full({5, 3}, 1));
  const DistillLoss d =
      linear_distill(x, w, full({2, 3}, 1), full({5, 3}, 2), full({2}, -100, DType::i32), {0.5, 1});
  CHECK(d.loss.value.item() == 0);
  backward(d.loss);
  CHECK(to_vec(x.grad()) == Vec(6, 0.0));
  CHECK(to_vec(w.grad()) == Vec(15, 0.0));
}

TEST_CASE("no [N,V] tensor: logits exist a chunk of rows at a time") {
  const int64_t N = 2048, D = 8, V = 1024;
  const Var x = leaf(full({N, D}, 1)), w = leaf(full({V, D}, 1));
  const Tensor tx = full({N, D}, 1), tw = full({V, D}, 1), t = zeros({N}, DType::i32);
  reset_alloc_stats(test_device());
  backward(linear_distill(x, w, tx, tw, t, {0.5, 1}).loss);
  CHECK(alloc_stats(test_device()).largest_request <= N * V * 4 / 4);
}

TEST_CASE("a NaN on either side is seen") {
  const Tensor good = full({2, 3}, 1), targets = zeros({2}, DType::i32);
  const Tensor bad = to_tensor({1, 1, 1, 1, NAN, 1}, {2, 3}, DType::f32);
  const Tensor w = full({5, 3}, 1);
  CHECK(std::isnan(linear_distill(constant(bad), constant(w), good, w, targets, {1, 1}).kl.item()));
  CHECK(std::isnan(linear_distill(constant(good), constant(w), bad, w, targets, {1, 1}).kl.item()));
}

TEST_CASE("linear_distill: what does not fit is refused in words") {
  const Var x = some({2, 3}), w = some({5, 3});
  check_rejects([&] { distil(x, some({6, 3}), {1, 1}); }, "same rows and vocabulary, got (2,3) and (5,3)");
  check_rejects([&] { distil(some({3, 3}), w, {1, 1}); }, "targets must be (3), got (2)");
  check_rejects([&] { distil(some({2, 3}, DType::f64), w, {1, 1}); }, "inputs are f64 and f32");
  check_rejects([&] { distil(x, w, {1.5, 1}); }, "weight 1.5 must be in [0,1]");
  check_rejects([&] { distil(x, w, {1, 0}); }, "temperature 0 must be positive");
  check_rejects(
      [&] {
        linear_distill(x, w, full({2, 3}, 1), full({5, 3}, 1), from(Ids{0, 5}, {2}), {1, 1});
      },
      "target 5 at row 1");
}
