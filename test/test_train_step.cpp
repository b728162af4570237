// A training step of a clm-60m of two layers (its widths, heads and tied embedding; a smaller vocabulary) on
// the device under test: the CPU's loss and gradients, the same weights after AdamW, and no wait for the
// device but to read the norm and the loss at the end.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <map>
#include "models/llama.h"
#include "optim/adamw.h"
#include "test/near.h"
#include "test/on_device.h"

using namespace llatte;
using namespace llatte::test;

namespace {

constexpr int64_t B = 2, T = 24;

LlamaConfig two_layers() {
  LlamaConfig c = preset("clm-60m");
  c.num_hidden_layers = 2, c.vocab_size = 1000;
  return c;
}

Tensor ids(int64_t offset) {
  std::vector<int32_t> v;
  for (int64_t i = 0; i < B * T; ++i) v.push_back(static_cast<int32_t>((i * i * 7919 + offset) % 1000));
  return Tensor::from(v, {B, T});
}

struct Step {
  Llama model;
  std::optional<AdamW> optimizer;
  Tensor tokens = ids(0), targets = ids(13);

  Step(DType t, Device d) : model(two_layers(), t) {
    model.init(1, 0.05);
    model.to(d);
    optimizer.emplace(model, AdamWConfig{});
    targets.data<int32_t>()[5] = -100;
  }
  Var loss() { return model.loss(tokens, targets); }
  std::map<std::string, Vec> each(const std::function<Tensor(Var&)>& f) {
    std::map<std::string, Vec> all;
    model.params("", [&](const std::string& name, Var& p) { all[name] = to_vec(f(p)); });
    return all;
  }
};

// |got - want| of the largest entry, for every parameter.
void check_same(const std::map<std::string, Vec>& got, const std::map<std::string, Vec>& want, double tol) {
  REQUIRE(got.size() == want.size());
  for (const auto& [name, w] : want) {
    const Vec& g = got.at(name);
    double largest = 0, worst = 0;
    for (const double e : w) largest = std::max(largest, std::abs(e));
    for (size_t i = 0; i < w.size(); ++i) {
      const double d = std::abs(g[i] - w[i]);
      if (!(d <= worst)) worst = d;  // a NaN comes and stays
    }
    CHECK_MESSAGE(worst <= tol * largest, name << ": off by " << worst << " of " << largest);
  }
}

}  // namespace

// f32 sums of up to 1536 terms in another order, through two layers: 2^-24 sqrt(1536) = 2e-6 each at worst.
// The gradients pass through as many again, backwards.
TEST_CASE("the CPU's loss and gradients") {
  Step cpu(DType::f32, Device::cpu), other(DType::f32, test_device());
  const Var want = cpu.loss(), got = other.loss();
  CHECK(near(got.value.item(), want.value.item(), 1e-5));
  backward(want), backward(got);
  const auto gradient = [](Var& p) { return p.grad(); };
  check_same(other.each(gradient), cpu.each(gradient), 1e-4);
}

// Adam's first step moves each weight by lr against the sign of its gradient, so two backends differ by 2 lr
// where that is nearly zero and has another sign, and nowhere else: in f32 where |g| is below 1e-5 of its
// size, in bf16, whose activations are off by 2^-9 each, below some 5 % of it.
TEST_CASE("the CPU's weights after a step, but for signs that rounding decides") {
  const double lr = 1e-3;
  for (const DType t : {DType::f32, DType::bf16}) {
    Step cpu(t, Device::cpu), other(t, test_device());
    for (Step* s : {&cpu, &other}) {
      backward(s->loss());
      s->optimizer->step(lr);
    }
    cpu.model.params("", [&](const std::string& name, Var&) {
      const Vec a = to_vec(cpu.optimizer->master_of(name)), b = to_vec(other.optimizer->master_of(name));
      double sum = 0;
      for (size_t i = 0; i < a.size(); ++i) sum += std::abs(a[i] - b[i]);
      const double mean = sum / static_cast<double>(a.size());
      CHECK_MESSAGE(mean <= 2 * lr * (t == DType::f32 ? 1e-3 : 0.1), name << " moved otherwise by " << mean);
    });
  }
}

TEST_CASE("a step waits for the device to read the norm and the loss, and for nothing else") {
  for (const DType t : {DType::f32, DType::bf16}) {
    Step s(t, test_device());
    const auto step = [&] {
      const Var loss = s.loss();
      backward(loss);
      return loss.value;
    };
    step(), s.optimizer->step(1e-3);  // what is made once is there
    const int64_t before = cuda::waits();
    const Tensor loss = step();
    CHECK(cuda::waits() == before);
    s.optimizer->step(1e-3);
    loss.item();
    CHECK(cuda::waits() - before == (test_device() == Device::cuda ? 2 : 0));
  }
}
