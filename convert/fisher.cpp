// Statistics of one layer out of a mapped file, and the algebra on them.
#include "convert/fisher.h"
#include <cmath>
#include <cstring>
#include <numeric>
#include "convert/low_rank.h"
#include "tensor/linalg.h"

namespace llatte {
namespace {

namespace la = linalg;

constexpr double kRidge = 1e-2;  // rho, as a share of the mean diagonal

// sum of factor_i a_i, all of one shape.
Tensor combined(std::initializer_list<std::pair<double, Tensor>> terms) {
  Tensor sum = Tensor::zeros(terms.begin()->second.shape(), DType::f64);
  for (const auto& [factor, a] : terms)
    for (int64_t i = 0; i < sum.numel(); ++i) sum.data<double>()[i] += factor * a.data<double>()[i];
  return sum;
}

// [a, b], by columns.
Tensor beside(const Tensor& a, const Tensor& b) {
  return la::transposed(stacked(la::transposed(a), la::transposed(b)));
}

// [[C, m^T], [m, w]]: moments of [x; 1] under weights that sum up to w.
Tensor bordered(const Tensor& C_DD, const Tensor& mean_1D, double weight) {
  const Tensor row = beside(mean_1D, Tensor::full({1, 1}, weight, DType::f64));
  return stacked(beside(C_DD, la::transposed(mean_1D)), row);
}

std::vector<int64_t> shifted(std::vector<int64_t> rows, int64_t by) {
  for (int64_t& r : rows) r += by;
  return rows;
}

std::vector<int64_t> counted(int64_t n) {
  std::vector<int64_t> rows(static_cast<size_t>(n));
  std::iota(rows.begin(), rows.end(), int64_t{0});
  return rows;
}

// [F; W] of a fold; kk, cross = G_k2 and right are the blocks of what keeps its rotation, undefined where
// nothing does.
KeyFold solved_fold(const Tensor& two_two, const Tensor& B, const Tensor& kk, const Tensor& cross,
                    const Tensor& right) {
  const double rho = kRidge * la::mean_diagonal(two_two);
  const Tensor A = la::add_to_diagonal(two_two, rho), B_rho = la::add_to_diagonal(B, rho);
  if (!kk.defined()) return {la::solve_spd(A, B_rho), {}};
  const Tensor all = stacked(beside(A, la::transposed(cross)),
                             beside(cross, la::add_to_diagonal(kk, kRidge * la::mean_diagonal(kk))));
  const Tensor both = la::solve_spd(all, stacked(B_rho, right));
  const int64_t n = A.size(0);
  return {both.slice(0, 0, n).clone(), both.slice(0, n, both.size(0)).clone()};
}

double dot(const double* a, const double* b, int64_t n) { return std::inner_product(a, a + n, b, 0.0); }

}  // namespace

CalibrationFile::CalibrationFile(const std::filesystem::path& file, const LlamaConfig& c)
    : file_(SafetensorsFile::open(file)),
      L_(c.num_hidden_layers),
      D_(c.hidden_size),
      n_(c.num_key_value_heads * c.head_dim),
      q_(c.num_attention_heads * c.head_dim) {}

Tensor CalibrationFile::read(const std::string& name, int64_t layer, int64_t rows, int64_t columns) const {
  const std::string where = file_.path().string();
  LLATTE_CHECK(file_.has(name), where, ": there is no tensor `", name,
               "`; make the file with calibrate --covariance");
  const SafetensorsEntry& e = file_.entries().at(name);
  const Shape want{L_, rows, columns};
  LLATTE_CHECK(e.dtype == "F32" && e.shape == want, where, ": `", name, "` is ", e.dtype, " ", e.shape,
               ", this model needs F32 ", want, "; make the file for this model with calibrate --covariance");
  Tensor a = Tensor::empty({rows, columns}, DType::f32);
  std::memcpy(a.raw(), e.data + static_cast<size_t>(layer) * a.bytes(), a.bytes());
  return a.to(DType::f64);
}

Tensor CalibrationFile::square(const std::string& name, int64_t layer, int64_t side) const {
  const Tensor a = read(name, layer, side, side);
  const double diagonal = la::mean_diagonal(a);
  LLATTE_CHECK(std::isfinite(diagonal) && diagonal > 0, file_.path().string(), ": `", name, "` of layer ",
               layer, " has a mean diagonal of ", diagonal,
               ", a mean of squares is positive; make the file anew");
  return a;
}

Tensor CalibrationFile::covariance(int64_t layer, bool with_one) const {
  const Tensor S = square("S", layer, D_);
  return with_one ? bordered(S, read("means", layer, 3, D_).slice(0, 0, 1), 1) : S;
}

Tensor CalibrationFile::weighted_covariance(int64_t layer, bool with_one) const {
  const Tensor S = square("S", layer, D_), Ck = square("Ck", layer, D_), Cv = square("Cv", layer, D_);
  const double m = la::mean_diagonal(S), k = 0.25 * m / la::mean_diagonal(Ck),
               v = 0.25 * m / la::mean_diagonal(Cv);
  const Tensor C = combined({{k, Ck}, {v, Cv}, {0.5, S}});
  if (!with_one) return C;
  const Tensor means = read("means", layer, 3, D_);
  const auto mean = [&](int64_t i) { return means.slice(0, i, i + 1).clone(); };
  return bordered(C, combined({{0.5, mean(0)}, {k, mean(1)}, {v, mean(2)}}), k + v + 0.5);
}

Tensor CalibrationFile::query_gradients(int64_t layer) const {
  LLATTE_CHECK(file_.has("Gq"), file_.path().string(), ": there is no tensor `Gq`, which factoring q needs; ",
               "make the file anew with calibrate --covariance, or leave q whole with HLA.factor_q=false");
  return square("Gq", layer, q_);
}

Tensor CalibrationFile::gradients(int64_t layer) const {
  const Tensor p = square("Gp", layer, 3 * n_), mixed = square("Gmix", layer, 3 * n_);
  const auto key_trace = [&](const Tensor& g) {
    return la::mean_diagonal(g.slice(0, 0, n_).slice(1, 0, n_));
  };
  const double ratio = std::sqrt(key_trace(p) / key_trace(mixed));
  LLATTE_CHECK(std::isfinite(ratio) && ratio > 0, file_.path().string(), ": `Gp` and `Gmix` of layer ", layer,
               " give no gradient for k; make the file anew");
  Tensor s = Tensor::full({3 * n_}, ratio, DType::f64);
  for (int64_t i = 2 * n_; i < 3 * n_; ++i) s.data<double>()[i] = 1;
  return combined({{0.25, p}, {0.75, la::scaled_rows(la::scaled_columns(mixed, s), s)}});
}

Tensor CalibrationFile::tokens() const {
  const bool there = file_.has("tokens") && file_.entries().at("tokens").shape.size() == 2 &&
                     file_.entries().at("tokens").bytes > 0;
  LLATTE_CHECK(there, file_.path().string(), ": there are no `tokens` [N,T]; make the file with calibrate");
  return file_.read("tokens", DType::i32);
}

double second_order_loss(const Tensor& g, const Tensor& y, const Tensor& c) {
  const Tensor gy = la::product(g, y), yc = la::product(y, c);
  return dot(gy.data<double>(), yc.data<double>(), gy.numel()) / 2;
}

GradientMetric gradient_metric(const Tensor& g, const std::vector<int64_t>& rows) {
  const int64_t n = g.size(0) / 3;
  const auto two = shifted(rows, n), v = shifted(counted(n), 2 * n);
  return {block_of(g, rows, rows), block_of(g, rows, two), block_of(g, two, two), block_of(g, v, v)};
}

KeyFold fold(const Tensor& g, const std::vector<int64_t>& lost, const std::vector<int64_t>& kept) {
  const auto two = shifted(lost, g.size(0) / 3);
  const Tensor A = block_of(g, two, two), B = block_of(g, two, lost);
  if (kept.empty()) return solved_fold(A, B, {}, {}, {});
  return solved_fold(A, B, block_of(g, kept, kept), block_of(g, kept, two), block_of(g, kept, lost));
}

KeyFold fold(const Tensor& g, const Tensor& lift_n2P) {
  const GradientMetric m = gradient_metric(g, counted(g.size(0) / 3));
  const Tensor B = la::transposed(m.k2);
  if (lift_n2P.size(1) == 0) return solved_fold(m.two_two, B, {}, {}, {});
  const Tensor to_planes = lift_n2P.transpose(0, 1), kept_k = la::product(to_planes, m.kk);
  return solved_fold(m.two_two, B, la::product(kept_k, lift_n2P), la::product(to_planes, m.k2), kept_k);
}

Tensor derope_metric(const Tensor& g) {
  const int64_t n = g.size(0) / 3;
  const GradientMetric m = gradient_metric(g, counted(n));
  const Tensor f = fold(g, counted(n), {}).lost, k2f = la::product(m.k2, f);
  return combined({{1, m.kk},
                   {-1, k2f},
                   {-1, la::transposed(k2f)},
                   {1, la::product(f.transpose(0, 1), la::product(m.two_two, f))}});
}

Tensor derope_losses(const Tensor& all, const Tensor& covariance_DD, const Tensor& wk_nD, int64_t K) {
  const int64_t n = wk_nD.size(0), D = wk_nD.size(1), E = n / K, F = E / 2;
  LLATTE_CHECK(all.size(0) == 3 * n, "derope: the metric is ", all.shape(), " for ", n, " rows of k");
  const Tensor metric = derope_metric(all);
  const auto gd = [&](int64_t i) { return metric.data<double>()[i * (n + 1)]; };
  const Tensor wc_nD = la::product(wk_nD, covariance_DD);
  const double *w = wk_nD.data<double>(), *wc = wc_nD.data<double>();
  Tensor losses_KF = Tensor::empty({K, F}, DType::f64);
  for (int64_t k = 0; k < K; ++k)
    for (int64_t j = 0; j < F; ++j) {
      const int64_t re = k * E + j, im = re + F;
      const double size = dot(wc + re * D, w + re * D, D) + dot(wc + im * D, w + im * D, D);
      losses_KF.data<double>()[k * F + j] = (gd(re) + gd(im)) * size;
    }
  return losses_KF;
}

}  // namespace llatte
