// Random numbers: Philox against published answers, the distributions, and the promise that element i of a
// stream depends on (seed, stream, i) alone.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <omp.h>
#include <cmath>
#include "tensor/kernels.h"
#include "tensor/philox.h"
#include "test/near.h"
#include "test/on_device.h"

using namespace llatte;
using namespace llatte::test;

namespace {

bool equals(const Philox& p, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
  return p.word[0] == a && p.word[1] == b && p.word[2] == c && p.word[3] == d;
}

std::vector<float> normals(uint64_t seed, uint64_t stream, int64_t n, double mean = 0, double std = 1) {
  Tensor y = empty({n});
  kernels::random_normal(seed, stream, mean, std, y);
  return y.to_vector<float>();
}

std::vector<float> uniforms(uint64_t seed, uint64_t stream, int64_t n) {
  Tensor y = empty({n});
  kernels::random_uniform(seed, stream, y);
  return y.to_vector<float>();
}

// Mean of x^power.
double moment(const std::vector<float>& v, int power) {
  double s = 0;
  for (float x : v) s += std::pow(double(x), power);
  return s / double(v.size());
}

double correlation(const std::vector<float>& a, const std::vector<float>& b) {
  double s = 0;
  for (size_t i = 0; i < a.size(); ++i) s += double(a[i]) * b[i];
  return s / double(a.size());
}

constexpr int64_t kMany = 1 << 20;

}  // namespace

TEST_CASE("Philox4x32-10 gives Random123's known answers") {
  CHECK(equals(philox4x32({{0, 0, 0, 0}}, 0, 0), 0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8));
  const uint32_t ones = 0xffffffff;
  CHECK(equals(philox4x32({{ones, ones, ones, ones}}, ones, ones), 0x408f276d, 0x41c83b0e, 0xa20bc7c6,
               0x6d5451fd));
  // The digits of pi as counter and key.
  CHECK(equals(philox4x32({{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}}, 0xa4093822, 0x299f31d0),
               0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1));
}

TEST_CASE("normals have the moments of a normal") {
  const std::vector<float> v = normals(7, 3, kMany);
  // Standard errors with n = 2^20: mean 1e-3, variance 1.4e-3, fourth moment sqrt(96/n) = 9.6e-3. Five of
  // them.
  CHECK(std::abs(moment(v, 1)) < 5e-3);
  CHECK(std::abs(moment(v, 2) - 1) < 7e-3);
  CHECK(std::abs(moment(v, 4) - 3) < 4.8e-2);
}

TEST_CASE("mean and std shift and stretch") {
  const std::vector<float> z = normals(7, 3, 1000), y = normals(7, 3, 1000, 5, 0.02);
  // Both are rounded once to f32: at 5 by 2.4e-7, and z's own rounding enters times 0.02.
  for (size_t i = 0; i < z.size(); ++i) REQUIRE(std::abs(y[i] - (5 + 0.02 * z[i])) < 3e-7);
}

TEST_CASE("uniforms fill [0,1) evenly") {
  const std::vector<float> v = uniforms(1, 0, kMany);
  std::vector<int> bin(16);
  for (float x : v) {
    REQUIRE(x >= 0);
    REQUIRE(x < 1);
    ++bin[static_cast<size_t>(x * 16)];
  }
  // A bin of n/16 = 65536 has a standard deviation of 248; five of them.
  for (int count : bin) CHECK(std::abs(count - kMany / 16) < 1240);
}

TEST_CASE("an element is the same in a longer tensor, in another type and under any number of threads") {
  const int threads = omp_get_max_threads();
  omp_set_num_threads(1);
  const std::vector<float> alone = normals(5, 9, 100003), flat = uniforms(5, 9, 100003);
  for (int n : {2, 3, 7}) {
    omp_set_num_threads(n);
    CHECK(normals(5, 9, 100003) == alone);
    CHECK(uniforms(5, 9, 100003) == flat);
  }
  omp_set_num_threads(threads);
  const std::vector<float> start = normals(5, 9, 33);
  CHECK(std::equal(start.begin(), start.end(), alone.begin()));
  Tensor wide = empty({33}, DType::f64);
  kernels::random_normal(uint64_t(5), uint64_t(9), 0.0, 1.0, wide);
  CHECK(wide.to(DType::f32).to_vector<float>() == start);
}

TEST_CASE("seeds and streams are independent") {
  const std::vector<float> a = normals(5, 9, kMany);
  CHECK(normals(5, 9, kMany) == a);
  // The product of independent normals has standard error 1e-3 here; five of them.
  CHECK(std::abs(correlation(a, normals(6, 9, kMany))) < 5e-3);
  CHECK(std::abs(correlation(a, normals(5, 10, kMany))) < 5e-3);
  CHECK(std::abs(correlation(a, normals(5 + (uint64_t(1) << 32), 9, kMany))) < 5e-3);
  CHECK(std::abs(correlation(a, normals(5, 9 + (uint64_t(1) << 32), kMany))) < 5e-3);
}

TEST_CASE("integers are refused") {
  Tensor y = empty({4}, DType::i32);
  check_rejects([&] { kernels::random_uniform(uint64_t(1), uint64_t(1), y); },
                "random_uniform: works on f32, bf16 and f64, not on i32");
}
