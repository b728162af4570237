// attention: grouped heads, other widths for keys and values, queries at the end of a longer sequence,
// caches.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "tensor/alloc.h"
#include "test/op_case.h"

using namespace llatte;
using namespace llatte::test;

namespace {

struct Sizes {
  int64_t B, T, S, H, K, E, F;
  Shape q() const { return {B, T, H, E}; }
  Shape k() const { return {B, S, K, E}; }
  Shape v() const { return {B, S, K, F}; }
  double scale() const { return 1 / std::sqrt(double(E)); }
  size_t kv_row(int64_t b, int64_t s, int64_t h) const { return size_t((b * S + s) * K + h / (H / K)); }
};

// Naive: all scores of one query, softmax, weighted values.
void attend(const Sizes& z, const std::vector<Vec>& in, int64_t b, int64_t t, int64_t h, double* o) {
  const double* q = &in[0][((b * z.T + t) * z.H + h) * z.E];
  const int64_t visible = t + z.S - z.T + 1;
  Vec p(visible);
  double sum = 0;
  for (int64_t s = 0; s < visible; ++s) {
    double dot = 0;
    for (int64_t e = 0; e < z.E; ++e) dot += q[e] * in[1][z.kv_row(b, s, h) * z.E + e];
    sum += p[s] = std::exp(z.scale() * dot);
  }
  for (int64_t s = 0; s < visible; ++s)
    for (int64_t f = 0; f < z.F; ++f) o[f] += p[s] / sum * in[2][z.kv_row(b, s, h) * z.F + f];
}

Vec attention_ref(const Sizes& z, const std::vector<Vec>& in) {
  Vec o(size_t(z.B * z.T * z.H * z.F), 0.0);
  for (int64_t b = 0; b < z.B; ++b)
    for (int64_t t = 0; t < z.T; ++t)
      for (int64_t h = 0; h < z.H; ++h) attend(z, in, b, t, h, &o[((b * z.T + t) * z.H + h) * z.F]);
  return o;
}

void check_attention(const Sizes& z) {
  // bf16: scores and sums are f32; the gradient reads a rounded o (delta = sum(dO o), a sum of F terms, each
  // off by 2^-9), and results are rounded: three together.
  check({str("attention q", z.q(), " k", z.k(), " v", z.v()),
         {z.q(), z.k(), z.v()},
         [z](auto& v) { return attention(v[0], v[1], v[2], z.scale()); },
         [z](auto& v) { return attention_ref(z, v); },
         3});
}

}  // namespace

TEST_CASE("attention: lengths around the tile") {
  for (int64_t T : {1, 31, 33, 65, 130}) check_attention({1, T, T, 2, 1, 4, 4});
}

TEST_CASE("attention: grouped heads") {
  check_attention({2, 5, 5, 4, 2, 8, 8});
  check_attention({2, 5, 5, 4, 1, 8, 8});  // MQA
  check_attention({2, 5, 5, 4, 4, 8, 8});  // MHA
}

TEST_CASE("attention: keys and values of other widths, odd ones too") {
  check_attention({2, 7, 7, 4, 2, 33, 31});
  check_attention({1, 7, 7, 2, 2, 1, 64});
  check_attention({1, 7, 7, 2, 1, 64, 1});
}

// Wider than a tile's registers on a GPU (64, 128 and 256 columns), and one width wider than the other there.
TEST_CASE("attention: wide keys and values") {
  check_attention({1, 20, 20, 4, 2, 100, 72});
  check_attention({1, 35, 36, 1, 1, 140, 200});
  check_attention({1, 70, 70, 1, 1, 8, 260});
  check_attention({1, 2, 40, 2, 1, 6, 300});
}

TEST_CASE("attention: the queries are the last tokens") {
  check_attention({2, 1, 33, 4, 2, 8, 8});
  check_attention({2, 5, 70, 4, 2, 8, 6});
  check_attention({1, 65, 130, 2, 1, 5, 3});
}

TEST_CASE("keys and values are read where they lie in a cache") {
  for (const int64_t T : {3, 20}) {
    const Sizes z{2, T, 33, 4, 2, 8, 6};
    const OpCase c{"cache",
                   {z.q(), z.k(), z.v()},
                   [z](auto& v) { return attention(v[0], v[1], v[2], z.scale()); },
                   [z](auto& v) { return attention_ref(z, v); }};
    const Prepared p = prepare(c);
    std::vector<Tensor> in = tensors(c, p, DType::f32);
    for (int i : {1, 2}) {  // a cache for 64 tokens, NaN where nothing was written yet
      Shape room = in[i].shape();
      room[1] = 64;
      Tensor cache = full(room, std::numeric_limits<double>::quiet_NaN());
      cache.slice(1, 0, z.S).copy_from(in[i]);
      in[i] = cache.slice(1, 0, z.S);
    }
    const Var o = attention(constant(in[0]), constant(in[1]), constant(in[2]), z.scale());
    check_near("from a cache", to_vec(o.value), p.want, c.f32_tol);
  }
}

TEST_CASE("large scores do not overflow") {
  const Shape s{1, 2, 1, 1};
  const Tensor q = full(s, 100), k = from(Vec{-100, 100}, s).to(DType::f32);
  const Tensor v = from(Vec{3, 5}, s).to(DType::f32);
  const Var o = attention(constant(q), constant(k), constant(v), 1);
  CHECK(to_vec(o.value) == Vec{3, 5});  // exp(-20000) is 0 in any dtype
}

TEST_CASE("no [T,T] tensor, forward or backward") {
  const int64_t T = 1024;
  const Var q = leaf(full({1, T, 1, 4}, 1)), k = leaf(full({1, T, 1, 4}, 1)), v = leaf(full({1, T, 1, 4}, 1));
  const Tensor dout = full({1, T, 1, 4}, 1);
  reset_alloc_stats(test_device());
  backward(attention(q, k, v, 0.5), dout);
  CHECK(alloc_stats(test_device()).largest_request < T * T * 4 / 4);
}

TEST_CASE("attention: what does not fit is refused in words") {
  const Var q = some({2, 3, 4, 8}), k = some({2, 5, 2, 8}), v = some({2, 5, 2, 6});
  check_rejects([&] { attention(some({2, 3, 8}), k, v, 1); }, "q must be (B,T,H,E), got (2,3,8)");
  check_rejects([&] { attention(q, some({2, 5, 2, 7}), v, 1); }, "q (2,3,4,8) and k (2,5,2,7)");
  check_rejects([&] { attention(q, some({1, 5, 2, 8}), v, 1); }, "q (2,3,4,8) and k (1,5,2,8)");
  check_rejects([&] { attention(q, k, some({2, 4, 2, 6}), 1); }, "k (2,5,2,8) and v (2,4,2,6)");
  check_rejects(
      [&] {
        attention(q, some({2, 5, 3, 8}), some({2, 5, 3, 6}), 1);
      },
      "4 query heads are not a multiple of 3");
  check_rejects([&] { attention(q, some({2, 5, 0, 8}), some({2, 5, 0, 6}), 1); }, "not a multiple of 0");
  check_rejects(
      [&] {
        attention(q, some({2, 2, 2, 8}), some({2, 2, 2, 6}), 1);
      },
      "3 queries but only 2 keys");
  check_rejects([&] { attention(q, some({2, 5, 2, 8}, DType::f64), v, 1); }, "f32 and f64");
}
