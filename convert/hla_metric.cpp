//   D model width  H query heads  K kv heads  G = H/K  E head width  F = E/2 pairs
#include "convert/hla_metric.h"
#include "convert/attention.h"
#include "convert/mla.h"
#include "tensor/linalg.h"

namespace llatte {
namespace {

namespace la = linalg;

// E |y_(head,j)|^2 / 2 of every pair from the moments E[y y^T], at both of its dims: [heads, E].
std::vector<double> pair_sizes(const Tensor& moments, int64_t E) {
  const int64_t N = moments.size(0), F = E / 2;
  std::vector<double> size(static_cast<size_t>(N));
  for (int64_t i = 0; i < N; ++i) {
    const int64_t other = i % E < F ? i + F : i - F;
    size[static_cast<size_t>(i)] =
        (moments.data<double>()[i * (N + 1)] + moments.data<double>()[other * (N + 1)]) / 2;
  }
  return size;
}

Tensor diagonal(const std::vector<double>& d) {
  const auto N = static_cast<int64_t>(d.size());
  Tensor a = Tensor::zeros({N, N}, DType::f64);
  for (int64_t i = 0; i < N; ++i) a.data<double>()[i * (N + 1)] = d[static_cast<size_t>(i)];
  return a;
}

// Block diagonal over kv heads: the sum of their query heads' blocks of E[q q^T].
Tensor grouped(const Tensor& moments, int64_t K, int64_t E) {
  const int64_t G = moments.size(0) / (K * E);
  Tensor a = Tensor::zeros({K * E, K * E}, DType::f64);
  for (int64_t h = 0; h < K * G; ++h)
    for (int64_t i = 0; i < E; ++i)
      for (int64_t j = 0; j < E; ++j)
        a.data<double>()[(h / G * E + i) * K * E + h / G * E + j] +=
            moments.data<double>()[(h * E + i) * moments.size(0) + h * E + j];
  return a;
}

}  // namespace

Tensor with_bias(const Tensor& w_ND, const Tensor& bias_N) {
  if (!bias_N.defined()) return w_ND;
  return la::transposed(stacked(la::transposed(w_ND), bias_N.reshape({1, -1})));
}

Tensor weight_and_bias(const Checkpoint& source, int64_t layer, const std::string& projection) {
  const auto read = [&](const char* what) {
    return source.read(attention_name(layer, projection + what), DType::f64);
  };
  return with_bias(read(".weight"), source.config.qkv_bias ? read(".bias") : Tensor());
}

HlaMetric::HlaMetric(const Checkpoint& source, const ConversionSettings& settings, int64_t layer)
    : source_(source), metric_(settings.metric), layer_(layer) {
  if (metric_ != Metric::plain) statistics_.emplace(settings.calibration, source.config);
}

Tensor HlaMetric::covariance(bool planes) const {
  if (metric_ == Metric::plain) return {};
  const bool one = planes && source_.config.qkv_bias;
  return metric_ == Metric::fisher ? statistics_->weighted_covariance(layer_, one)
                                   : statistics_->covariance(layer_, one);
}

// E[y y^T] of what a projection puts out.
Tensor HlaMetric::moments(const char* projection) const {
  const Tensor w = weight_and_bias(source_, layer_, projection);
  const Tensor S = statistics_->covariance(layer_, source_.config.qkv_bias);
  return la::product(la::product(w, S), w.transpose(0, 1));
}

// Of all rows of k before RoPE.
Tensor HlaMetric::rotated_metric() const {
  const LlamaConfig& c = source_.config;
  const int64_t E = c.head_dim, n = c.num_key_value_heads * E,
                G = c.num_attention_heads / c.num_key_value_heads;
  if (metric_ == Metric::fisher) return statistics_->gradients(layer_).slice(0, 0, n).slice(1, 0, n).clone();
  if (metric_ != Metric::omega) return {};
  const std::vector<double> q = pair_sizes(moments("q_proj"), E);
  std::vector<double> k(static_cast<size_t>(n), 0);
  for (int64_t i = 0; i < n * G; ++i)
    k[static_cast<size_t>(i / E / G * E + i % E)] += q[static_cast<size_t>(i)];
  return diagonal(k);
}

FactorMetric HlaMetric::rotated_keys(const std::vector<int64_t>& rows) const {
  const Tensor gam = rotated_metric();
  return {covariance(true), gam.defined() ? block_of(gam, rows, rows) : gam};
}

FactorMetric HlaMetric::dense_keys() const { return {covariance(false), rotated_metric()}; }

FactorMetric HlaMetric::unrotated_keys(const std::vector<int64_t>& rows) const {
  const LlamaConfig& c = source_.config;
  if (metric_ == Metric::fisher)
    return {covariance(false), gradient_metric(statistics_->gradients(layer_), rows).two_two};
  if (metric_ != Metric::omega) return {covariance(false), {}};
  const Tensor gam = grouped(moments("q_proj"), c.num_key_value_heads, c.head_dim);
  return {covariance(false), block_of(gam, rows, rows)};
}

FactorMetric HlaMetric::values() const {
  if (metric_ == Metric::plain || metric_ == Metric::white) return {covariance(false), {}};
  if (metric_ != Metric::fisher) return {covariance(false), output_metric(source_, layer_)};
  return {covariance(false), gradient_metric(statistics_->gradients(layer_), {0}).vv};
}

FactorMetric HlaMetric::queries(bool planes) const {
  const LlamaConfig& c = source_.config;
  const int64_t E = c.head_dim, H = c.num_attention_heads, G = H / c.num_key_value_heads;
  if (metric_ == Metric::fisher) return {covariance(planes), statistics_->query_gradients(layer_)};
  if (metric_ != Metric::omega) return {covariance(planes), {}};
  const std::vector<double> k = pair_sizes(moments("k_proj"), E);
  std::vector<double> q(static_cast<size_t>(H * E));
  for (int64_t i = 0; i < H * E; ++i)
    q[static_cast<size_t>(i)] = k[static_cast<size_t>(i / E / G * E + i % E)];
  return {covariance(planes), diagonal(q)};
}

}  // namespace llatte
