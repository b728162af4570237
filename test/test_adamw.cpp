// AdamW against a double-precision reference of torch's rule, on several parameters and steps: moments, bias
// correction, decoupled decay, clipping by the global norm, f32 masters of bf16 parameters, saved state.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>
#include <cmath>
#include <random>
#include "autograd/ops.h"
#include "optim/adamw.h"
#include "test/on_device.h"

using namespace llatte;
using namespace llatte::test;

namespace {

struct Toy : Module {
  Var w, gain, frozen;
  explicit Toy(DType t, uint64_t seed = 1) {
    std::mt19937_64 rng(seed);
    w = leaf(random({5, 7}, rng).to(t));
    gain = leaf(random({31}, rng).to(t));
    frozen = leaf(random({3, 3}, rng).to(t));
  }
  static Tensor random(const Shape& s, std::mt19937_64& rng) {
    std::normal_distribution<double> n;
    std::vector<double> v(size_t(numel_of(s)));
    for (double& x : v) x = n(rng);
    return from(v, s);
  }
  void params(const std::string& at, const ParamFn& f) override {
    f(at + "w", w);
    f(at + "gain", gain);
    f(at + "frozen", frozen);
  }
};

std::vector<double> values(const Tensor& t) { return t.to(DType::f64).to_vector<double>(); }

// torch.optim.AdamW (decay first, then the step), with clip_grad_norm_ before it, all in double.
struct Reference {
  AdamWConfig c;
  std::vector<std::vector<double>> w, m, v;
  std::vector<double> decay;
  int64_t t = 0;
  double step(const std::vector<std::vector<double>>& grads, double lr) {
    double sum = 0;
    for (const auto& g : grads)
      for (double x : g) sum += x * x;
    const double norm = std::sqrt(sum),
                 scale = c.clip_grad > 0 ? std::min(1.0, c.clip_grad / (norm + 1e-6)) : 1;
    ++t;
    for (size_t p = 0; p < w.size(); ++p)
      for (size_t i = 0; i < w[p].size(); ++i) {
        const double g = grads[p][i] * scale;
        w[p][i] *= 1 - lr * decay[p];
        m[p][i] = c.beta1 * m[p][i] + (1 - c.beta1) * g;
        v[p][i] = c.beta2 * v[p][i] + (1 - c.beta2) * g * g;
        const double mh = m[p][i] / (1 - std::pow(c.beta1, double(t))),
                     vh = v[p][i] / (1 - std::pow(c.beta2, double(t)));
        w[p][i] -= lr * mh / (std::sqrt(vh) + c.eps);
      }
    return norm;
  }
};

Reference reference_for(const AdamWConfig& c, const Toy& toy) {
  Reference r{c, {values(toy.w.value), values(toy.gain.value)}, {}, {}, {}, 0};
  for (const auto& w : r.w) r.m.emplace_back(w.size(), 0.0), r.v.emplace_back(w.size(), 0.0);
  r.decay = {c.weight_decay, c.decay_norms_and_biases ? c.weight_decay : 0};
  return r;
}

// Gives the parameters random gradients of their accumulation dtype; returns them widened.
std::vector<std::vector<double>> give_gradients(Toy& toy, std::mt19937_64& rng, double size) {
  std::vector<std::vector<double>> out;
  for (Var* p : {&toy.w, &toy.gain}) {
    Tensor g = Toy::random(p->shape(), rng);
    std::vector<double> v = values(g);
    for (double& x : v) x *= size;
    p->node->grad = from(v, p->shape()).to(acc_dtype(p->value.dtype()));
    out.push_back(values(p->node->grad));
  }
  return out;
}

const auto not_frozen = [](const std::string& name) { return name != "frozen"; };

void check_near(const std::vector<double>& got, const std::vector<double>& want, double tolerance) {
  REQUIRE(got.size() == want.size());
  for (size_t i = 0; i < got.size(); ++i) {
    INFO(i, ": ", got[i], " for ", want[i]);
    CHECK(std::abs(got[i] - want[i]) <= tolerance * (1 + std::abs(want[i])));  // NaN fails
  }
}

void compare(DType t, AdamWConfig c, double gradient_size, double tolerance) {
  Toy toy(t);
  AdamW optimizer(toy, c, not_frozen);
  Reference ref = reference_for(c, toy);
  std::mt19937_64 rng(7);
  for (int step = 0; step < 10; ++step) {
    const auto grads = give_gradients(toy, rng, gradient_size);
    const double want = ref.step(grads, 0.01);
    const double norm = optimizer.step(0.01);
    CHECK(norm == doctest::Approx(want).epsilon(1e-12));  // summed in f64 over the very same gradients
    CHECK_FALSE(toy.w.grad().defined());
  }
  check_near(values(optimizer.master_of("w")), ref.w[0], tolerance);
  check_near(values(optimizer.master_of("gain")), ref.w[1], tolerance);
}

}  // namespace

// f32: ten steps round each of w, m, v about thirty times, 30 * 2^-24 = 1.8e-6, and a step is 0.01 of a
// weight's size: 2e-6 holds with room. f64: the same with 2^-53.
TEST_CASE("ten steps equal the double reference") {
  AdamWConfig c;
  c.weight_decay = 0.1;
  compare(DType::f64, c, 0.01, 1e-13);
  compare(DType::f32, c, 0.01, 2e-6);
  compare(DType::bf16, c, 0.01, 2e-6);  // the masters are f32, whatever the weights are
  compare(DType::f32, c, 10.0, 2e-6);   // norm about 60: clipped
  c.clip_grad = 0;
  compare(DType::f32, c, 10.0, 2e-6);
  c.decay_norms_and_biases = true;
  compare(DType::f32, c, 0.01, 2e-6);
}

TEST_CASE("1-d parameters do not decay unless asked to") {
  for (const bool all : {false, true}) {
    Toy toy(DType::f64);
    AdamWConfig c;
    c.weight_decay = 0.5;
    c.decay_norms_and_biases = all;
    AdamW optimizer(toy, c, not_frozen);
    const double w = values(toy.w.value)[0], gain = values(toy.gain.value)[0];
    toy.w.node->grad = zeros(toy.w.shape(), DType::f64);
    toy.gain.node->grad = zeros(toy.gain.shape(), DType::f64);
    CHECK(optimizer.step(0.1) == 0);
    CHECK(values(toy.w.value)[0] == doctest::Approx(w * 0.95).epsilon(1e-14));
    CHECK(values(toy.gain.value)[0] == doctest::Approx(all ? gain * 0.95 : gain).epsilon(1e-14));
  }
}

TEST_CASE("a bf16 weight is its master, rounded") {
  Toy toy(DType::bf16);
  AdamW optimizer(toy, {}, not_frozen);
  std::mt19937_64 rng(3);
  for (int i = 0; i < 5; ++i) give_gradients(toy, rng, 1), optimizer.step(1e-4);
  CHECK(optimizer.master_of("w").dtype() == DType::f32);
  CHECK(values(toy.w.value) == values(optimizer.master_of("w").to(DType::bf16)));
  CHECK(values(toy.w.value) != values(optimizer.master_of("w")));
}

TEST_CASE("frozen parameters have no state and get no gradient") {
  Toy toy(DType::f32);
  AdamW optimizer(toy, {}, not_frozen);
  CHECK(optimizer.state().size() == 4);
  CHECK(optimizer.state_bytes() == 2 * 4 * (35 + 31));
  const Var y = matmul(toy.frozen, toy.frozen);
  CHECK(y.node == nullptr);
  CHECK_THROWS_WITH_AS(optimizer.master_of("frozen"), "adamw: no trained parameter is called 'frozen'",
                       Error);
}

TEST_CASE("a parameter without a gradient stays as it is") {
  Toy toy(DType::f32);
  AdamW optimizer(toy, {}, not_frozen);
  std::mt19937_64 rng(3);
  give_gradients(toy, rng, 1);
  toy.gain.node->grad = Tensor();
  const auto before = values(toy.gain.value);
  optimizer.step(0.1);
  CHECK(values(toy.gain.value) == before);
}

TEST_CASE("a norm that is not finite changes nothing") {
  for (const double bad : {std::nan(""), HUGE_VAL}) {
    Toy toy(DType::f32);
    AdamW optimizer(toy, {}, not_frozen);
    std::mt19937_64 rng(3);
    give_gradients(toy, rng, 1);
    auto grad = toy.w.grad().to_vector<float>();
    grad[11] = float(bad);
    toy.w.node->grad = from(grad, toy.w.shape());
    const auto w = values(toy.w.value), gain = values(toy.gain.value);
    CHECK_FALSE(std::isfinite(optimizer.step(0.1)));
    CHECK(values(toy.w.value) == w);
    CHECK(values(toy.gain.value) == gain);
    CHECK(optimizer.steps() == 0);
    for (const OptimizerTensor& t : optimizer.state())
      for (double x : values(t.get())) CHECK(x == 0);
  }
}

TEST_CASE("saved state continues bit for bit") {
  for (const DType t : {DType::f32, DType::bf16}) {
    Toy a(t), b(t);
    AdamW first(a, {}, not_frozen);
    std::mt19937_64 rng(5);
    for (int i = 0; i < 3; ++i) give_gradients(a, rng, 1), first.step(0.01);
    std::map<std::string, Tensor> saved;
    for (const OptimizerTensor& s : first.state()) saved[s.name] = s.get().clone();
    AdamW second(b, {}, not_frozen);
    b.w.value.copy_from(a.w.value);
    b.gain.value.copy_from(a.gain.value);
    second.load_state(first.steps(), [&](const std::string& name, const Shape&) { return saved.at(name); });
    std::mt19937_64 same = rng;
    for (int i = 0; i < 3; ++i) {
      give_gradients(a, rng, 1), first.step(0.01);
      give_gradients(b, same, 1), second.step(0.01);
    }
    CHECK(values(a.w.value) == values(b.w.value));
    CHECK(values(first.master_of("gain")) == values(second.master_of("gain")));
    CHECK(second.steps() == 6);
  }
}

TEST_CASE("state of another shape is refused by name") {
  Toy toy(DType::f32);
  AdamW optimizer(toy, {}, not_frozen);
  CHECK_THROWS_WITH_AS(
      optimizer.load_state(1, [](const std::string&, const Shape&) { return Tensor::zeros({2}); }),
      "adamw: the saved exp_avg.w is (2) but the parameter is (5,7)", Error);
}
