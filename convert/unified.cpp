// Channels, planes and latents of a layer; and how many of each every layer gets.
#include "convert/unified.h"
#include <algorithm>
#include <cmath>
#include <complex>
#include <numeric>
#include "convert/low_rank.h"
#include "tensor/linalg.h"

namespace llatte {
namespace {

namespace la = linalg;

constexpr double kPlaneFloor = 1e-4;       // eigenvalues of Gd_j, as a share of the largest over all pairs
constexpr double kCovarianceFloor = 1e-9;  // of C, for its root
constexpr int64_t kBisections = 60;

struct Complex {
  Tensor re, im;
};

Tensor sum_of(const Tensor& a, double factor, const Tensor& b) {
  Tensor y = a.clone();
  for (int64_t i = 0; i < y.numel(); ++i) y.data<double>()[i] += factor * b.data<double>()[i];
  return y;
}

Complex product(const Complex& a, const Complex& b) {
  return {sum_of(la::product(a.re, b.re), -1, la::product(a.im, b.im)),
          sum_of(la::product(a.re, b.im), 1, la::product(a.im, b.re))};
}

Complex adjoint(const Complex& a) {
  Tensor im = la::transposed(a.im);
  for (int64_t i = 0; i < im.numel(); ++i) im.data<double>()[i] *= -1;
  return {la::transposed(a.re), im};
}

Tensor identity(int64_t n) { return la::add_to_diagonal(Tensor::zeros({n, n}, DType::f64), 1); }

// sum of a_ij b_ij.
double inner(const Tensor& a, const Tensor& b) {
  return std::inner_product(a.data<double>(), a.data<double>() + a.numel(), b.data<double>(), 0.0);
}

// M of pair j, [K,K]: E[y y^H] of y = (dim j) + i (dim j + F) of every kv head, for a = E[k k^T] [n,n].
Complex pair_block(const Tensor& a_nn, int64_t j, int64_t K) {
  const int64_t n = a_nn.size(0), E = n / K, F = E / 2;
  Complex m{Tensor::empty({K, K}, DType::f64), Tensor::empty({K, K}, DType::f64)};
  const auto at = [&](int64_t row, int64_t column) { return a_nn.data<double>()[row * n + column]; };
  for (int64_t r = 0; r < K; ++r)
    for (int64_t c = 0; c < K; ++c) {
      const int64_t re_r = r * E + j, re_c = c * E + j;
      m.re.data<double>()[r * K + c] = at(re_r, re_c) + at(re_r + F, re_c + F);
      m.im.data<double>()[r * K + c] = at(re_r + F, re_c) - at(re_r, re_c + F);
    }
  return m;
}

// U f(e) U^H.
template <class F>
Complex function_of(const la::EighComplex& e, F f) {
  Tensor s = e.values.clone();
  for (int64_t i = 0; i < s.numel(); ++i) s.data<double>()[i] = f(s.data<double>()[i]);
  const Complex u{e.re, e.im};
  return product({la::scaled_columns(e.re, s), la::scaled_columns(e.im, s)}, adjoint(u));
}

// Gd = G_kk - G_k2 F - F^T G_2k + F^T G_22 F, F the fold of all rows.
Tensor derope_metric(const GradientMetric& m, const Tensor& fold) {
  const Tensor k2f = la::product(m.k2, fold);
  const Tensor once = sum_of(m.kk, -1, k2f), twice = sum_of(once, -1, la::transposed(k2f));
  return sum_of(twice, 1, la::product(fold.transpose(0, 1), la::product(m.two_two, fold)));
}

// Complex thin QR of the first `count` columns of a [K,C], by Gram-Schmidt, taken twice for accuracy.
Complex orthonormal(const Complex& a, int64_t count) {
  using C = std::complex<double>;
  const int64_t K = a.re.size(0), columns = a.re.size(1);
  std::vector<std::vector<C>> q;
  for (int64_t c = 0; c < count; ++c) {
    std::vector<C> x(static_cast<size_t>(K));
    for (int64_t k = 0; k < K; ++k)
      x[static_cast<size_t>(k)] = {a.re.data<double>()[k * columns + c],
                                   a.im.data<double>()[k * columns + c]};
    for (size_t i = 0; i < 2 * q.size(); ++i) {
      const auto& y = q[i % q.size()];
      C dot = 0;
      for (size_t k = 0; k < x.size(); ++k) dot += std::conj(y[k]) * x[k];
      for (size_t k = 0; k < x.size(); ++k) x[k] -= dot * y[k];
    }
    double squares = 0;
    for (const C& v : x) squares += std::norm(v);
    for (C& v : x) v /= std::sqrt(squares);
    q.push_back(x);
  }
  Complex r{Tensor::empty({K, count}, DType::f64), Tensor::empty({K, count}, DType::f64)};
  for (int64_t k = 0; k < K; ++k)
    for (int64_t c = 0; c < count; ++c) {
      const C v = q[static_cast<size_t>(c)][static_cast<size_t>(k)];
      r.re.data<double>()[k * count + c] = v.real(), r.im.data<double>()[k * count + c] = v.imag();
    }
  return r;
}

// Plane p of P, of pair j, lifts to a_k (x + i y) in the pair's two dims of every head k: columns p and P + p
// of the dense lift [n,2P].
void set_lift(Tensor& lift_n2P, const Complex& a, int64_t column, int64_t p, int64_t j, int64_t E) {
  const int64_t K = a.re.size(0), P = lift_n2P.size(1) / 2;
  for (int64_t k = 0; k < K; ++k) {
    const double re = a.re.data<double>()[k * a.re.size(1) + column],
                 im = a.im.data<double>()[k * a.re.size(1) + column];
    double *top = lift_n2P.data<double>() + (k * E + j) * 2 * P, *bottom = top + E / 2 * 2 * P;
    top[p] = re, top[P + p] = -im;
    bottom[p] = im, bottom[P + p] = re;
  }
}

Tensor attention_weight(const Checkpoint& c, int64_t l, const std::string& name) {
  return c.read(str("model.layers.", l, ".self_attn.", name), DType::f64);
}

// up += where the gain is largest; ranks at their most stay.
void add_ranks(const std::vector<LossTable>& losses, int64_t left, std::vector<UnifiedSize>& sizes) {
  const auto gain = [&](size_t l) {
    const std::vector<double>& by_rank = losses[l].at(sizes[l].planes);
    const auto R = static_cast<size_t>(sizes[l].rank);
    return R + 1 < by_rank.size() ? by_rank[R] - by_rank[R + 1] : -HUGE_VAL;
  };
  for (; left > 0; --left) {
    size_t best = 0;
    for (size_t l = 1; l < sizes.size(); ++l)
      if (gain(l) > gain(best)) best = l;
    if (gain(best) < 0) return;
    ++sizes[best].rank;
  }
}

UnifiedSize cheapest(const LossTable& losses, double mu) {
  UnifiedSize best;
  double least = HUGE_VAL;
  for (const auto& [P, by_rank] : losses)
    for (size_t R = 1; R < by_rank.size(); ++R) {
      const double cost = by_rank[R] + mu * static_cast<double>(2 * P + static_cast<int64_t>(R));
      if (cost < least) least = cost, best = {P, static_cast<int64_t>(R)};
    }
  return best;
}

// Numbers of planes that are tried: all small ones, then steps of about an eighth.
std::vector<int64_t> plane_grid(int64_t most) {
  std::vector<int64_t> grid;
  for (int64_t P = 0; P < most; P += std::max<int64_t>(1, P / 8)) grid.push_back(P);
  grid.push_back(most);
  return grid;
}

}  // namespace

UnifiedLayer::UnifiedLayer(const Checkpoint& source, const CalibrationFile& statistics, int64_t layer)
    : K_(source.config.num_key_value_heads),
      E_(source.config.head_dim),
      wk_nD_(attention_weight(source, layer, "k_proj.weight")),
      wv_nD_(attention_weight(source, layer, "v_proj.weight")),
      g_(statistics.gradients(layer)),
      covariance_(statistics.weighted_covariance(layer)),
      covariance_root_(la::root_of(covariance_, kCovarianceFloor).root) {
  if (source.config.qkv_bias) {
    wk_bias_ = attention_weight(source, layer, "k_proj.bias").reshape({K_ * E_, 1});
    wv_bias_ = attention_weight(source, layer, "v_proj.bias");
  }
  std::vector<int64_t> rows(static_cast<size_t>(K_ * E_));
  std::iota(rows.begin(), rows.end(), 0);
  metric_ = gradient_metric(g_, rows);
  wcw_nn_ = la::product(la::product(wk_nD_, covariance_), wk_nD_.transpose(0, 1));
  const Tensor v_nD = la::product(wv_nD_, covariance_root_);
  values_DD_ = la::product(v_nD.transpose(0, 1), la::product(metric_.vv, v_nD));
  make_channels();
}

void UnifiedLayer::make_channels() {
  const Tensor none = Tensor::zeros({K_ * E_, 0}, DType::f64);
  const Tensor gd_nn = derope_metric(metric_, fold(g_, none).lost);
  std::vector<la::EighComplex> metrics;
  double largest = 0;
  for (int64_t j = 0; j < E_ / 2; ++j) {
    const Complex gd_j = pair_block(gd_nn, j, K_);
    metrics.push_back(la::eigh(gd_j.re, gd_j.im));
    largest = std::max(largest, metrics.back().values.data<double>()[0]);
  }
  const auto raised = [&](double x) { return std::max(x, kPlaneFloor * largest); };
  for (int64_t j = 0; j < E_ / 2; ++j) {
    const la::EighComplex& e = metrics[static_cast<size_t>(j)];
    const Complex T = function_of(e, [&](double x) { return std::sqrt(raised(x)); });
    const Complex inverse = function_of(e, [&](double x) { return 1 / std::sqrt(raised(x)); });
    const Complex m = product(product(T, pair_block(wcw_nn_, j, K_)), T);
    const la::EighComplex u = la::eigh(m.re, m.im);
    const Complex a = product(inverse, {u.re, u.im}), tu = product(T, {u.re, u.im});
    pairs_.push_back({a.re, a.im, tu.re, tu.im});
    for (const double lam : u.values.to_vector<double>()) channels_.push_back({lam, static_cast<int32_t>(j)});
  }
  std::stable_sort(channels_.begin(), channels_.end(), [](auto& a, auto& b) { return a.lam > b.lam; });
}

Planes UnifiedLayer::planes(int64_t P) const {
  Planes planes;
  for (int64_t p = 0; p < P; ++p) planes.pair.push_back(channels_.at(static_cast<size_t>(p)).pair);
  std::sort(planes.pair.begin(), planes.pair.end());
  planes.block.assign(planes.pair.size(), 0);
  return planes;
}

UnifiedLayer::KeyMaps UnifiedLayer::key_maps(const std::vector<int32_t>& pairs) const {
  const int64_t n = K_ * E_, P = static_cast<int64_t>(pairs.size());
  const auto zeros = [](int64_t rows, int64_t columns) { return Tensor::zeros({rows, columns}, DType::f64); };
  KeyMaps m{zeros(K_, P), zeros(K_, P), zeros(n, 2 * P), {}, {}};
  Tensor a_n2P = zeros(n, 2 * P), tu_n2P = zeros(n, 2 * P);
  for (int64_t first = 0, p = 0; p < P; first = p) {
    const int64_t j = pairs[static_cast<size_t>(p)];
    while (p < P && pairs[static_cast<size_t>(p)] == j) ++p;
    LLATTE_CHECK(p - first <= K_, "unified: ", p - first, " planes of pair ", j, "; ", K_,
                 " kv heads have no more than ", K_);
    const PairFactors& f = pairs_.at(static_cast<size_t>(j));
    const Complex q = orthonormal({f.a_re, f.a_im}, p - first);
    for (int64_t i = first; i < p; ++i) {
      set_lift(m.lift_n2P, q, i - first, i, j, E_);
      set_lift(a_n2P, {f.a_re, f.a_im}, i - first, i, j, E_);
      set_lift(tu_n2P, {f.tu_re, f.tu_im}, i - first, i, j, E_);
    }
    m.a_re_KP.slice(1, first, p).copy_from(q.re), m.a_im_KP.slice(1, first, p).copy_from(q.im);
  }
  // lift z = A (T U)^H k, and lift^T lift = I.
  const Tensor rotated_nn = la::product(a_n2P, tu_n2P.transpose(0, 1));
  const Tensor lost_nn = sum_of(identity(n), -1, rotated_nn);
  m.planes_2Pn = la::product(m.lift_n2P.transpose(0, 1), rotated_nn);
  const KeyFold f = fold(g_, m.lift_n2P);
  m.unrotated_nn = la::product(f.lost, lost_nn);
  if (P > 0) m.planes_2Pn = sum_of(m.planes_2Pn, 1, la::product(f.kept, lost_nn));
  return m;
}

std::vector<double> UnifiedLayer::losses(int64_t P) const {
  const KeyMaps m = key_maps(planes(P).pair);
  const int64_t n = K_ * E_;
  // Y W_k is what becomes of the rotated and of the unrotated keys: 1/2 tr(Y^T G Y W_k C W_k^T).
  const Tensor y = stacked(sum_of(la::product(m.lift_n2P, m.planes_2Pn), -1, identity(n)), m.unrotated_nn);
  const Tensor g = g_.slice(0, 0, 2 * n).slice(1, 0, 2 * n);
  const double derope = inner(la::product(g, y), la::product(y, wcw_nn_)) / 2;
  const Tensor k_nD = la::product(m.unrotated_nn, la::product(wk_nD_, covariance_root_));
  const Tensor all =
      sum_of(values_DD_, 1, la::product(k_nD.transpose(0, 1), la::product(metric_.two_two, k_nD)));
  const std::vector<double> e = la::eigh(all).values.to_vector<double>();
  const size_t most = static_cast<size_t>(std::min(2 * n, all.size(0)));
  std::vector<double> by_rank(most + 1, derope);
  for (size_t R = most; R-- > 0;) by_rank[R] = by_rank[R + 1] + std::max(e[R], 0.0) / 2;
  return by_rank;
}

std::map<std::string, Tensor> UnifiedLayer::weights(const std::vector<int32_t>& pairs, int64_t R,
                                                    bool balanced) const {
  const KeyMaps m = key_maps(pairs);
  const LatentFactors f = factor_latents(SvdMethod::joint, la::product(m.unrotated_nn, wk_nD_), wv_nD_, R,
                                         {covariance_, metric_.two_two, metric_.vv}, balanced);
  std::map<std::string, Tensor> w{
      {"W_down_k.weight", f.down_k}, {"W_up_k.weight", f.up_k}, {"W_up_v.weight", f.up_v}};
  if (!pairs.empty()) {
    w["W_k_r.weight"] = la::product(m.planes_2Pn, wk_nD_);
    w["A_k_re"] = m.a_re_KP, w["A_k_im"] = m.a_im_KP;
  }
  if (!wk_bias_.defined()) return w;
  if (!pairs.empty()) w["W_k_r.bias"] = la::product(m.planes_2Pn, wk_bias_).reshape({-1});
  w["W_up_k.bias"] = la::product(m.unrotated_nn, wk_bias_).reshape({-1}), w["W_up_v.bias"] = wv_bias_;
  return w;
}

std::vector<UnifiedSize> allocate_unified(const std::vector<LossTable>& losses, int64_t total) {
  const auto L = static_cast<int64_t>(losses.size());
  LLATTE_CHECK(total >= L, "unified: ", total, " cached values for ", L,
               " layers; have at least one a layer");
  std::vector<UnifiedSize> sizes(losses.size());
  const auto cached = [&](double mu) {
    int64_t sum = 0;
    for (size_t l = 0; l < losses.size(); ++l) sum += (sizes[l] = cheapest(losses[l], mu)).cached();
    return sum;
  };
  double largest = 0;
  for (const LossTable& t : losses)
    for (const auto& [P, by_rank] : t) largest = std::max(largest, by_rank.front());
  // At mu = `largest` no layer takes more than the one value it must have.
  double low = std::log(1e-30 * largest), high = std::log(2 * largest);
  for (int64_t i = 0; i < kBisections; ++i) {
    const double middle = (low + high) / 2;
    (cached(std::exp(middle)) <= total ? high : low) = middle;
  }
  add_ranks(losses, total - cached(std::exp(high)), sizes);
  return sizes;
}

std::vector<HlaLayer> unified_layers(const Checkpoint& source, int64_t cache_values,
                                     const std::string& calibration, double* predicted) {
  const LlamaConfig& c = source.config;
  const int64_t whole = 2 * c.num_key_value_heads * c.head_dim;
  LLATTE_CHECK(0 < cache_values && cache_values < whole, "unified: ", cache_values,
               " cached values per token and layer; this model takes 1 to ", whole - 1);
  const CalibrationFile statistics(calibration, c);
  std::vector<std::map<int64_t, Planes>> planes;
  std::vector<LossTable> losses;
  for (int64_t l = 0; l < c.num_hidden_layers; ++l) {
    const UnifiedLayer layer(source, statistics, l);
    planes.emplace_back(), losses.emplace_back();
    for (const int64_t P : plane_grid(std::min(cache_values, layer.most_planes())))
      losses.back()[P] = layer.losses(P), planes.back()[P] = layer.planes(P);
  }
  const auto sizes = allocate_unified(losses, cache_values * c.num_hidden_layers);
  std::vector<HlaLayer> chosen;
  double sum = 0;
  for (size_t l = 0; l < sizes.size(); ++l) {
    chosen.push_back({planes[l].at(sizes[l].planes), {}, 0, sizes[l].rank, sizes[l].rank});
    sum += losses[l].at(sizes[l].planes)[static_cast<size_t>(sizes[l].rank)];
  }
  if (predicted) *predicted = sum;
  return chosen;
}

}  // namespace llatte
