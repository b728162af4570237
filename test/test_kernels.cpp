// Kernels below the level of ops: what the gradient tests do not see. AdamW against the published
// formulas in double, sums of squares, copies between arbitrary strides, errors of index kernels, NaN through
// the vectorised exp, and the law of tensor/cpu/parallel.h: the same bits under any number of threads.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <omp.h>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include "tensor/cpu/simd_math.h"
#include "tensor/kernels.h"
#include "test/near.h"
#include "test/on_device.h"

using namespace llatte;
using namespace llatte::test;

namespace {

Tensor normal(const Shape& shape, uint64_t stream, DType t = DType::f32, double std = 1) {
  Tensor x = empty(shape, t);
  kernels::random_normal(uint64_t(11), stream, 0.0, std, x);
  return x;
}

Tensor from_ints(const std::vector<int32_t>& v, const Shape& shape) { return from(v, shape); }

struct Moments {
  std::vector<double> p, m, v;
};

constexpr double kDecay = 0.1, kGradScale = 0.5;

// Clipping at 1 by this sum of squares scales gradients by kGradScale.
Tensor sum_of_twice_the_clip() { return full({1}, (2 - 1e-6) * (2 - 1e-6), DType::f64); }

void adamw(Tensor& w, const Tensor& g, Tensor& m, Tensor& v, Tensor& master, const AdamWStep& s,
           const Tensor& sum = sum_of_twice_the_clip(), double weight_decay = kDecay) {
  std::vector<AdamWTensors> one{{w, g, m, v, master, weight_decay}};
  kernels::adamw(one, sum, s);
}

// arXiv 1711.05101 with torch's bias correction, in double.
void reference_step(Moments& s, const std::vector<double>& grad, const AdamWStep& a) {
  for (size_t i = 0; i < s.p.size(); ++i) {
    const double g = grad[i] * kGradScale;
    s.m[i] = a.beta1 * s.m[i] + (1 - a.beta1) * g;
    s.v[i] = a.beta2 * s.v[i] + (1 - a.beta2) * g * g;
    const double m_hat = s.m[i] / (1 - std::pow(a.beta1, a.t)), v_hat = s.v[i] / (1 - std::pow(a.beta2, a.t));
    s.p[i] = s.p[i] * (1 - a.lr * kDecay) - a.lr * m_hat / (std::sqrt(v_hat) + a.eps);
  }
}

AdamWStep adamw_step(int64_t t) { return {1e-3 * double(t), 0.9, 0.95, 1e-8, 1.0, t}; }

void check_adamw(DType t, double tol) {
  const int64_t n = 1031;  // no multiple of a vector
  Tensor w = normal({n}, 1, t), m = zeros({n}, t), v = zeros({n}, t), none;
  Moments want = {to_vec(w), to_vec(m), to_vec(v)};
  for (int64_t step = 1; step <= 20; ++step) {
    const Tensor g = normal({n}, uint64_t(100 + step), t);
    adamw(w, g, m, v, none, adamw_step(step));
    reference_step(want, to_vec(g), adamw_step(step));
  }
  check_near("w", to_vec(w), want.p, tol);
  check_near("m", to_vec(m), want.m, tol);
  check_near("v", to_vec(v), want.v, tol);
}

bool same_bits(const Tensor& a, const Tensor& b) {
  const Tensor x = a.to(Device::cpu), y = b.to(Device::cpu);
  return x.bytes() == y.bytes() && std::memcmp(x.raw(), y.raw(), x.bytes()) == 0;
}

// Runs `make` under 1, 2, 3 and 5 threads; all outputs must agree to the last bit.
void check_threads(const char* what, const std::function<std::vector<Tensor>()>& make) {
  const int before = omp_get_max_threads();
  omp_set_num_threads(1);
  const std::vector<Tensor> alone = make();
  for (int n : {2, 3, 5}) {
    omp_set_num_threads(n);
    const std::vector<Tensor> together = make();
    for (size_t i = 0; i < alone.size(); ++i)
      CHECK_MESSAGE(same_bits(alone[i], together[i]), what, ": output ", i, " under ", n, " threads");
  }
  omp_set_num_threads(before);
}

}  // namespace

TEST_CASE("adamw follows the formulas") {
  // f64: 20 steps of a dozen roundings each. f32: p moves by up to lr = 0.02 a step, of which m/denom keeps
  // about 5e-7 relative; p itself is rounded (6e-8) 20 times. 2e-6 holds both, and a dropped term is off by
  // 1e-4 or more.
  check_adamw(DType::f64, 1e-13);
  check_adamw(DType::f32, 2e-6);
}

TEST_CASE("the first adamw step moves every parameter by lr, whatever the gradient's size") {
  Tensor w = zeros({3}), m = zeros({3}), v = zeros({3}), none;
  const Tensor g = from(std::vector<float>{1e-3f, -5, 1e6f}, {3});
  adamw(w, g, m, v, none, AdamWStep{0.1, 0.9, 0.999, 1e-8, 0, 1}, zeros({1}, DType::f64), 0.5);
  // eps is 1e-5 of the smallest gradient; the rest is f32 rounding.
  check_near("w", to_vec(w), {-0.1, 0.1, -0.1}, 1e-6);
}

TEST_CASE("a bf16 parameter follows its f32 master, rounded once a step") {
  Tensor w = normal({100}, 1, DType::bf16), master = w.to(DType::f32), none;
  Tensor plain = master.clone(), m = zeros({100}), v = m.clone(), m2 = m.clone(), v2 = m.clone();
  for (int64_t t = 1; t <= 5; ++t) {
    const Tensor g = normal({100}, uint64_t(t));
    adamw(w, g, m, v, master, adamw_step(t));
    adamw(plain, g, m2, v2, none, adamw_step(t));
  }
  CHECK(same_bits(master, plain));
  CHECK(same_bits(w, plain.to(DType::bf16)));
}

TEST_CASE("adamw refuses what would train silently wrong") {
  Tensor w = zeros({2}), m = zeros({2}), v = zeros({2}), none;
  const Tensor g = zeros({2});
  check_rejects([&] { adamw(w, g, m, v, none, adamw_step(0)); }, "adamw: step t is 0, but it counts from 1");
  Tensor half = w.to(DType::bf16);
  check_rejects([&] { adamw(half, g, m, v, none, adamw_step(1)); },
                "data(): tensor holds bf16, asked for f32");
}

TEST_CASE("a norm that is not finite changes nothing; a small one does not scale") {
  Tensor w = normal({100}, 1), m = zeros({100}), v = m.clone(), none;
  const Tensor g = normal({100}, 2), before = w.clone();
  for (double bad : {NAN, INFINITY}) adamw(w, g, m, v, none, adamw_step(1), full({1}, bad, DType::f64));
  CHECK(same_bits(w, before));
  CHECK(same_bits(m, zeros({100})));
  adamw(w, g, m, v, none, adamw_step(1), full({1}, 0.25, DType::f64));
  Tensor tenth = Tensor::empty_like(g);
  kernels::scale(g, 1 - 0.9, tenth);
  check_near("m", to_vec(m), to_vec(tenth), 1e-6);  // the first moment is (1 - beta1) g: two f32 roundings
}

TEST_CASE("sum_squares adds in double and shows NaN") {
  for (int64_t n : {0, 1, 31, 16384, 16385, 100003}) {
    const Tensor x = normal({n}, 4);
    double want = 0;
    for (double e : to_vec(x)) want += e * e;
    Tensor out = full({1}, -1, DType::f64);
    kernels::sum_squares(std::vector{x}, out);
    // n = 1e5 sums in double, in another order: sqrt(n) * 1e-16 relative, with room.
    CHECK(std::abs(out.item() - want) <= 1e-12 * want);
  }
  Tensor x = zeros({50000}), out = zeros({1}, DType::f64);
  x.slice(0, 49999, 50000).copy_from(full({1}, NAN));
  kernels::sum_squares(std::vector{x}, out);
  CHECK(std::isnan(out.item()));
  kernels::sum_squares(std::vector{full({1000}, 1e30)}, out);  // squares beyond f32
  CHECK(std::abs(out.item() / 1e63 - 1) < 1e-6);               // 1e30 in f32 is off by up to 6e-8
}

TEST_CASE("copy reaches every element between two strided layouts") {
  const Tensor base = normal({5, 7, 3, 6}, 8);
  const Tensor x = base.slice(1, 2, 6).transpose(0, 3).slice(0, 1, 6);  // (5,4,3,5)
  Tensor room = full({4, 5, 5, 6}, -7, DType::f64);
  Tensor y = room.transpose(0, 1).slice(2, 1, 4).slice(3, 1, 6);  // (5,4,3,5) of (5,4,5,6)
  kernels::copy(x, y);
  CHECK(to_vec(y.contiguous()) == to_vec(x.contiguous()));
  int64_t untouched = 0;
  for (double v : to_vec(room)) untouched += v == -7;
  CHECK(untouched == room.numel() - x.numel());
}

TEST_CASE("copy of a large matrix and its transpose") {
  const int64_t W = test_device() == Device::cpu ? 20001 : 501;  // on the CPU more than one thread's part
  const Tensor x = normal({300, W}, 8);
  CHECK(same_bits(x.transpose(0, 1).contiguous().transpose(0, 1).contiguous(), x));
  CHECK(same_bits(x.slice(1, 1, W).clone().slice(1, 0, 50).contiguous(), x.slice(1, 1, 51).contiguous()));
}

TEST_CASE("copy refuses what it cannot walk") {
  Tensor y = zeros({3});
  check_rejects([&] { kernels::copy(zeros({4}), y); }, "copy: (4) does not fit (3)");
  Tensor deep = zeros({1, 1, 1, 1, 1, 1, 1, 1, 1});
  check_rejects([&] { kernels::copy(deep, deep); }, "copy: (1,1,1,1,1,1,1,1,1) has more than 8 dimensions");
}

TEST_CASE("scale_by takes its factor from a tensor, accumulate widens") {
  Tensor y = from(std::vector<float>{1, 2, 3}, {3});
  kernels::scale_by(full({1}, 0.5, DType::f64), y);
  CHECK(y.to_vector<float>() == std::vector<float>{0.5f, 1, 1.5f});
  Tensor sum = full({3}, 256);  // 256 + 0.5 is no bf16
  kernels::accumulate(y.to(DType::bf16), sum);
  CHECK(sum.to_vector<float>() == std::vector<float>{256.5f, 257, 257.5f});
}

TEST_CASE("embedding names the id that is not in the table") {
  const Tensor w = normal({5, 4}, 1);
  Tensor y = zeros({2, 4}), dw = zeros({5, 4});
  check_rejects(
      [&] {
        kernels::embedding_fwd(from_ints({1, 5}, {2}), w, y);
      },
      "embedding: id 5 at position 1 is outside [0,5), the vocabulary of the table");
  check_rejects(
      [&] {
        kernels::embedding_bwd(y, from_ints({-1, 0}, {2}), dw);
      },
      "embedding: id -1 at position 0 is outside [0,5), the vocabulary of the table");
}

TEST_CASE("rope names the position or frequency that is not in the tables") {
  const Tensor x = normal({1, 1, 4}, 1), table = full({8, 2}, 1), none;
  Tensor y = zeros({1, 1, 4});
  const auto run = [&](int32_t pos, const Tensor& pairs) {
    kernels::rope(x, table, table, from_ints({pos}, {1}), pairs, false, y);
  };
  check_rejects([&] { run(8, none); },
                "rope: position 8 at index 0 is outside [0,8) of the cos and sin tables");
  check_rejects(
      [&] {
        run(0, from_ints({0, 2}, {1, 2}));
      },
      "rope: frequency 2 at index 1 is outside [-1,2) of the cos and sin tables");
}

TEST_CASE("rope: the fast path and the chosen pairs agree; -1 passes through") {
  const int64_t N = 6, H = 3, P = 5;
  const Tensor x = normal({N, H, 2 * P}, 1), cos = normal({8, P}, 2), sin = normal({8, P}, 3), none;
  const Tensor pos = from_ints({0, 7, 3, 3, 1, 2}, {N});
  Tensor fast = Tensor::empty_like(x), chosen = Tensor::empty_like(x);
  kernels::rope(x, cos, sin, pos, none, true, fast);
  std::vector<int32_t> columns;
  for (int64_t i = 0; i < H * P; ++i) columns.push_back(static_cast<int32_t>(i % P));
  kernels::rope(x, cos, sin, pos, from_ints(columns, {H, P}), true, chosen);
  // The same formula, compiled twice: where one build fuses a multiply and an add, the last bit may differ.
  check_near("chosen", to_vec(chosen), to_vec(fast), 2e-7);
  Tensor infinite = full({1, 1, 4}, INFINITY), y = Tensor::empty_like(infinite);
  kernels::rope(infinite, cos, sin, from_ints({1}, {1}), from_ints({-1, -1}, {1, 2}), false, y);
  CHECK(same_bits(y, infinite));
}

TEST_CASE("the vectorised exp is accurate, and NaN and infinity come through") {
  std::vector<float> x, y(4096);
  for (int i = 0; i < 4096; ++i) x.push_back(-87.f + 175.f * float(i) / 4096);  // normal results
#pragma omp simd
  for (int i = 0; i < 4096; ++i) y[size_t(i)] = cpu::simd_exp(x[size_t(i)]);
  // libmvec promises 4 ulp: 4 * 2^-24 * 2 relative, the factor 2 for a mantissa near 1.
  for (size_t i = 0; i < 4096; ++i) REQUIRE(std::abs(y[i] / std::exp(double(x[i])) - 1) <= 4.8e-7);
  const Tensor one = full({64}, 1);
  const auto swiglu_of = [&](float g) {
    Tensor out = empty({64});
    kernels::swiglu_fwd(full({64}, double(g)), one, out);
    return out.to_vector<float>();
  };
  for (float v : swiglu_of(NAN)) REQUIRE(std::isnan(v));
  for (float v : swiglu_of(INFINITY)) REQUIRE(v == INFINITY);
  for (float v : swiglu_of(-200)) REQUIRE(v == 0);  // exp(200) is inf in f32: -200 / inf
}

TEST_CASE("softmax shows NaN, masks -inf and survives large logits") {
  Tensor x = full({2, 40}, 1e4), y = Tensor::empty_like(x);
  x.slice(0, 0, 1).slice(1, 3, 4).copy_from(full({1, 1}, -INFINITY));
  x.slice(0, 1, 2).slice(1, 5, 6).copy_from(full({1, 1}, NAN));
  kernels::softmax_fwd(x, y);
  const std::vector<float> p = y.to_vector<float>();
  for (size_t i = 0; i < 40; ++i)
    REQUIRE(std::abs(p[i] - (i == 3 ? 0 : 1.0 / 39)) < 1e-8);  // f32 of 1/39: 1e-9
  for (size_t i = 40; i < 80; ++i) REQUIRE(std::isnan(p[i]));
}

TEST_CASE("every kernel gives the same bits under any number of threads") {
  for (DType t : {DType::f32, DType::bf16}) {
    // On the CPU 91,000 numbers: above the size from which threads share.
    const int64_t N = test_device() == Device::cpu ? 700 : 40, D = 130;
    const Tensor a = normal({N, D}, 1, t), b = normal({N, D}, 2, t), w = normal({D}, 3, t);
    const auto like = [&] { return Tensor::empty_like(a); };
    check_threads("add, mul, scale", [&] {
      Tensor p = like(), q = like(), s = like();
      kernels::add(a, b, p), kernels::mul(a, b, q), kernels::scale(a, 0.3, s);
      return std::vector<Tensor>{p, q, s};
    });
    check_threads("add_bias, sum_rows", [&] {
      Tensor y = like(), s = empty({D});
      kernels::add_bias(a, w, y), kernels::sum_rows(a, s);
      return std::vector<Tensor>{y, s};
    });
    check_threads("rms_norm", [&] {
      Tensor y = like(), r = empty({N}), dx = like(), dw = empty({D});
      kernels::rms_norm_fwd(a, w, 1e-5, y, r), kernels::rms_norm_bwd(b, a, w, r, dx, dw);
      return std::vector<Tensor>{y, r, dx, dw};
    });
    check_threads("swiglu", [&] {
      Tensor y = like(), dg = like(), du = like();
      kernels::swiglu_fwd(a, b, y), kernels::swiglu_bwd(b, a, b, dg, du);
      return std::vector<Tensor>{y, dg, du};
    });
    check_threads("softmax", [&] {
      Tensor y = like(), dx = like();
      kernels::softmax_fwd(a, y), kernels::softmax_bwd(b, y, dx);
      return std::vector<Tensor>{y, dx};
    });
    check_threads("embedding", [&] {
      std::vector<int32_t> ids;
      for (int64_t n = 0; n < N; ++n) ids.push_back(static_cast<int32_t>(n * n % 11));
      Tensor dw = empty({11, D});
      kernels::embedding_bwd(a, from_ints(ids, {N}), dw);
      return std::vector<Tensor>{dw};
    });
    check_threads("sum_squares, copy", [&] {
      Tensor s = empty({1}, DType::f64);
      kernels::sum_squares(std::vector{a}, s);
      return std::vector<Tensor>{s, a.transpose(0, 1).contiguous()};
    });
  }
}
