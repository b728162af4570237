// The tape itself: what is recorded, how gradients add up, what is kept, and what recompute() promises.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <cstring>
#include "tensor/alloc.h"
#include "test/op_case.h"

using namespace llatte;
using namespace llatte::test;

namespace {

Tensor of(const Vec& v, DType t = DType::f32) { return to_tensor(v, {int64_t(v.size())}, t); }
Var leaf_of(const Vec& v, DType t = DType::f32) { return leaf(of(v, t)); }
Tensor ones(const Var& y) { return full(y.shape(), 1, y.value.dtype()); }

template <class T>
bool same_bits(const Tensor& a, const Tensor& b) {
  const auto x = a.to_vector<T>(), y = b.to_vector<T>();
  return x.size() == y.size() && std::memcmp(x.data(), y.data(), x.size() * sizeof(T)) == 0;
}

Tensor random(const Shape& s, DType t, unsigned seed) {
  std::mt19937 rng(seed);
  return to_tensor(noise(numel_of(s), rng), s, t);
}

}  // namespace

// ---- what is recorded
TEST_CASE("NoGrad records nothing, and ends with its scope") {
  const Var x = leaf_of({1, 2});
  {
    const NoGrad off;
    CHECK(!grad_enabled());
    { const NoGrad inner; }
    CHECK(!grad_enabled());
    CHECK(mul(x, x).node == nullptr);
  }
  CHECK(grad_enabled());
  CHECK(mul(x, x).node != nullptr);
}

TEST_CASE("constants make constants") {
  const Var c = constant(of({1, 2}));
  CHECK(add(c, c).node == nullptr);
  check_rejects([&] { c.grad(); }, "this value is a constant");
  check_rejects([&] { backward(add(c, c), of({1, 1})); }, "computed without gradients");
}

// ---- how gradients add up
TEST_CASE("two backward passes add up; a gradient of a leaf is its own numbers") {
  const Var x = leaf_of({1, 2});
  for (int pass = 1; pass <= 2; ++pass) {
    const Var y = scale(x, 3);
    backward(y, of({1, 10}));
    CHECK(to_vec(x.grad()) == Vec{3.0 * pass, 30.0 * pass});
  }
}

TEST_CASE("a bf16 leaf keeps its gradient in f32: small ones are not lost") {
  const Var x = leaf_of({1}, DType::bf16);
  for (int pass = 0; pass < 512; ++pass) backward(scale(x, 1), of({1}, DType::bf16));
  CHECK(x.grad().dtype() == DType::f32);
  CHECK(x.grad().item() == 512);  // in bf16, 256 + 1 is 256
}

TEST_CASE("the same Var used twice") {
  const Var x = leaf_of({3, -2});
  backward(mul(x, x), of({1, 1}));
  CHECK(to_vec(x.grad()) == Vec{6, -4});
  const Var z = leaf_of({3, -2});
  backward(add(z, z), of({1, 5}));
  CHECK(to_vec(z.grad()) == Vec{2, 10});
}

TEST_CASE("diamonds: every path counts once") {
  const Var x = leaf_of({2});
  const Var a = scale(x, 3), b = mul(a, a), c = add(a, b);  // c = 3x + 9x^2
  backward(mul(c, a), of({1}));                             // 9x^2 + 27x^3
  CHECK(x.grad().item() == 18 * 2 + 81 * 4);
}

TEST_CASE("2^60 paths through 60 diamonds are walked once each node") {
  Var y = leaf_of({1}, DType::f64);
  const Var x = y;
  for (int i = 0; i < 60; ++i) y = add(y, y);
  backward(y, of({1}, DType::f64));
  CHECK(x.grad().item() == std::ldexp(1.0, 60));
}

TEST_CASE("gradient tensors that are shared are never overwritten") {
  const Var a = leaf_of({1, 1}), b = leaf_of({1, 1});
  const Tensor dy = of({5, 7});
  const Var sum = add(a, b);            // both get the very tensor dy
  const Var y = add(sum, scale(a, 2));  // and a gets more
  backward(y, dy);
  CHECK(to_vec(dy) == Vec{5, 7});
  CHECK(to_vec(a.grad()) == Vec{15, 21});
  CHECK(to_vec(b.grad()) == Vec{5, 7});
  backward(add(a, b), dy);
  CHECK(to_vec(dy) == Vec{5, 7});
  CHECK(to_vec(a.grad()) == Vec{20, 28});
  CHECK(to_vec(b.grad()) == Vec{10, 14});
}

TEST_CASE("views of one gradient do not run into each other") {
  const Var a = leaf_of({1, 1}), b = leaf_of({1, 1});
  for (int pass = 1; pass <= 2; ++pass) {  // concat's backward hands out two views of dy
    backward(concat(a, b, 0), of({1, 2, 3, 4}));
    CHECK(to_vec(a.grad()) == Vec{1.0 * pass, 2.0 * pass});
    CHECK(to_vec(b.grad()) == Vec{3.0 * pass, 4.0 * pass});
  }
}

TEST_CASE("a scalar loss starts from 1; anything else needs dy") {
  const Var x = leaf_of({4});
  backward(mul(x, x));
  CHECK(x.grad().item() == 8);
  check_rejects(
      [] {
        const Var v = leaf_of({1, 2});
        backward(scale(v, 1));
      },
      "shape (2) is not a scalar");
}

TEST_CASE("a leaf that listens hears once of its whole gradient, before the tape below it is walked") {
  Var early = leaf_of({2}), late = leaf_of({3}), unused = leaf_of({5});
  std::vector<std::string> heard;
  const auto listen = [&](Var& x, const std::string& name) {
    x.node->on_grad = [&heard, name, node = x.node.get()] {
      heard.push_back(str(name, ' ', to_vec(node->grad)[0]));
    };
  };
  listen(early, "early"), listen(late, "late"), listen(unused, "unused");
  const auto f = [&] {
    const Var x = mul(early, early);  // 4
    return mul(add(x, late), late);   // (early^2 + late) late: late is used twice
  };
  backward(f());
  CHECK(heard == std::vector<std::string>{"late 10", "early 12"});
  heard.clear();
  backward(f());  // on top of the first pass
  CHECK(heard == std::vector<std::string>{"late 20", "early 24"});
}

TEST_CASE("a leaf inside a recomputed block hears when the block has been walked") {
  Var w = leaf_of({2}), below = leaf_of({3});
  std::vector<std::string> heard;
  w.node->on_grad = [&] {
    heard.push_back(str("w ", to_vec(w.grad())[0], below.grad().defined() ? " late" : ""));
  };
  const Var x = mul(below, below);
  backward(recompute([&](const Var& v) { return mul(mul(v, w), w); }, x));  // 9 w^2
  CHECK(heard == std::vector<std::string>{"w 36"});
}

TEST_CASE("what backward does not reach gets no gradient") {
  const Var x = leaf_of({1}), unused = leaf_of({1});
  const Var aside = mul(unused, x);
  backward(scale(x, 2), of({1}));
  CHECK(!unused.grad().defined());
  CHECK(x.grad().item() == 2);
}

// ---- what is kept
TEST_CASE("backward frees the tape as it goes") {
  const Var x = leaf(full({1 << 16}, 1));
  const int64_t before = alloc_stats(test_device()).bytes;
  const Var y = [&] {
    Var v = x;
    for (int i = 0; i < 8; ++i) v = mul(v, v);
    return v;
  }();
  CHECK(alloc_stats(test_device()).bytes >= before + 8 * (4 << 16));
  backward(y, ones(y));
  CHECK(alloc_stats(test_device()).bytes <= before + 3 * (4 << 16));  // y, the ones (freed), the gradient
}

TEST_CASE("the tape keeps no values of its own") {
  const Var x = leaf(full({1 << 16}, 1));
  const int64_t before = alloc_stats(test_device()).bytes;
  Var y = x;
  for (int i = 0; i < 8; ++i) y = scale(y, 0.5);  // needs no activation
  CHECK(alloc_stats(test_device()).bytes <= before + (4 << 16));
}

// What recursion would break is on the host: where each op costs a launch, a chain that shows the walk will
// do.
constexpr int kDeep = 200000, kDeepOnDevice = 1000;
int deep() { return test_device() == Device::cpu ? kDeep : kDeepOnDevice; }

TEST_CASE("a chain of 200,000 ops neither recurses nor overflows, in backward or when dropped") {
  const Var x = leaf_of({1}, DType::f64);
  const auto chain = [&] {
    Var y = x;
    for (int i = 0; i < deep(); ++i) y = scale(y, 1);
    return y;
  };
  backward(chain(), of({3}, DType::f64));
  CHECK(x.grad().item() == 3);
  { const Var dropped = chain(); }
  CHECK(x.node.use_count() == 1);
}

TEST_CASE("a wide old tape is dropped without recursion too") {
  const Var x = leaf_of({1});
  {
    Var y = x;
    for (int i = 0; i < deep() / 4; ++i) y = add(y, scale(y, 0));
  }
  CHECK(x.node.use_count() == 1);
}

// ---- wrong backward functions
TEST_CASE("a wrong backward is refused by name") {
  const Var x = leaf_of({1, 2});
  const auto run = [&](Backward b) { backward(record("broken", of({1, 2}), {x}, std::move(b)), of({1, 1})); };
  check_rejects([&] { run([](const Tensor&) -> Grads { return {}; }); },
                "broken: backward returned 0 gradients for 1");
  check_rejects([&] { run([](const Tensor& d) -> Grads {
                        return {d, d};
                      }); },
                "broken: backward returned 2 gradients");
  check_rejects([&] { run([](const Tensor& d) -> Grads { return {d.slice(0, 0, 1)}; }); },
                "backward of broken sent a gradient of shape (1) to a leaf of shape (2)");
  check_rejects([&] { run([](const Tensor& d) -> Grads { return {d.to(DType::f64)}; }); },
                "backward of broken sent a f64 gradient to a leaf of dtype f32");
  check_rejects([&] { backward(scale(x, 1), of({1})); },
                "backward of the caller sent a gradient of shape (1)");
}

// ---- recompute
namespace {

// A residual block with parameters, and x used three times.
struct Block {
  Var norm, gate, up, down;
  Block(int64_t D, int64_t F, DType t)
      : norm(leaf(random({D}, t, 1))),
        gate(leaf(random({F, D}, t, 2))),
        up(leaf(random({F, D}, t, 3))),
        down(leaf(random({D, F}, t, 4))) {}
  Var operator()(const Var& x) const {
    const Var h = rms_norm(x, norm, 1e-5);
    const Var y = linear(swiglu(linear(h, gate), linear(h, up)), down);
    return add(add(x, y), mul(x, y));
  }
};

struct Result {
  Tensor y, dx;
  std::vector<Tensor> params;
};

Result run(DType t, bool again) {
  const Block f(33, 31, t);
  const Var x = leaf(random({5, 33}, t, 5)), x2 = scale(x, 1);
  const Var y = again ? recompute(f, x2) : f(x2);
  backward(y, random({5, 33}, t, 6));
  return {y.value, x.grad(), {f.norm.grad(), f.gate.grad(), f.up.grad(), f.down.grad()}};
}

}  // namespace

TEST_CASE("recompute gives the same values and gradients, bit for bit, parameters inside f included") {
  for (DType t : {DType::f32, DType::f64, DType::bf16}) {
    const Result kept = run(t, false), again = run(t, true);
    const auto same = [t](const Tensor& a, const Tensor& b) {
      const bool bits = t == DType::f64 ? same_bits<double>(a.to(t), b.to(t))
                                        : same_bits<float>(a.to(DType::f32), b.to(DType::f32));
      CHECK(bits);
    };
    CAPTURE(name(t));
    same(kept.y, again.y);
    same(kept.dx, again.dx);
    for (size_t i = 0; i < kept.params.size(); ++i) same(kept.params[i], again.params[i]);
  }
}

TEST_CASE("recompute keeps x and y alone") {
  const int64_t one = 4 * 512 * 64;
  const Block f(64, 64, DType::f32);
  const Var x = leaf(random({512, 64}, DType::f32, 5));
  const int64_t before = alloc_stats(test_device()).bytes;
  const Var kept = f(x);
  const int64_t all = alloc_stats(test_device()).bytes - before;
  const Var again = recompute(f, x);
  CHECK(alloc_stats(test_device()).bytes - before - all == one);
  CHECK(all >= 5 * one);
}

TEST_CASE("recompute where x wants no gradient still gives the parameters theirs") {
  const Block f(8, 8, DType::f32);
  const Var y = recompute(f, constant(random({2, 8}, DType::f32, 5)));
  backward(y, ones(y));
  CHECK(f.down.grad().defined());
}

TEST_CASE("recompute inside recompute, and under NoGrad") {
  const Var x = leaf_of({3});
  const auto square = [](const Var& v) { return mul(v, v); };
  const Var y = recompute([&](const Var& v) { return recompute(square, recompute(square, v)); }, x);
  CHECK(y.value.item() == 81);
  {
    const NoGrad off;  // the backward pass turns the tape on for itself, and off again
    CHECK(recompute(square, x).node == nullptr);
    backward(y);
    CHECK(!grad_enabled());
  }
  CHECK(x.grad().item() == 4 * 27);
}

TEST_CASE("recompute of a function that ignores x") {
  const Var x = leaf_of({3});
  const Var y = recompute([](const Var&) { return constant(of({1})); }, x);
  backward(y);
  CHECK(!x.grad().defined());
}
