// matmul: 2 and 3 dimensions, broadcast batches, transposed views.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "test/op_case.h"

using namespace llatte;
using namespace llatte::test;

namespace {

// Batches of a or b may be 1.
Vec product(const Vec& a, const Vec& b, int64_t A, int64_t B, int64_t M, int64_t K, int64_t N) {
  const int64_t n = std::max(A, B);
  Vec c(n * M * N, 0.0);
  for (int64_t i = 0; i < n; ++i)
    for (int64_t m = 0; m < M; ++m)
      for (int64_t j = 0; j < N; ++j)
        for (int64_t k = 0; k < K; ++k)
          c[(i * M + m) * N + j] +=
              a[((A == 1 ? 0 : i) * M + m) * K + k] * b[((B == 1 ? 0 : i) * K + k) * N + j];
  return c;
}

void check_batched(int64_t A, int64_t B, int64_t M, int64_t K, int64_t N) {
  // Products are summed in f32, so only results are rounded: once.
  check({str("matmul batches ", A, " ", B, " of ", Shape{M, K, N}),
         {{A, M, K}, {B, K, N}},
         [](auto& v) { return matmul(v[0], v[1]); },
         [=](auto& v) { return product(v[0], v[1], A, B, M, K, N); },
         1});
}

}  // namespace

TEST_CASE("matmul of matrices") {
  for (auto [M, K, N] : {std::array<int64_t, 3>{1, 1, 1}, {31, 33, 5}, {64, 1, 33}, {1, 64, 31}, {5, 31, 1}})
    check({str("matmul ", Shape{M, K, N}),
           {{M, K}, {K, N}},
           [](auto& v) { return matmul(v[0], v[1]); },
           [M = M, K = K, N = N](auto& v) { return product(v[0], v[1], 1, 1, M, K, N); },
           1});
}

TEST_CASE("matmul of batches, equal or 1") {
  check_batched(3, 3, 5, 31, 7);
  check_batched(1, 3, 5, 7, 33);
  check_batched(3, 1, 5, 7, 9);
  check_batched(1, 1, 5, 7, 9);
}

// Few rows against a transposed operand take a way of their own, four columns at a time.
TEST_CASE("matmul of few rows with weights as on disk") {
  for (auto [M, K, N] : {std::array<int64_t, 3>{1, 1, 1}, {1, 33, 3}, {1, 64, 4}, {2, 31, 33}, {4, 65, 7}})
    check({str("matmul few rows ", Shape{M, K, N}),
           {{M, K}, {N, K}},
           [](auto& v) { return matmul(v[0], transpose(v[1], 0, 1)); },
           [M = M, K = K, N = N](auto& v) {
             Vec c(M * N, 0.0);
             for (int64_t m = 0; m < M; ++m)
               for (int64_t n = 0; n < N; ++n)
                 for (int64_t k = 0; k < K; ++k) c[m * N + n] += v[0][m * K + k] * v[1][n * K + k];
             return c;
           },
           1});
}

TEST_CASE("matmul with a transposed operand") {
  check({"matmul a b^T",
         {{5, 31}, {7, 31}},
         [](auto& v) { return matmul(v[0], transpose(v[1], 0, 1)); },
         [](auto& v) {
           Vec c(35, 0.0);
           for (int m = 0; m < 5; ++m)
             for (int n = 0; n < 7; ++n)
               for (int k = 0; k < 31; ++k) c[m * 7 + n] += v[0][m * 31 + k] * v[1][n * 31 + k];
           return c;
         },
         1});
}

TEST_CASE("matmul: what does not fit is refused in words") {
  check_rejects([] { matmul(some({2, 3}), some({4, 2})); }, "inner sizes 3 and 4 differ");
  check_rejects([] { matmul(some({2, 3}), some({1, 3, 2})); }, "both have 2 or both have 3");
  check_rejects([] { matmul(some({2}), some({2})); }, "both have 2 or both have 3");
  check_rejects([] { matmul(some({2, 2, 3}), some({3, 3, 2})); }, "differ and neither is 1");
  check_rejects([] { matmul(some({2, 3}), some({3, 2}, DType::bf16)); }, "f32 and bf16");
}
