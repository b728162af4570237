#include "convert/moments.h"
#include <cmath>
#include "tensor/kernels.h"  // matmul

namespace llatte {
namespace {

Tensor layer_of(const Tensor& x_LMN, int64_t layer) {
  return x_LMN.slice(0, layer, layer + 1).reshape({x_LMN.size(1), x_LMN.size(2)});
}

// sum[layer] += a^T a.
void add_outer(const Tensor& a_TN, int64_t layer, Tensor& sum_LNN) {
  Tensor sum = layer_of(sum_LNN, layer);
  kernels::matmul(a_TN.transpose(0, 1), a_TN, sum, 1);
}

// |g(t)|^2 of columns [begin, end), for every row t.
template <class T>
std::vector<double> squared_norms(const Tensor& z_TN, int64_t begin, int64_t end) {
  const int64_t N = z_TN.size(1);
  std::vector<double> norms(static_cast<size_t>(z_TN.size(0)));
  for (size_t t = 0; t < norms.size(); ++t)
    for (int64_t i = begin; i < end; ++i) {
      const double g = z_TN.data<T>()[static_cast<int64_t>(t) * N + i];
      norms[t] += g * g;
    }
  return norms;
}

// Rows x(t) |g(t)|, whose outer products are the weighted ones of x.
template <class T>
Tensor weighted(const Tensor& x_TD, const std::vector<double>& squared) {
  Tensor y = x_TD.clone();
  const int64_t D = x_TD.size(1);
  for (size_t t = 0; t < squared.size(); ++t) {
    T* row = y.data<T>() + static_cast<int64_t>(t) * D;
    const T w = static_cast<T>(std::sqrt(squared[t]));
    for (int64_t d = 0; d < D; ++d) row[d] *= w;
  }
  return y;
}

void check_finite(const Tensor& x, const std::string& name) {
  const int64_t per_layer = x.numel() / x.size(0);
  const float* p = x.data<float>();
  for (int64_t i = 0; i < x.numel(); ++i)
    LLATTE_CHECK(std::isfinite(p[i]), "calibrate: ", name, " of layer ", i / per_layer, " holds ", p[i],
                 "; the model's weights or activations are not finite, or it has no gradients there");
}

}  // namespace

MomentSums::MomentSums(int64_t L, int64_t D, int64_t n, DType acc)
    : n_(n),
      S_LDD_(Tensor::zeros({L, D, D}, acc)),
      Ck_LDD_(Tensor::zeros({L, D, D}, acc)),
      Cv_LDD_(Tensor::zeros({L, D, D}, acc)),
      Gp_LZZ_(Tensor::zeros({L, 3 * n, 3 * n}, acc)),
      Gmix_LZZ_(Tensor::zeros({L, 3 * n, 3 * n}, acc)),
      norms_L2_(Tensor::zeros({L, 2}, DType::f64)) {}

void MomentSums::add_inputs(int64_t layer, const Tensor& x_TD) { add_outer(x_TD, layer, S_LDD_); }

void MomentSums::add_gradients(int64_t layer, const Tensor& x_TD, const Tensor& z_T3n,
                               const Tensor& zmix_T3n) {
  const int64_t T = z_T3n.size(0);
  add_outer(z_T3n.slice(0, 1, T), layer, Gp_LZZ_);
  add_outer(zmix_T3n.slice(0, 1, T), layer, Gmix_LZZ_);
  const auto add_weighted = [&]<class F>(int64_t begin, Tensor& C_LDD, double& norm) {
    const std::vector<double> squared = squared_norms<F>(z_T3n, begin, begin + n_);
    for (const double s : squared) norm += s;
    add_outer(weighted<F>(x_TD, squared), layer, C_LDD);
  };
  double* norms = norms_L2_.data<double>() + 2 * layer;
  const auto add_both = [&]<class F>() {
    add_weighted.template operator()<F>(0, Ck_LDD_, norms[0]);
    add_weighted.template operator()<F>(2 * n_, Cv_LDD_, norms[1]);
  };
  if (x_TD.dtype() == DType::f64) add_both.template operator()<double>();
  else add_both.template operator()<float>();
}

void MomentSums::each(const std::function<void(const std::string&, Tensor&)>& f) {
  f("S", S_LDD_), f("Ck", Ck_LDD_), f("Cv", Cv_LDD_);
  f("Gp", Gp_LZZ_), f("Gmix", Gmix_LZZ_), f("norms", norms_L2_);
}

Tensor MomentSums::result(const std::string& name, int64_t tokens, int64_t gradient_rows) const {
  const Tensor& sum = name == "S"    ? S_LDD_
                      : name == "Ck" ? Ck_LDD_
                      : name == "Cv" ? Cv_LDD_
                      : name == "Gp" ? Gp_LZZ_
                                     : Gmix_LZZ_;
  Tensor mean = Tensor::empty_like(sum);
  for (int64_t l = 0; l < sum.size(0); ++l) {
    const double* norms = norms_L2_.data<double>() + 2 * l;
    const double weight = name == "S"    ? static_cast<double>(tokens)
                          : name == "Ck" ? norms[0]
                          : name == "Cv" ? norms[1]
                                         : static_cast<double>(gradient_rows);
    Tensor to = layer_of(mean, l);
    kernels::scale(layer_of(sum, l), 1 / weight, to);
  }
  mean = mean.to(DType::f32);
  check_finite(mean, name);
  return mean;
}

}  // namespace llatte
