// A layer of latent attention under test: its weights, the formula in loops to compare with, its gradients as
// an op, and decoding through a cache. For every kind; what differs is given: AttentionConfig and reference.
//   B batch  T time  D model width  H query heads  K kv heads  E head width
#pragma once
#include <map>
#include "models/llama.h"
#include "nn/latent_attention.h"
#include "test/op_case.h"

namespace llatte::test {

constexpr double kTheta = 50;  // small, so that every pair turns visibly within a few positions

inline std::vector<double> frequencies(int64_t E) {
  std::vector<double> f;
  for (int64_t j = 0; j < E / 2; ++j) f.push_back(std::pow(kTheta, -2.0 * double(j) / double(E)));
  return f;
}

struct Layer {
  explicit Layer(const AttentionConfig& c, Device d = test_device()) : attention(make_attention(c)) {
    attention->to(d);
    attention->params("", [&](const std::string& name, Var& p) { params.push_back({name, &p}); });
  }
  std::unique_ptr<Attention> attention;
  std::vector<std::pair<std::string, Var*>> params;
};

// ---- the formula, in loops
using Named = std::map<std::string, std::pair<Shape, Vec>>;

// y [N,O] = x [N,I] w^T (+ b).
inline Vec apply(const Named& p, const std::string& name, const Vec& x) {
  const auto w = p.find(name + ".weight"), b = p.find(name + ".bias");
  const int64_t O = w->second.first[0], I = w->second.first[1], N = int64_t(x.size()) / I;
  Vec y(static_cast<size_t>(N * O));
  for (int64_t n = 0; n < N; ++n)
    for (int64_t o = 0; o < O; ++o) {
      double sum = b == p.end() ? 0 : b->second.second[o];
      for (int64_t i = 0; i < I; ++i) sum += x[n * I + i] * w->second.second[o * I + i];
      y[n * O + o] = sum;
    }
  return y;
}

// The outputs (T,H,E) of heads whose scores, before 1/sqrt(E), are score(t, s, h), over v (T,K,E).
inline Vec attend_ref(const AttentionConfig& c, int64_t T, const Vec& v,
                      const std::function<double(int64_t t, int64_t s, int64_t h)>& score) {
  const int64_t H = c.H, K = c.K, E = c.E;
  Vec o(static_cast<size_t>(T * H * E));
  for (int64_t t = 0; t < T; ++t)
    for (int64_t h = 0; h < H; ++h) {
      Vec p;
      double total = 0;
      for (int64_t s = 0; s <= t; ++s) {
        p.push_back(std::exp(score(t, s, h) / std::sqrt(double(E))));
        total += p.back();
      }
      for (int64_t s = 0; s <= t; ++s)
        for (int64_t e = 0; e < E; ++e)
          o[(t * H + h) * E + e] += p[s] / total * v[(s * K + h / (H / K)) * E + e];
    }
  return o;
}

inline Tensor positions(int64_t begin, int64_t T, Device d = test_device()) {
  std::vector<int32_t> pos;
  for (int64_t t = 0; t < T; ++t) pos.push_back(static_cast<int32_t>(begin + t));
  return from(pos, {T}, d);
}

// The module as an op: inputs are x and every parameter, made small so that no softmax saturates.
constexpr double kSmall = 0.3;

using Reference = std::function<Vec(const Named& p, const Vec& x_TD, int64_t T)>;

inline OpCase attention_case(const std::string& name, const AttentionConfig& config, const Reference& ref,
                             int64_t B, int64_t T) {
  Layer shapes(config);
  OpCase c;
  c.name = name;
  c.inputs = {{B, T, config.D}};
  std::vector<std::string> names;
  for (const auto& [param, p] : shapes.params) c.inputs.push_back(p->shape()), names.push_back(param);
  c.op = [config, T](const std::vector<Var>& in) {
    AttentionConfig typed = config;
    typed.dtype = in[0].value.dtype();
    const Device d = in[0].value.device();
    Layer layer(typed, d);
    for (size_t i = 0; i < layer.params.size(); ++i) *layer.params[i].second = scale(in[i + 1], kSmall);
    const RopeTable table = make_rope_table(frequencies(config.E), T, acc_dtype(typed.dtype), d);
    return layer.attention->forward(in[0], {table, positions(0, T, d)});
  };
  c.ref = [ref, config, B, T, names, shape = c.inputs](const std::vector<Vec>& in) {
    Named p;
    for (size_t i = 0; i < names.size(); ++i) {
      p[names[i]] = {shape[i + 1], in[i + 1]};
      for (double& e : p[names[i]].second) e *= kSmall;
    }
    Vec y;
    for (int64_t b = 0; b < B; ++b) {
      const Vec x(in[0].begin() + b * T * config.D, in[0].begin() + (b + 1) * T * config.D);
      const Vec one = ref(p, x, T);
      y.insert(y.end(), one.begin(), one.end());
    }
    return y;
  };
  // bf16: about ten roundings in a row from x to y, of numbers that are sums with cancellation.
  c.bf16_roundings = 20;
  return c;
}

// ---- decoding
struct Decoding {
  Layer layer;
  Tensor x;
  RopeTable table;
  int64_t B, T;

  Decoding(const AttentionConfig& c, int64_t sequences, int64_t tokens) : layer(c), B(sequences), T(tokens) {
    std::mt19937 rng(9);
    for (auto& [name, p] : layer.params) {
      Vec w = noise(p->value.numel(), rng);
      for (double& e : w) e *= kSmall;
      *p = leaf(to_tensor(w, p->shape(), c.dtype));
    }
    x = to_tensor(noise(B * T * c.D, rng), {B, T, c.D}, c.dtype);
    table = make_rope_table(frequencies(c.E), T, acc_dtype(c.dtype), test_device());
  }
  Vec plain() const {
    const NoGrad off;
    return to_vec(layer.attention->forward(constant(x), {table, positions(0, T)}).value);
  }
  // Fed `chunk` tokens at a time through a cache.
  Vec cached(CacheType t, int64_t chunk) const {
    const NoGrad off;
    const auto cache = layer.attention->make_cache(B, T, t);
    Tensor y = empty(x.shape(), x.dtype());
    for (int64_t at = 0; at < T; at += chunk) {
      const int64_t n = std::min(chunk, T - at);
      const Var part = constant(x.slice(1, at, at + n).contiguous());
      y.slice(1, at, at + n)
          .copy_from(layer.attention->forward(part, {table, positions(at, n), 0, cache.get()}).value);
    }
    return to_vec(y);
  }
};

inline double relative(const Vec& got, const Vec& want) {
  double d = 0, n = 0;
  for (size_t i = 0; i < want.size(); ++i)
    d += (got[i] - want[i]) * (got[i] - want[i]), n += want[i] * want[i];
  return std::sqrt(d / n);
}

// More than any tile; fewer where each token costs a hundred kernels on a GPU that may be imitated.
inline int64_t many_tokens() { return test_device() == Device::cpu ? 200 : 70; }

// One query over many rows is absorbed (where that can be), many tokens at once are lifted. f64: sums of 200
// terms of order 1; f32: the same with 2^-24 a term, through four products.
inline void check_decoding(const std::string& name, const AttentionConfig& f64, const AttentionConfig& f32) {
  const Decoding proof(f64, 2, many_tokens()), fast(f32, 2, many_tokens());
  for (const int64_t chunk : {int64_t(1), int64_t(3), many_tokens()}) {
    check_near(str(name, " in f64 by ", chunk), proof.cached(CacheType::f64, chunk), proof.plain(), 1e-10);
    check_near(str(name, " in f32 by ", chunk), fast.cached(CacheType::f32, chunk), fast.plain(), 1e-5);
  }
}

// Absorbed or lifted, rows are read as the cache holds them: in f64 the two differ by rounding alone, though
// the rows themselves are off. By how much: a number is off by at most 2^-9, 1/254 or 1/14 of its group's
// largest, evenly spread so 1/sqrt(3) of that in the mean square; the largest of 32 is about twice the
// typical size, and scores and values are both off: sqrt(2) 2 / sqrt(3) = 1.6 of those bounds, and never
// above 4.
inline void check_narrow_caches(const std::string& name, const AttentionConfig& f64) {
  const std::pair<CacheType, double> kinds[] = {
      {CacheType::bf16, 1.0 / 512}, {CacheType::int8, 1.0 / 254}, {CacheType::int4, 1.0 / 14}};
  CAPTURE(name);
  const Decoding d(f64, 2, many_tokens());
  for (const auto& [type, bound] : kinds) {
    const Vec absorbed = d.cached(type, 1);
    check_near(name, absorbed, d.cached(type, many_tokens()), 1e-10);
    const double error = relative(absorbed, d.plain());
    CHECK(error < 4 * bound);
    CHECK(error > bound / 10);
  }
}

}  // namespace llatte::test
