// One description of an op, used several ways: value in f32, f64 and bf16, strided views, gradients, and what
// it refuses.
//
// `ref` is the same mathematics in double on plain vectors. Gradients are checked against central differences
// of `ref`, not of the op: the reference has 16 digits to lose, a float op has 7. The scalar that is
// differentiated is <y, c> with random c: with c = 1 a softmax backward that returns zeros would pass,
// because sum(softmax(x)) is constant. Comparisons are written so that NaN fails.
//
// Inputs and cotangents are rounded to bf16 first, so that all dtypes see the same numbers and only the
// arithmetic differs. Tolerances are |got - want| <= tol (1 + |want|); the inputs are of order 1.
//
// On another device than the CPU, values and gradients are compared with the CPU backend's own too.
#pragma once
#include <functional>
#include "autograd/ops.h"
#include "test/backends_agree.h"
#include "test/near.h"
#include "test/strided_views.h"

namespace llatte::test {

struct OpCase {
  std::string name;
  std::vector<Shape> inputs;
  std::function<Var(const std::vector<Var>&)> op;  // what it captures follows the inputs' device
  std::function<Vec(const std::vector<Vec>&)> ref;
  // How many values that were rounded to bf16 (each by at most 2^-8 of itself) one result depends on in a
  // row. 0: the op is not defined on bf16.
  int bf16_roundings = 2;
  double f32_tol = 2e-5;  // 2^-24 per operation, sums of a few hundred terms of order 1
};

constexpr double kF64Tol = 1e-12;  // 2^-53 per operation, the same sums
// Central differences with h = 1e-5: h^2 |f'''| / 6 = 2e-11 |f'''|, plus 1e-14 |f| / h = 1e-9 |f| of
// rounding.
constexpr double kStep = 1e-5, kDifferenceTol = 2e-7;
constexpr int kProbes =
    24;  // single entries differentiated per input; a random direction covers all the others

inline double tolerance(const OpCase& c, DType t) {
  return t == DType::f64 ? kF64Tol : t == DType::f32 ? c.f32_tol : c.bf16_roundings / 256.0;
}

// ---- one case, prepared
struct Prepared {
  std::vector<Vec> in;
  Vec want, cotangent;
};

inline Prepared prepare(const OpCase& c) {
  std::mt19937 rng(1234);
  Prepared p;
  for (const Shape& s : c.inputs) p.in.push_back(noise(numel_of(s), rng));
  p.want = c.ref(p.in);
  p.cotangent = noise(static_cast<int64_t>(p.want.size()), rng);
  return p;
}

inline std::vector<Tensor> tensors(const OpCase& c, const Prepared& p, DType t, Device d = test_device()) {
  std::vector<Tensor> r;
  for (size_t k = 0; k < p.in.size(); ++k) r.push_back(to_tensor(p.in[k], c.inputs[k], t, d));
  return r;
}

inline Vec value(const OpCase& c, const std::vector<Tensor>& in) {
  std::vector<Var> vars;
  for (const Tensor& t : in) vars.push_back(constant(t));
  return to_vec(c.op(vars).value);
}

// Gradient of <y, cotangent> for each input that `wants` names.
inline std::vector<Vec> gradients(const OpCase& c, const Prepared& p, const std::vector<Tensor>& in,
                                  const std::function<bool(size_t)>& wants) {
  std::vector<Var> vars;
  for (size_t k = 0; k < in.size(); ++k) vars.push_back(wants(k) ? leaf(in[k]) : constant(in[k]));
  const Var y = c.op(vars);
  backward(y, to_tensor(p.cotangent, y.shape(), y.value.dtype(), y.value.device()));
  std::vector<Vec> r(in.size());
  for (size_t k = 0; k < in.size(); ++k) {
    if (!wants(k)) continue;
    REQUIRE_MESSAGE(vars[k].grad().defined(), c.name << ": no gradient for input " << k);
    CHECK(vars[k].grad().dtype() == acc_dtype(in[k].dtype()));
    r[k] = to_vec(vars[k].grad());
  }
  return r;
}

// ---- the ways
inline void check_values(const OpCase& c, const Prepared& p, const std::vector<DType>& types) {
  for (DType t : types)
    check_near(str(c.name, " value in ", name(t)), value(c, tensors(c, p, t)), p.want, tolerance(c, t));
}

inline void check_views(const OpCase& c, const Prepared& p) {
  const std::vector<Tensor> in = tensors(c, p, DType::f32);
  for (size_t k = 0; k < in.size(); ++k) {
    if (in[k].ndim() < 2) continue;
    for (const Tensor& view : {transposed_view(in[k]), sliced_view(in[k])}) {
      std::vector<Tensor> viewed = in;
      viewed[k] = view;
      check_near(str(c.name, " with input ", k, " strided"), value(c, viewed), p.want, c.f32_tol);
    }
  }
}

// (f(x + h d) - f(x - h d)) / 2h, f = <ref(in), cotangent>, d a direction of input k.
inline double difference(const OpCase& c, Prepared p, size_t k, const Vec& d) {
  const Vec x = p.in[k];
  const auto f = [&](double h) {
    for (size_t i = 0; i < x.size(); ++i) p.in[k][i] = x[i] + h * d[i];
    const Vec y = c.ref(p.in);
    double s = 0;
    for (size_t i = 0; i < y.size(); ++i) s += y[i] * p.cotangent[i];
    return s;
  };
  return (f(kStep) - f(-kStep)) / (2 * kStep);
}

inline void check_direction(const OpCase& c, const Prepared& p, size_t k, const Vec& g, const Vec& d) {
  double got = 0;
  for (size_t i = 0; i < g.size(); ++i) got += g[i] * d[i];
  const double want = difference(c, p, k, d);
  CHECK_MESSAGE(near(got, want, kDifferenceTol), c.name << ": gradient of input " << k
                                                        << " along a direction is " << got
                                                        << ", differences say " << want);
}

inline void check_differences(const OpCase& c, const Prepared& p, const std::vector<Vec>& grads) {
  std::mt19937 rng(77);
  for (size_t k = 0; k < grads.size(); ++k) {
    const size_t n = grads[k].size();
    if (n == 0) continue;
    Vec all = noise(static_cast<int64_t>(n), rng);
    for (double& e : all) e /= std::sqrt(static_cast<double>(n));
    check_direction(c, p, k, grads[k], all);
    for (size_t i = 0; i < std::min<size_t>(n, kProbes); ++i) {
      Vec one(n, 0.0);
      one[n <= kProbes ? i : rng() % n] = 1;
      check_direction(c, p, k, grads[k], one);
    }
  }
}

// f64 gradients are proved by differences; every entry in the other types is then compared with those.
inline void check_gradients(const OpCase& c, const Prepared& p, const std::vector<DType>& types) {
  const auto all = [](size_t) { return true; };
  const std::vector<Vec> proved = gradients(c, p, tensors(c, p, DType::f64), all);
  check_differences(c, p, proved);
  for (DType t : types) {
    const std::vector<Vec> got = gradients(c, p, tensors(c, p, t), all);
    for (size_t k = 0; k < got.size(); ++k)
      check_near(str(c.name, " gradient of input ", k, " in ", name(t)), got[k], proved[k], tolerance(c, t));
  }
  std::vector<Tensor> viewed = tensors(c, p, DType::f64);
  for (Tensor& x : viewed)
    if (x.ndim() >= 2) x = sliced_view(x);
  for (size_t k = 0; k < proved.size(); ++k)  // alone: the others are constants, whose products are skipped
    check_near(str(c.name, " gradient of strided input ", k, " alone"),
               gradients(c, p, viewed, [k](size_t i) { return i == k; })[k], proved[k], kF64Tol);
}

// ---- the device under test against the CPU backend (backends_agree.h)
// Of the largest number in a result. f32 and f64: the same terms, summed in another order. bf16: where the
// two round to different sides, they are twice as far apart as each is from the truth.
inline double backend_tolerance(const OpCase& c, DType t) {
  return t == DType::f64 ? 1e-13 : t == DType::f32 ? 1e-5 : 2 * c.bf16_roundings / 256.0;
}

inline void check_against_cpu(const OpCase& c, const Prepared& p, const std::vector<DType>& types) {
  const auto all = [](size_t) { return true; };
  for (const DType t : types) {
    const std::vector<Tensor> in = tensors(c, p, t), cpu_in = tensors(c, p, t, Device::cpu);
    const double tol = backend_tolerance(c, t);
    const Vec want = value(c, cpu_in);
    check_backends_agree(str(c.name, " value in ", name(t)), value(c, in), want, tol, largest_of(want));
    const std::vector<Vec> got = gradients(c, p, in, all), cpu = gradients(c, p, cpu_in, all);
    double all_inputs = 0;  // a gradient that should be 0 is a sum of terms as large as the others'
    for (const Vec& g : cpu) all_inputs = std::max(all_inputs, largest_of(g));
    for (size_t k = 0; k < got.size(); ++k)
      check_backends_agree(str(c.name, " gradient of input ", k, " in ", name(t)), got[k], cpu[k], tol,
                           std::max(largest_of(cpu[k]), all_inputs / 10));
  }
}

inline void check(const OpCase& c) {
  const Prepared p = prepare(c);
  std::vector<DType> types{DType::f64, DType::f32};
  if (c.bf16_roundings > 0) types.push_back(DType::bf16);
  check_values(c, p, types);
  check_views(c, p);
  check_gradients(c, p, types);
  if (test_device() != Device::cpu) check_against_cpu(c, p, types);
}

}  // namespace llatte::test
