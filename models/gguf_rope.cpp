// The llama3 rule of pair j, with u = 1/wavelength, O original positions, lo and hi the two bounds, F factor:
//   s = (O u - lo) / (hi - lo) clipped to [0,1],   1 / factor_j = (1 - s) / F + s
// Only the line s(u) shows in the factors: multiplying O, lo and hi by one number changes nothing.
#include "models/gguf_rope.h"
#include <cmath>
#include <numbers>

namespace llatte {
namespace {

std::vector<double> unscaled(LlamaConfig c) {
  c.rope_scaling.reset();
  return rope_frequencies(c);
}

bool gives(const RopeScaling& s, const std::vector<double>& factors, LlamaConfig c) {
  c.rope_scaling = s;
  const std::vector<double> got = rope_factors(c);
  for (size_t j = 0; j < got.size(); ++j)  // written so that NaN fails
    if (!(std::abs(got[j] - factors[j]) <= 1e-6 * factors[j])) return false;
  return true;
}

// The settings of Llama 3.1 and its successors, with O from one pair inside the blend.
RopeScaling published(double F, double u, double s) {
  return {F, 1, 4, std::max<int64_t>(1, std::llround(std::min((3 * s + 1) / u, 1e15)))};
}

// Any settings of the line s(u) with this slope through one point; O is as good as another.
RopeScaling on_line(double F, double u, double s, double slope) {
  const RopeScaling r{F, 0, 0, 8192};
  const double width = static_cast<double>(r.original_max_position_embeddings) / slope;  // hi - lo
  const double low = (slope * u - s) * width;
  return {F, low, low + width, r.original_max_position_embeddings};
}

struct Pairs {
  std::vector<double> u, s;  // falling, both
  size_t first, last;        // of those inside the blend, [first, last)
};

Pairs pairs_of(const std::vector<double>& factors, const LlamaConfig& c) {
  const double F = factors.back();
  Pairs p{unscaled(c), {}, 0, 0};
  for (double& u : p.u) u /= 2 * std::numbers::pi;
  for (const double f : factors) p.s.push_back((1 / f - 1 / F) / (1 - 1 / F));
  while (p.first < factors.size() && factors[p.first] == 1) ++p.first;
  p.last = p.first;
  while (p.last < factors.size() && factors[p.last] != F) ++p.last;
  return p;
}

// Two pairs inside the blend fix the line; with fewer, any that is steep enough to leave the neighbours
// outside will do.
RopeScaling from_pairs(const Pairs& p, double F) {
  const size_t a = p.first, b = p.last - 1;
  if (p.last > p.first + 1) return on_line(F, p.u[a], p.s[a], (p.s[a] - p.s[b]) / (p.u[a] - p.u[b]));
  if (p.last == p.first + 1) {
    const double down = p.s[a] / (p.u[a] - p.u[a + 1]);
    const double up = a > 0 ? (1 - p.s[a]) / (p.u[a - 1] - p.u[a]) : 0;
    return on_line(F, p.u[a], p.s[a], 2 * std::max(up, down));
  }
  const double below = p.u[a], above = a > 0 ? p.u[a - 1] : 2 * below;
  return on_line(F, (above + below) / 2, 0.5, 2 / (above - below));
}

}  // namespace

std::vector<double> rope_factors(const LlamaConfig& c) {
  std::vector<double> factors = unscaled(c);
  const std::vector<double> scaled = rope_frequencies(c);
  for (size_t j = 0; j < factors.size(); ++j) factors[j] /= scaled[j];
  return factors;
}

std::optional<RopeScaling> scaling_of(const std::vector<double>& factors, const LlamaConfig& c,
                                      const std::string& where) {
  LLATTE_CHECK(static_cast<int64_t>(factors.size()) == c.head_dim / 2, where, ": there are ", factors.size(),
               " factors for the ", c.head_dim / 2, " pairs of a head");
  for (const double f : factors)
    LLATTE_CHECK(std::isfinite(f) && f > 0, where, ": a factor is ", f, ", it must be positive");
  const double F = factors.back();
  const Pairs p = pairs_of(factors, c);
  if (p.first == factors.size()) return std::nullopt;
  if (F != 1) {
    if (p.last > p.first) {
      const RopeScaling r = published(F, p.u[p.first], p.s[p.first]);
      if (gives(r, factors, c)) return r;
    }
    const RopeScaling r = from_pairs(p, F);
    if (gives(r, factors, c)) return r;
  }
  LLATTE_FAIL(where, ": these factors (", factors.front(), " to ", F,
              ") follow no llama3 rule, which is the only RoPE scaling supported");
}

}  // namespace llatte
