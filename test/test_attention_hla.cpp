// Latent attention with RoPE inside the latents as a module, in every mode: its formula in complex numbers
// and its gradients against explicit loops in double; what commutes and what does not; absorbed decoding
// against the lifted form, in every kind of cache; what does not fit.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <complex>
#include "test/attention_case.h"

using namespace llatte;
using namespace llatte::test;

namespace {

using Complex = std::complex<double>;
using Ids = std::vector<int32_t>;
using enum HlaRope;

constexpr int64_t kD = 10, kH = 4, kE = 8, kF = kE / 2;

Planes planes(const Ids& pair, Ids block = {}) {
  if (block.empty()) block.assign(pair.size(), 0);
  return {pair, block};
}

struct Variant {
  std::string name;
  HlaRope rope;
  int64_t rope_pairs;
  Planes k, q;
  int64_t rank_q, rank_k, rank_v;
  int64_t K = 2, head_block = 0;
  bool bias = false;

  AttentionConfig config(DType t) const {
    AttentionConfig c;
    c.kind = "hla", c.D = kD, c.H = kH, c.K = K, c.E = kE, c.dtype = t, c.qkv_bias = bias;
    c.hla_rope = rope, c.rope_pairs = rope_pairs, c.head_block = head_block, c.k_planes = k, c.q_planes = q;
    c.rank_q = rank_q, c.rank_k = rank_k, c.rank_v = rank_v, c.shared_latent = rope == unified;
    return c;
  }
};

const Planes kNone, kEven = planes({0, 0, 1, 2, 2, 3}), kSome = planes({1, 1, 3}), kFirst = planes({0, 1, 1}),
                    kQueries = planes({0, 0, 0, 1, 1, 2, 3, 3}),
                    kBlocks = planes({0, 0, 1, 2, 3, 3}, {0, 1, 1, 0, 0, 1}),
                    kQueryBlocks = planes({0, 1, 2, 3}, {1, 0, 1, 0}), kLiteral = planes({0, 1, 0});

const std::vector<Variant> kVariants = {
    {"original", original, kF, kNone, kNone, 0, 7, 5},
    {"original, q factored, biases", original, kF, kNone, kNone, 6, 7, 5, 2, 0, true},
    {"latent", latent, kF, planes({0, 0, 2, 2}), planes({0, 0, 2, 2, 2}), 0, 0, 5},
    {"aligned", aligned, kF, kEven, kNone, 0, 0, 5},
    {"aligned, some pairs", aligned, kF, kSome, kNone, 0, 0, 5},
    {"aligned, q factored, biases", aligned, kF, kEven, kQueries, 0, 0, 5, 2, 0, true},
    {"aligned, blocks of one kv head", aligned, kF, kBlocks, kQueryBlocks, 0, 0, 5, 2, 1},
    {"aligned, blocks of two, biases", aligned, kF, kBlocks, kQueryBlocks, 0, 0, 5, 4, 2, true},
    {"hybrid", hybrid, 2, kFirst, kNone, 0, 4, 5},
    {"hybrid, q factored, biases", hybrid, 2, kFirst, kQueries, 0, 4, 5, 2, 0, true},
    {"hybrid, no planes, biases", hybrid, 0, kNone, kNone, 0, 4, 5, 2, 0, true},
    {"hybrid, no latent", hybrid, 2, kFirst, kNone, 0, 0, 5},
    {"unified", unified, 0, kSome, kNone, 0, 6, 6},
    {"unified, all pairs, biases", unified, 0, kEven, kNone, 0, 6, 6, 2, 0, true},
    {"unified, no planes", unified, 0, kNone, kNone, 0, 6, 6},
    {"unified, blocks, q factored", unified, 0, kBlocks, kQueryBlocks, 0, 6, 6, 4, 2},
    {"latent_literal", latent_literal, kF, kLiteral, planes({0, 1, 2, 3}), 8, 6, 5},
    {"latent_literal, biases", latent_literal, kF, kLiteral, planes({0, 1, 2, 3}), 8, 6, 5, 2, 0, true},
};

// ---- the formula, in loops over complex numbers
Complex turn(int64_t t, int32_t pair) { return std::polar(1.0, double(t) * frequencies(kE)[size_t(pair)]); }

// Columns of y (T,2n), half-split, as (T,n).
std::vector<Complex> complex_rows(const Vec& y, int64_t n) {
  std::vector<Complex> z;
  for (size_t at = 0; at < y.size(); at += size_t(2 * n))
    for (int64_t i = 0; i < n; ++i) z.emplace_back(y[at + i], y[at + n + i]);
  return z;
}

Vec half_split(const std::vector<Complex>& z, int64_t n) {
  Vec y;
  for (size_t at = 0; at < z.size(); at += size_t(n)) {
    for (int64_t i = 0; i < n; ++i) y.push_back(z[at + i].real());
    for (int64_t i = 0; i < n; ++i) y.push_back(z[at + i].imag());
  }
  return y;
}

std::vector<Complex> turned(std::vector<Complex> z, const Ids& pair) {
  for (size_t i = 0; i < z.size(); ++i) z[i] *= turn(int64_t(i / pair.size()), pair[i % pair.size()]);
  return z;
}

// What is read of a sequence: its queries (T,H,F) of complex pairs, unrotated, its planes and its latents.
struct Sequence {
  const Variant& v;
  const Named& p;
  const Vec& x;
  int64_t T, G = kH / v.K;

  Complex lift(const std::string& a, int64_t row, size_t plane) const {
    const Shape& s = p.at(a + "_re").first;
    const size_t at = size_t(row % s[0] * s[1]) + plane;
    return {p.at(a + "_re").second[at], p.at(a + "_im").second[at]};
  }
  bool serves(const Planes& planes, size_t i, int64_t head) const {
    return v.head_block == 0 || planes.block[i] == head / v.head_block;
  }
  // In planes: the rows of W_down_q are theirs.
  std::vector<Complex> lifted_queries() const {
    const auto z = complex_rows(apply(p, "W_down_q", x), v.q.count());
    std::vector<Complex> q(size_t(T * kH * kF));
    for (int64_t th = 0; th < T * kH; ++th)
      for (size_t i = 0; i < v.q.pair.size(); ++i)
        if (serves(v.q, i, th % kH / G))
          q[th * kF + v.q.pair[i]] += lift("A_q", th % kH, i) * z[th / kH * v.q.count() + i];
    return q;
  }
  std::vector<Complex> queries() const {
    if (p.count("q_proj.weight")) return complex_rows(apply(p, "q_proj", x), kF);
    if (p.count("A_q_re")) return lifted_queries();
    Vec z = apply(p, "W_down_q", x);
    if (v.rope == latent_literal) z = half_split(turned(complex_rows(z, v.q.count()), v.q.pair), v.q.count());
    return complex_rows(apply(p, "W_up_q", z), kF);
  }
  // k whole, (T,K,F): original and latent_literal.
  std::vector<Complex> whole_keys() const {
    Vec c = apply(p, "W_down_k", x);
    if (v.rope == latent_literal) c = half_split(turned(complex_rows(c, v.k.count()), v.k.pair), v.k.count());
    std::vector<Complex> k = complex_rows(apply(p, "W_up_k", c), kF);
    for (size_t i = 0; v.rope == original && i < k.size(); ++i)
      k[i] *= turn(int64_t(i) / (v.K * kF), int32_t(i % kF));
    return k;
  }
};

double times(const Complex& q, const Complex& k) { return (std::conj(q) * k).real(); }

std::function<double(int64_t, int64_t, int64_t)> whole_scores(const Sequence& s) {
  auto q = s.queries();
  for (size_t i = 0; s.v.rope == original && i < q.size(); ++i)
    q[i] *= turn(int64_t(i) / (kH * kF), int32_t(i % kF));
  return [q, k = s.whole_keys(), K = s.v.K](int64_t t, int64_t u, int64_t h) {
    double sum = 0;
    for (int64_t j = 0; j < kF; ++j)
      sum += times(q[(t * kH + h) * kF + j], k[(u * K + h / (kH / K)) * kF + j]);
    return sum;
  };
}

std::function<double(int64_t, int64_t, int64_t)> plane_scores(const Sequence& s) {
  const Variant& v = s.v;
  const auto z = v.k.count() ? turned(complex_rows(apply(s.p, "W_k_r", s.x), v.k.count()), v.k.pair)
                             : std::vector<Complex>();
  const int64_t n = kF - v.rope_pairs;
  const auto k_n =
      v.rank_k ? complex_rows(apply(s.p, "W_up_k", apply(s.p, "W_down_k", s.x)), n) : std::vector<Complex>();
  return [s, z, k_n, n, q = s.queries()](int64_t t, int64_t u, int64_t h) {
    const int64_t head = h / s.G, P = s.v.k.count();
    double sum = 0;
    for (size_t i = 0; i < size_t(P); ++i) {
      const int32_t j = s.v.k.pair[i];
      if (s.serves(s.v.k, i, head))
        sum += times(q[(t * kH + h) * kF + j] * turn(t, j), s.lift("A_k", head, i) * z[u * P + i]);
    }
    for (int64_t i = 0; !k_n.empty() && i < n; ++i)
      sum += times(q[(t * kH + h) * kF + s.v.rope_pairs + i], k_n[(u * s.v.K + head) * n + i]);
    return sum;
  };
}

Vec sequence_ref(const Variant& v, const Named& p, const Vec& x, int64_t T) {
  const Sequence s{v, p, x, T};
  const Vec values = apply(p, "W_up_v", apply(p, v.rope == unified ? "W_down_k" : "W_down_v", x));
  const auto score = lifts_planes(v.rope) ? plane_scores(s) : whole_scores(s);
  return apply(p, "o_proj", attend_ref(v.config(DType::f64), T, values, score));
}

// ---- what q and k are where they meet
struct Meeting final : AttentionProbe {
  Var attention(int64_t, const Var&, const Var& q, const Var& k, const Var&, const Var& o) override {
    q_THQ = q.value, k_TKQ = k.value;
    return o;
  }
  // q_h(t) . k_kappa(h)(s) / sqrt(E) of every h, t, s.
  Vec scores() const {
    const int64_t T = q_THQ.size(1), H = q_THQ.size(2), K = k_TKQ.size(2), Q = q_THQ.size(3);
    const Vec q = to_vec(q_THQ), k = to_vec(k_TKQ);
    Vec s;
    for (int64_t h = 0; h < H; ++h)
      for (int64_t ts = 0; ts < T * T; ++ts) {
        double sum = 0;
        for (int64_t i = 0; i < Q; ++i)
          sum += q[(ts / T * H + h) * Q + i] * k[(ts % T * K + h / (H / K)) * Q + i];
        s.push_back(sum / std::sqrt(double(kE)));
      }
    return s;
  }
  Tensor q_THQ, k_TKQ;
};

Meeting meeting_at(const Decoding& d, int64_t first) {
  const NoGrad off;
  const RopeTable table = make_rope_table(frequencies(kE), 100, DType::f64, test_device());
  Meeting m;
  d.layer.attention->forward(constant(d.x), {table, positions(first, d.T), 0, nullptr, &m});
  return m;
}

}  // namespace

TEST_CASE("the formula and every gradient, in every mode") {
  for (const Variant& v : kVariants)
    check(attention_case(
        v.name, v.config(DType::f32), [v](const auto&... in) { return sequence_ref(v, in...); }, 2, 5));
}

// Sums of tens of terms of order 1 in f64. The literal reading of the note is the negative: its rotation
// mixes heads, and q's planes are not k's.
TEST_CASE("scores depend on the distance of tokens alone, but for latent_literal") {
  for (const Variant& v : kVariants) {
    CAPTURE(v.name);
    const Decoding d(v.config(DType::f64), 1, 12);
    const Vec here = meeting_at(d, 0).scores(), there = meeting_at(d, 29).scores();
    double moved = 0;
    for (size_t i = 0; i < here.size(); ++i) moved = std::max(moved, std::abs(here[i] - there[i]));
    if (v.rope == latent_literal) CHECK(moved > 0.1);
    else CHECK(moved < 1e-10);
  }
}

// k at position t is k at position 0, each pair of each head turned by t theta: f64, a few products each.
TEST_CASE("the lift of rotated planes is the rotation of what they lift to") {
  for (const Variant& v : kVariants) {
    if (!lifts_planes(v.rope)) continue;
    Ids pairs = v.k.pair;
    pairs.erase(std::unique(pairs.begin(), pairs.end()), pairs.end());
    const Decoding d(v.config(DType::f64), 1, 1);
    const Tensor k0 = meeting_at(d, 0).k_TKQ, k9 = meeting_at(d, 9).k_TKQ;
    const int64_t half = k0.size(3) / 2;
    auto want = complex_rows(to_vec(k0), half);
    for (size_t i = 0; i < want.size(); ++i)
      if (const size_t at = i % size_t(half); at < pairs.size()) want[i] *= turn(9, pairs[at]);
    check_near(v.name, to_vec(k9), half_split(want, half), 1e-10);
  }
}

TEST_CASE("absorbed decoding and lifted chunks equal the full forward pass") {
  for (const Variant& v : kVariants) check_decoding(v.name, v.config(DType::f64), v.config(DType::f32));
}

TEST_CASE("narrow caches: both forms see the same rows, and the error is that of the rows") {
  for (const Variant& v : kVariants) check_narrow_caches(v.name, v.config(DType::f64));
}

TEST_CASE("the cache holds planes and latents and nothing else") {
  for (const Variant& v : kVariants) {
    CAPTURE(v.name);
    const int64_t z = lifts_planes(v.rope) ? 2 * v.k.count() : 0;
    const int64_t values = z + v.rank_k + (v.rope == unified ? 0 : v.rank_v);
    const auto layer = make_attention(v.config(DType::f32));
    CHECK(layer->make_cache(1, 7, CacheType::f32)->bytes_per_token() == 4 * values);
    CHECK(layer->make_cache(1, 7, CacheType::bf16)->bytes_per_token() == 2 * values);
  }
}

TEST_CASE("hla: what does not fit is refused in words") {
  const auto refuse = [](const Variant& v, const std::string& words,
                         const std::function<void(AttentionConfig&)>& spoil) {
    AttentionConfig c = v.config(DType::f32);
    spoil(c);
    check_rejects([&] { make_attention(c); }, words);
  };
  const Variant &orig = kVariants[0], &plain = kVariants[3], &blocks = kVariants[7], &mixed = kVariants[8],
                &one = kVariants[12], &literal = kVariants[16];
  refuse(plain, "4 query heads do not split over 3", [](auto& c) { c.K = 3; });
  refuse(plain, "head width 7 is odd", [](auto& c) { c.E = 7; });
  refuse(plain, "RMSNorm on q and k (Qwen3)", [](auto& c) { c.qk_norm = true; });
  refuse(plain, "k_pairs has 4 at place 5; expected 0 to 3", [](auto& c) { c.k_planes.pair[5] = 4; });
  refuse(plain, "k_pairs has -1 at place 0", [](auto& c) { c.k_planes.pair[0] = -1; });
  refuse(plain, "k_blocks lists 5 of 6 planes", [](auto& c) { c.k_planes.block.pop_back(); });
  refuse(plain, "k_blocks has 1 at place 2 of 1 blocks", [](auto& c) { c.k_planes.block[2] = 1; });
  refuse(plain, "place 3 is pair 0 of block 0", [](auto& c) { c.k_planes.pair[3] = 0; });
  refuse(blocks, "q_pairs and q_blocks must ascend", [](auto& c) { c.q_planes.pair[0] = 1; });
  refuse(blocks, "head_block 3 does not divide the 4 kv heads", [](auto& c) { c.head_block = 3; });
  refuse(plain, "nothing is left of k", [](auto& c) { c.k_planes = {}; });
  refuse(plain, "rank_v must be positive", [](auto& c) { c.rank_v = 0; });
  refuse(plain, "rank_k is 3, but all pairs keep RoPE", [](auto& c) { c.rank_k = 3; });
  refuse(plain, "rope_pairs is 2, in this mode it is 4", [](auto& c) { c.rope_pairs = 2; });
  refuse(plain, "rope_pairs is 9, expected 0 to 4", [](auto& c) { c.rope_pairs = 9; });
  refuse(plain, "leave rank_q out and list q_pairs", [](auto& c) { c.rank_q = 4; });
  refuse(mixed, "k_pairs has 2 at place 2; expected 0 to 1", [](auto& c) { c.k_planes.pair[2] = 2; });
  refuse(one, "got rank_k 6 and rank_v 5", [](auto& c) { c.rank_v = 5; });
  refuse(one, "rope_pairs is 1, in this mode it is 0", [](auto& c) { c.rope_pairs = 1; });
  refuse(orig, "rank_k is 0", [](auto& c) { c.rank_k = 0; });
  refuse(orig, "lists 6 planes of k", [](auto& c) { c.k_planes = kEven; });
  refuse(orig, "no planes to block", [](auto& c) { c.head_block = 1; });
  refuse(literal, "must be twice the 3 and 4 planes", [](auto& c) { c.rank_k = 5; });
}

TEST_CASE("a probe watches whole sequences only") {
  const Decoding d(kVariants[3].config(DType::f32), 1, 2);
  const NoGrad off;
  const auto cache = d.layer.attention->make_cache(1, 2, CacheType::f32);
  Meeting m;
  check_rejects(
      [&] {
        d.layer.attention->forward(constant(d.x), {d.table, positions(0, 2), 0, cache.get(), &m});
      },
      "hla: a probe watches whole sequences");
}
