// Plain numbers in double for tests: to and from tensors, comparison by a tolerance that NaN fails, and the
// check that bad input is refused in words. Tensors are made on test_device().
#pragma once
#include <doctest/doctest.h>
#include <cmath>
#include <random>
#include "autograd/var.h"
#include "test/on_device.h"

namespace llatte::test {

using Vec = std::vector<double>;

inline Vec noise(int64_t n, std::mt19937& rng) {
  std::normal_distribution<double> normal;
  Vec v(static_cast<size_t>(n));
  for (double& e : v) e = bf16(static_cast<float>(normal(rng)));
  return v;
}

inline Tensor to_tensor(const Vec& v, const Shape& s, DType t, Device d = test_device()) {
  return Tensor::from(v, s).to(t).to(d);
}
inline Vec to_vec(const Tensor& t) { return t.to(Device::cpu).to(DType::f64).to_vector<double>(); }

inline bool near(double got, double want, double tol) {
  return std::isfinite(want) && std::abs(got - want) <= tol * (1 + std::abs(want));
}

inline void check_near(const std::string& what, const Vec& got, const Vec& want, double tol) {
  REQUIRE_MESSAGE(got.size() == want.size(), what);
  int shown = 0;
  for (size_t i = 0; i < want.size() && shown < 3; ++i)
    if (!near(got[i], want[i], tol)) {
      ++shown;
      FAIL_CHECK(str(what, "[", i, "]: got ", got[i], ", want ", want[i], ", tolerance ", tol));
    }
  CHECK(shown == 0);
}

// f must throw an Error whose sentence contains `needle`. What a device finds while it works is thrown where
// the host waits.
template <class F>
void check_rejects(F&& f, const std::string& needle) {
  try {
    f();
    if (test_device() == Device::cuda) cuda::synchronize();
  } catch (const Error& e) {
    const std::string said = e.what();
    CHECK_MESSAGE(said.find(needle) != std::string::npos,
                  "the sentence was: " << said << "; wanted: " << needle);
    return;
  }
  FAIL_CHECK("accepted bad input, wanted: " << needle);
}

// A constant of random numbers, for what only shapes are tested of.
inline Var some(const Shape& s, DType t = DType::f32) { return constant(full(s, 0.5, t)); }

}  // namespace llatte::test
