// RoPE's angles: position t turns pair j by t * theta^(-2j/E).  arXiv 2104.09864
// Frequencies, angles, cos and sin are computed in f64 and rounded once, into the table.
#include <cmath>
#include <numbers>
#include "models/llama.h"

namespace llatte {
namespace {

// Llama 3.1's rule: wavelengths longer than original/low_freq_factor are stretched by `factor`, those shorter
// than original/high_freq_factor are left alone, and in between the two are blended linearly in
// original/wavelength.
double llama3_scaled(double frequency, const RopeScaling& s) {
  const double wavelength = 2 * std::numbers::pi / frequency;
  const auto original = static_cast<double>(s.original_max_position_embeddings);
  if (wavelength < original / s.high_freq_factor) return frequency;
  if (wavelength > original / s.low_freq_factor) return frequency / s.factor;
  const double smooth =
      (original / wavelength - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor);
  return (1 - smooth) * frequency / s.factor + smooth * frequency;
}

}  // namespace

std::vector<double> rope_frequencies(const LlamaConfig& c) {
  std::vector<double> f(static_cast<size_t>(c.head_dim / 2));
  for (size_t j = 0; j < f.size(); ++j) {
    f[j] = std::pow(c.rope_theta, -2.0 * static_cast<double>(j) / static_cast<double>(c.head_dim));
    if (c.rope_scaling) f[j] = llama3_scaled(f[j], *c.rope_scaling);
  }
  return f;
}

RopeTable make_rope_table(const std::vector<double>& frequencies, int64_t positions, DType acc, Device d) {
  const auto F = static_cast<int64_t>(frequencies.size());
  std::vector<double> cos(static_cast<size_t>(positions * F)), sin(cos.size());
  for (int64_t t = 0; t < positions; ++t)
    for (int64_t j = 0; j < F; ++j) {
      const double angle = static_cast<double>(t) * frequencies[static_cast<size_t>(j)];
      cos[static_cast<size_t>(t * F + j)] = std::cos(angle);
      sin[static_cast<size_t>(t * F + j)] = std::sin(angle);
    }
  return {Tensor::from(cos, {positions, F}).to(acc).to(d), Tensor::from(sin, {positions, F}).to(acc).to(d)};
}

}  // namespace llatte
