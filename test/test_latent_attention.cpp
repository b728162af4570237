// The kernel of absorbed decoding against its formula in double: every way rows are kept, lengths around the
// borders of tiles and parts, several queries, the same bits under any number of threads.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <omp.h>
#include "nn/token_store.h"
#include "tensor/kernels.h"
#include "test/near.h"
#include "test/on_device.h"

using namespace llatte;
using namespace llatte::test;

namespace {

struct Sizes {
  int64_t B, T, S, H, W, Wk, v0, F;
};

constexpr double kScale = 0.125;

// softmax over visible rows of scale q . row, then the sum of the rows' value columns.
void row_ref(const Sizes& z, const double* q, const double* rows, int64_t visible, double* o) {
  Vec p(static_cast<size_t>(visible));
  double high = -HUGE_VAL, total = 0;
  for (int64_t s = 0; s < visible; ++s) {
    for (int64_t w = 0; w < z.Wk; ++w) p[s] += kScale * q[w] * rows[s * z.W + w];
    high = std::max(high, p[s]);
  }
  for (double& e : p) total += e = std::exp(e - high);
  for (int64_t f = 0; f < z.F; ++f) {
    o[f] = 0;
    for (int64_t s = 0; s < visible; ++s) o[f] += p[s] / total * rows[s * z.W + z.v0 + f];
  }
}

Vec ref(const Sizes& z, const Vec& q, const Vec& rows) {
  Vec o(static_cast<size_t>(z.B * z.T * z.H * z.F));
  for (int64_t b = 0; b < z.B; ++b)
    for (int64_t t = 0; t < z.T; ++t)
      for (int64_t h = 0; h < z.H; ++h) {
        const int64_t at = (b * z.T + t) * z.H + h;
        row_ref(z, &q[at * z.Wk], &rows[b * z.S * z.W], t + z.S - z.T + 1, &o[at * z.F]);
      }
  return o;
}

struct Case {
  Sizes z;
  TokenStore store;
  Tensor q;
  Case(const Sizes& sizes, CacheType t, DType compute)
      : z(sizes), store(z.B, z.S + 3, {z.Wk, z.W - z.Wk}, t, test_device()) {
    std::mt19937 rng(17);
    q = to_tensor(noise(z.B * z.T * z.H * z.Wk, rng), {z.B, z.T, z.H, z.Wk}, compute);
    store.append(to_tensor(noise(z.B * z.S * z.W, rng), {z.B, z.S, z.W}, DType::f32));
  }
  Tensor run() const {
    Tensor o = empty({z.B, z.T, z.H, z.F}, q.dtype());
    kernels::latent_attention(q, store.rows(), z.S, kScale, z.v0, o);
    return o;
  }
  // Of the rows as the cache holds them: only the arithmetic differs.
  void check(const std::string& what, double tol) const {
    check_near(what, to_vec(run()), ref(z, to_vec(q), to_vec(store.read(DType::f64, {z.W}))), tol);
  }
};

// Latent shared by k and v, apart from each other, odd widths; tokens below, at and above 64 and 128;
// more value columns than a block keeps, and more tiles of tokens than parts, on a GPU.
const Sizes kSizes[] = {
    {1, 1, 1, 1, 1, 1, 0, 1},        {1, 1, 63, 9, 120, 120, 24, 96},  {1, 1, 64, 9, 120, 120, 24, 96},
    {1, 1, 129, 3, 45, 17, 31, 14},  {2, 3, 131, 4, 24, 24, 5, 19},    {3, 16, 300, 5, 50, 33, 33, 17},
    {1, 130, 257, 3, 20, 20, 4, 16}, {1, 1, 70, 3, 300, 300, 20, 280}, {1, 1, 8300, 2, 6, 6, 1, 4}};

std::string words(const Sizes& z) { return str(Shape{z.B, z.T, z.S, z.H, z.W, z.Wk, z.v0, z.F}); }

}  // namespace

TEST_CASE("the kernel is its formula") {
  for (const Sizes& z : kSizes) {
    // f64: 2^-53 per operation over sums of 300 terms. f32: 2^-24 over the same, scores of up to 4 in exp.
    Case(z, CacheType::f64, DType::f64).check("f64 " + words(z), 1e-12);
    for (const CacheType t : {CacheType::f32, CacheType::bf16, CacheType::int8, CacheType::int4})
      Case(z, t, DType::f32).check("f32 " + words(z), 1e-5);
    // The result is rounded to bf16 once.
    Case(z, CacheType::bf16, DType::bf16).check("bf16 " + words(z), 1.0 / 256);
  }
}

TEST_CASE("the same bits under any number of threads") {
  const int before = omp_get_max_threads();
  for (const CacheType t : {CacheType::f32, CacheType::int4}) {
    const Case c({2, 3, 700, 9, 120, 120, 24, 96}, t, DType::f32);
    omp_set_num_threads(1);
    const Tensor one = c.run();
    for (const int threads : {2, 3, 5}) {
      omp_set_num_threads(threads);
      const Tensor more = c.run();
      CHECK(to_vec(one) == to_vec(more));
    }
    omp_set_num_threads(before);
  }
}

TEST_CASE("NaN in a row that a query sees stays visible") {
  TokenStore store(1, 70, {8}, CacheType::f32, test_device());
  store.append(full({1, 69, 8}, 0.5));
  store.append(full({1, 1, 8}, std::nan("")));
  const Tensor q = full({1, 1, 3, 8}, 1);
  Tensor o = empty({1, 1, 3, 6});
  kernels::latent_attention(q, store.rows(), int64_t(69), kScale, int64_t(2), o);
  for (const double e : to_vec(o)) CHECK(near(e, 0.5, 1e-6));  // f32, 69 equal terms
  kernels::latent_attention(q, store.rows(), int64_t(70), kScale, int64_t(2), o);
  for (const double e : to_vec(o)) CHECK(std::isnan(e));
}
