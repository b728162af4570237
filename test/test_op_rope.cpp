// rope: plain, partial, permuted, per head; its inverse; its backward.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "test/op_case.h"

using namespace llatte;
using namespace llatte::test;

namespace {

struct Angles {
  int64_t S, F;
  double at(int64_t s, int64_t f) const { return double(s) * std::pow(100.0, -double(f) / double(F)); }
  Tensor table(bool sine, DType t, Device d = test_device()) const {
    Vec v;
    for (int64_t s = 0; s < S; ++s)
      for (int64_t f = 0; f < F; ++f) v.push_back(sine ? std::sin(at(s, f)) : std::cos(at(s, f)));
    return to_tensor(v, {S, F}, t, d);
  }
};

using Ids = std::vector<int32_t>;

struct Turn {
  Angles angles;
  int64_t B, T, H, P;
  Ids pos;    // [T] or [B,T]
  Ids pairs;  // [H,P], or empty

  Shape shape() const { return {B, T, H, 2 * P}; }
  int32_t position(int64_t b, int64_t t) const { return pos[int64_t(pos.size()) == T ? t : b * T + t]; }
  int32_t column(int64_t h, int64_t p) const { return pairs.empty() ? int32_t(p) : pairs[h * P + p]; }

  Var op(const Var& x) const {
    const DType t = acc_dtype(x.value.dtype());
    const Device d = x.value.device();
    const Shape ps = int64_t(pos.size()) == T ? Shape{T} : Shape{B, T};
    return rope(x, angles.table(false, t, d), angles.table(true, t, d), from(pos, ps, d),
                pairs.empty() ? Tensor() : from(pairs, {H, P}, d));
  }

  Vec ref(const Vec& x) const {
    Vec y = x;
    for (int64_t b = 0; b < B; ++b)
      for (int64_t t = 0; t < T; ++t)
        for (int64_t h = 0; h < H; ++h)
          for (int64_t p = 0; p < P; ++p)
            if (column(h, p) >= 0)
              turn_pair(&y[((b * T + t) * H + h) * 2 * P], p, angles.at(position(b, t), column(h, p)));
    return y;
  }

  void turn_pair(double* head, int64_t p, double angle) const {
    const double re = head[p], im = head[p + P], c = std::cos(angle), s = std::sin(angle);
    head[p] = re * c - im * s;
    head[p + P] = re * s + im * c;
  }
};

void check_rope(const std::string& name, const Turn& r) {
  // bf16: arithmetic in f32, the result rounded once. f32: tables are rounded, once per factor.
  check({name, {r.shape()}, [r](auto& v) { return r.op(v[0]); }, [r](auto& v) { return r.ref(v[0]); }, 1});
}

Ids ascending(int64_t n, int32_t from = 0) {
  Ids v(static_cast<size_t>(n));
  for (size_t i = 0; i < v.size(); ++i) v[i] = from + static_cast<int32_t>(i);
  return v;
}

}  // namespace

TEST_CASE("rope: values, views, gradients") {
  for (int64_t P : {1, 16, 31, 33}) check_rope(str("rope P=", P), {{9, P}, 2, 5, 3, P, ascending(5, 3), {}});
  check_rope("rope, positions per sequence", {{40, 4}, 2, 3, 2, 4, {0, 1, 2, 39, 7, 8}, {}});
  check_rope("rope, table wider than the head", {{9, 12}, 1, 4, 2, 5, ascending(4), {}});
}

TEST_CASE("rope by pairs: kept, left out, permuted, other for each head") {
  check_rope("partial", {{9, 4}, 2, 5, 2, 4, ascending(5), {0, -1, 2, -1, 0, -1, 2, -1}});
  // Tables of 32 and 64 columns are chosen from in registers, 16 pairs at a time, in chunks of 64 pairs.
  std::mt19937 rng(5);
  for (int32_t F : {32, 64})
    for (int64_t P : {15, 35, 80}) {
      Ids pairs;
      for (int64_t p = 0; p < P; ++p)
        pairs.push_back(static_cast<int32_t>(rng() % static_cast<uint32_t>(F + 1)) - 1);
      check_rope(str("P=", P, " of ", F), {{9, F}, 1, 3, 1, P, ascending(3, 4), pairs});
    }
  check_rope("permuted", {{9, 4}, 2, 5, 1, 4, ascending(5), {3, 0, 2, 1}});
  check_rope("per head", {{9, 8}, 2, 5, 3, 3, ascending(5, 2), {7, 0, -1, 1, 1, 2, -1, -1, 6}});
}

TEST_CASE("unrotated pairs pass through bit for bit") {
  const Turn r{{9, 2}, 1, 3, 1, 2, ascending(3), {-1, -1}};
  std::mt19937 rng(5);
  const Tensor x = to_tensor(noise(12, rng), r.shape(), DType::f32);
  CHECK(to_vec(r.op(constant(x)).value) == to_vec(x));
}

TEST_CASE("the backward turns back: of y it gives x") {
  const Turn r{{65, 17}, 2, 31, 3, 17, ascending(31, 34), {}};
  std::mt19937 rng(5);
  const Vec x = noise(numel_of(r.shape()), rng);
  const Var v = leaf(to_tensor(x, r.shape(), DType::f64));
  const Var y = r.op(v);
  backward(y, y.value);
  check_near("there and back", to_vec(v.grad()), x, kF64Tol);
}

TEST_CASE("scores depend on the distance of positions alone") {
  const auto score = [](int32_t a, int32_t b) {
    const Turn r{{64, 8}, 1, 2, 1, 8, {a, b}, {}};
    std::mt19937 rng(5);
    const Vec y = to_vec(r.op(constant(to_tensor(noise(32, rng), r.shape(), DType::f64))).value);
    double s = 0;
    for (int i = 0; i < 16; ++i) s += y[i] * y[16 + i];
    return s;
  };
  CHECK(near(score(40, 45), score(3, 8), kF64Tol));
  CHECK(!near(score(40, 45), score(3, 9), 1e-3));
}

TEST_CASE("rope: what does not fit is refused in words") {
  const Angles a{9, 4};
  const Tensor cos = a.table(false, DType::f32), sin = a.table(true, DType::f32);
  const Tensor pos = from(ascending(3), {3});
  const auto pairs = [](const Ids& v, const Shape& s) { return from(v, s); };
  const Var x = some({1, 3, 2, 8});
  check_rejects([&] { rope(some({3, 2, 8}), cos, sin, pos); }, "x must be (B,T,H,2P), got (3,2,8)");
  check_rejects([&] { rope(some({1, 3, 2, 7}), cos, sin, pos); }, "must be even");
  check_rejects([&] { rope(some({1, 3, 2, 10}), cos, sin, pos); }, "5 pairs, but cos is (9,4) with 4");
  check_rejects([&] { rope(some({1, 3, 2, 8}, DType::f64), cos, sin, pos); }, "must be f64, got f32 and f32");
  check_rejects([&] { rope(x, cos, sin.slice(0, 0, 5), pos); }, "got (9,4) and (5,4)");
  check_rejects([&] { rope(some({1, 2, 2, 8}), cos, sin, pos); }, "pos is (3), expected (T) = (2)");
  check_rejects([&] { rope(x, cos, sin, from(ascending(3, 7), {3})); }, "9");
  check_rejects([&] { rope(x, cos, sin, pos, pairs({0, 1, 2, 3}, {1, 4})); }, "expected (H,P) = (2,4)");
  check_rejects([&] { rope(x, cos, sin, pos, pairs({0, 1, 2, 3, 0, 1, 2, 4}, {2, 4})); }, "4");
}
