#include "convert/moments.h"
#include <cmath>
#include <map>
#include "tensor/kernels.h"  // matmul, mul, scale

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

// |g(t)|^2 of columns [begin, end), for every row t; z f64 on the host.
std::vector<double> squared_norms(const Tensor& z_TN, int64_t begin, int64_t end) {
  const int64_t N = z_TN.size(1);
  std::vector<double> norms(static_cast<size_t>(z_TN.size(0)));
  for (size_t t = 0; t < norms.size(); ++t)
    for (int64_t i = begin; i < end; ++i) {
      const double g = z_TN.data<double>()[static_cast<int64_t>(t) * N + i];
      norms[t] += g * g;
    }
  return norms;
}

std::vector<double> roots(std::vector<double> squared) {
  for (double& s : squared) s = std::sqrt(s);
  return squared;
}

// [N,1], in x's type and where x is.
Tensor column_of(const std::vector<double>& weights, const Tensor& x) {
  return Tensor::from(weights, {static_cast<int64_t>(weights.size()), 1}).to(x.dtype()).to(x.device());
}

// Row `which` of means [L,3,D] += sum of weights[t] x(t).
void add_mean(const Tensor& x_TD, const std::vector<double>& weights, int64_t layer, int64_t which,
              Tensor& means_L3D) {
  const Tensor w_T1 = column_of(weights, x_TD);
  Tensor row = layer_of(means_L3D, layer).slice(0, which, which + 1);
  kernels::matmul(w_T1.transpose(0, 1), x_TD, row, 1);
}

void check_finite(const Tensor& x, const std::string& name) {
  const int64_t per_layer = x.numel() / x.size(0);
  const float* p = x.data<float>();
  for (int64_t i = 0; i < x.numel(); ++i)
    LLATTE_CHECK(std::isfinite(p[i]), "calibrate: ", name, " of layer ", i / per_layer, " holds ", p[i],
                 "; the model's weights or activations are not finite, or it has no gradients there");
}

}  // namespace

// The weights, spread over the columns by a product with ones: each entry has one term and is exact.
Tensor weighted_rows(const Tensor& x_Nn, const std::vector<double>& weights) {
  Tensor y = Tensor::empty_like(x_Nn);
  const Tensor ones_1n = Tensor::full({1, x_Nn.size(1)}, 1, x_Nn.dtype(), x_Nn.device());
  kernels::matmul(column_of(weights, x_Nn), ones_1n, y, 0);
  kernels::mul(x_Nn, y, y);
  return y;
}

MomentSums::MomentSums(int64_t L, int64_t D, int64_t n, int64_t A, DType acc, Device d)
    : n_(n),
      S_LDD_(Tensor::zeros({L, D, D}, acc, d)),
      Ck_LDD_(Tensor::zeros({L, D, D}, acc, d)),
      Cv_LDD_(Tensor::zeros({L, D, D}, acc, d)),
      Gp_LZZ_(Tensor::zeros({L, 3 * n, 3 * n}, acc, d)),
      Gmix_LZZ_(Tensor::zeros({L, 3 * n, 3 * n}, acc, d)),
      Gq_LAA_(Tensor::zeros({L, A, A}, acc, d)),
      means_L3D_(Tensor::zeros({L, 3, D}, acc, d)),
      norms_L2_(Tensor::zeros({L, 2}, DType::f64)) {}

void MomentSums::add_inputs(int64_t layer, const Tensor& x_TD) {
  add_outer(x_TD, layer, S_LDD_);
  add_mean(x_TD, std::vector<double>(static_cast<size_t>(x_TD.size(0)), 1), layer, 0, means_L3D_);
}

void MomentSums::add_gradients(int64_t layer, const Tensor& x_TD, const HeadGradients& g) {
  const int64_t T = x_TD.size(0);
  add_outer(g.plain_T3n.slice(0, 1, T), layer, Gp_LZZ_);
  add_outer(g.mixed_T3n.slice(0, 1, T), layer, Gmix_LZZ_);
  add_outer(g.q_THE.reshape({T, Gq_LAA_.size(1)}).slice(0, 1, T), layer, Gq_LAA_);
  const Tensor z_T3n = g.plain_T3n.to(Device::cpu).to(DType::f64);
  // Rows x(t) |g(t)|, whose outer products are the weighted ones of x.
  const auto add_weighted = [&](int64_t begin, int64_t mean, Tensor& C_LDD, double& norm) {
    const std::vector<double> squared = squared_norms(z_T3n, begin, begin + n_);
    for (const double s : squared) norm += s;
    add_outer(weighted_rows(x_TD, roots(squared)), layer, C_LDD);
    add_mean(x_TD, squared, layer, mean, means_L3D_);
  };
  double* norms = norms_L2_.data<double>() + 2 * layer;
  add_weighted(0, 1, Ck_LDD_, norms[0]);
  add_weighted(2 * n_, 2, Cv_LDD_, norms[1]);
}

void MomentSums::each(const std::function<void(const std::string&, Tensor&)>& f) {
  f("S", S_LDD_), f("Ck", Ck_LDD_), f("Cv", Cv_LDD_), f("means", means_L3D_);
  f("Gp", Gp_LZZ_), f("Gmix", Gmix_LZZ_), f("Gq", Gq_LAA_), f("norms", norms_L2_);
}

const std::vector<std::string>& MomentSums::results() {
  static const std::vector<std::string> names{"S", "Ck", "Cv", "means", "Gp", "Gmix", "Gq"};
  return names;
}

const Tensor& MomentSums::sum(const std::string& name) const {
  const std::map<std::string, const Tensor*> sums{
      {"S", &S_LDD_},   {"Ck", &Ck_LDD_},     {"Cv", &Cv_LDD_}, {"means", &means_L3D_},
      {"Gp", &Gp_LZZ_}, {"Gmix", &Gmix_LZZ_}, {"Gq", &Gq_LAA_}};
  return *sums.at(name);
}

Shape MomentSums::shape(const std::string& name) const { return sum(name).shape(); }

Tensor MomentSums::result(const std::string& name, int64_t tokens, int64_t gradient_rows) const {
  const Tensor& all = sum(name);
  Tensor mean = Tensor::empty_like(all);
  for (int64_t l = 0; l < all.size(0); ++l) {
    const double* norms = norms_L2_.data<double>() + 2 * l;
    const auto scale = [&](double weight, int64_t begin, int64_t end) {
      Tensor to = layer_of(mean, l).slice(0, begin, end);
      kernels::scale(layer_of(all, l).slice(0, begin, end), 1 / weight, to);
    };
    const auto N = static_cast<double>(tokens);
    if (name == "means") scale(N, 0, 1), scale(norms[0], 1, 2), scale(norms[1], 2, 3);
    else if (name == "S") scale(N, 0, all.size(1));
    else if (name == "Ck" || name == "Cv") scale(norms[name == "Cv"], 0, all.size(1));
    else scale(static_cast<double>(gradient_rows), 0, all.size(1));
  }
  mean = mean.to(DType::f32).to(Device::cpu);
  check_finite(mean, name);
  return mean;
}

}  // namespace llatte
