// Multi-head latent attention as a module: its formula and gradients against explicit loops in double, for
// every shape of kept pairs; absorbed decoding against the lifted form, in every kind of cache; and the GQA
// layer that it equals when nothing is left out.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "test/attention_case.h"

using namespace llatte;
using namespace llatte::test;

namespace {

using Pairs = std::vector<std::vector<int32_t>>;

constexpr int64_t kD = 10, kH = 4, kK = 2, kE = 8;
struct Variant {
  std::string name;
  Pairs kept;
  int64_t rank_k, rank_v;
  bool shared, bias = false;

  AttentionConfig config(DType t) const {
    AttentionConfig c;
    c.kind = "mla", c.D = kD, c.H = kH, c.K = kK, c.E = kE, c.dtype = t, c.qkv_bias = bias;
    c.kept_pairs = kept, c.rank_k = rank_k, c.rank_v = rank_v, c.shared_latent = shared;
    return c;
  }
  bool keeps(int64_t head, int64_t dim) const {
    for (const int32_t j : kept[static_cast<size_t>(head)])
      if (j == dim % (kE / 2)) return true;
    return false;
  }
};

const Pairs kAll{{0, 1, 2, 3}, {0, 1, 2, 3}}, kHigh{{0, 1}, {0, 1}}, kUniform{{1, 3}, {1, 3}},
    kEnds{{0, 3}, {0, 3}}, kByHead{{0, 2}, {1, 3}}, kLow{{3}, {3}}, kByLayer{{1}, {0, 2, 3}},
    kOneHead{{}, {0, 1, 2, 3}}, kNone{{}, {}};

const std::vector<Variant> kVariants = {
    {"all pairs, joint", kAll, 6, 6, true},
    {"high, joint", kHigh, 6, 6, true},
    {"uniform, split", kUniform, 5, 7, false},
    {"high and low, split", kEnds, 5, 7, false},
    {"by head, joint", kByHead, 6, 6, true},
    {"low, joint", kLow, 6, 6, true},
    {"by layer, joint", kByLayer, 6, 6, true},
    {"by layer, split, biases", kByLayer, 5, 7, false, true},
    {"by layer, joint, biases", kByLayer, 6, 6, true, true},
    {"by layer, only key", kByLayer, 5, 0, false},
    {"by layer, only key, biases", kByLayer, 5, 0, false, true},
    {"by layer, only value", kByLayer, 0, 5, false},
    {"by layer, only value, biases", kByLayer, 0, 5, false, true},
    {"a head without pairs, joint", kOneHead, 6, 6, true},
    {"no pairs, joint, biases", kNone, 6, 6, true, true},
};

// ---- the formula, in loops
// heads [T,heads,E]: the pairs that kv head h / G keeps turn by their position.
void turn(const Variant& v, Vec& x, int64_t T, int64_t heads) {
  const Vec f = frequencies(kE);
  for (int64_t t = 0; t < T; ++t)
    for (int64_t h = 0; h < heads; ++h)
      for (int64_t j = 0; j < kE / 2; ++j) {
        if (!v.keeps(h / (heads / kK), j)) continue;
        double &re = x[(t * heads + h) * kE + j], &im = x[(t * heads + h) * kE + j + kE / 2];
        const double c = std::cos(double(t) * f[j]), s = std::sin(double(t) * f[j]), u = re;
        re = u * c - im * s, im = u * s + im * c;
      }
}

// k [T,K,E] before RoPE: rows of W_k_r and W_up_k, by kv head, dims ascending.
Vec keys_ref(const Variant& v, const Named& p, const Vec& x, int64_t T) {
  const Vec kept = p.count("W_k_r.weight") ? apply(p, "W_k_r", x) : Vec();
  const Vec c = v.rank_k ? apply(p, "W_down_k", x) : x;
  const Vec lost = p.count("W_up_k.weight") ? apply(p, "W_up_k", c) : Vec();
  Vec k;
  for (int64_t t = 0; t < T; ++t) {
    size_t a = kept.size() / size_t(T) * size_t(t), b = lost.size() / size_t(T) * size_t(t);
    for (int64_t h = 0; h < kK; ++h)
      for (int64_t e = 0; e < kE; ++e) k.push_back(v.keeps(h, e) ? kept[a++] : lost[b++]);
  }
  return k;
}

Vec values_ref(const Variant& v, const Named& p, const Vec& x) {
  if (!v.rank_v) return apply(p, "W_up_v", x);
  return apply(p, "W_up_v", apply(p, v.shared ? "W_down_k" : "W_down_v", x));
}

Vec sequence_ref(const Variant& v, const Named& p, const Vec& x, int64_t T) {
  Vec q = apply(p, "q_proj", x), k = keys_ref(v, p, x, T);
  turn(v, q, T, kH);
  turn(v, k, T, kK);
  const auto score = [&](int64_t t, int64_t s, int64_t h) {
    double sum = 0;
    for (int64_t e = 0; e < kE; ++e) sum += q[(t * kH + h) * kE + e] * k[(s * kK + h / (kH / kK)) * kE + e];
    return sum;
  };
  return apply(p, "o_proj", attend_ref(v.config(DType::f64), T, values_ref(v, p, x), score));
}

OpCase case_of(const Variant& v, int64_t B, int64_t T) {
  return attention_case(
      v.name, v.config(DType::f32), [v](const auto&... in) { return sequence_ref(v, in...); }, B, T);
}

}  // namespace

TEST_CASE("the formula and every gradient, for every shape of kept pairs") {
  for (const Variant& v : kVariants) check(case_of(v, 2, 5));
}

TEST_CASE("absorbed decoding and lifted chunks equal the full forward pass") {
  for (const Variant& v : kVariants) check_decoding(v.name, v.config(DType::f64), v.config(DType::f32));
}

TEST_CASE("narrow caches: both forms see the same rows, and the error is that of the rows") {
  for (const Variant& v : kVariants) check_narrow_caches(v.name, v.config(DType::f64));
}

// W_down = 1, so c = x, and W_k_r, W_up_k are the rows of k_proj: nothing is lost.
TEST_CASE("at full rank it is grouped-query attention, with RoPE everywhere or on the same pairs") {
  for (const Variant& v : {Variant{"all", kAll, kD, kD, true}, Variant{"some", kByLayer, kD, kD, true, true},
                           Variant{"split", kByHead, kD, kD, false}, Variant{"none", kNone, kD, kD, true}}) {
    AttentionConfig c = v.config(DType::f64);
    const Decoding mla(c, 1, 20);
    c.kind = "gqa";
    const Decoding gqa(c, 1, 20);
    std::map<std::string, Vec> from;
    for (const auto& [name, p] : gqa.layer.params) from[name] = to_vec(p->value);
    for (const auto& [name, p] : mla.layer.params) {
      Vec w;
      if (name.starts_with("W_down")) {
        for (int64_t i = 0; i < kD * kD; ++i) w.push_back(i / kD == i % kD);
      } else if (name.starts_with("W_k_r") || name.starts_with("W_up_k")) {
        const Vec& k = from[name.ends_with("bias") ? "k_proj.bias" : "k_proj.weight"];
        const size_t width = k.size() / (kK * kE);
        for (int64_t d = 0; d < kK * kE; ++d)
          if (v.keeps(d / kE, d % kE) == name.starts_with("W_k_r"))
            w.insert(w.end(), k.begin() + d * width, k.begin() + (d + 1) * width);
      } else {
        w = from[name.starts_with("W_up_v") ? "v_proj" + name.substr(6) : name];
      }
      *p = leaf(to_tensor(w, p->shape(), DType::f64));
    }
    check_near(
        v.name, mla.plain(),
        [&] {
          const NoGrad off;
          return to_vec(gqa.layer.attention->forward(constant(mla.x), {mla.table, positions(0, 20)}).value);
        }(),
        1e-12);
  }
}

TEST_CASE("the cache holds the stream and nothing else") {
  const auto bytes = [](const Variant& v, CacheType t) {
    return make_attention(v.config(DType::f32))->make_cache(1, 7, t)->bytes_per_token();
  };
  CHECK(bytes({"", kHigh, 6, 6, true}, CacheType::f32) == 4 * (2 * 2 * 2 + 6));  // 2rK + R
  CHECK(bytes({"", kHigh, 6, 6, true}, CacheType::bf16) == 2 * (2 * 2 * 2 + 6));
  CHECK(bytes({"", kByLayer, 5, 7, false}, CacheType::f32) == 4 * (8 + 5 + 7));        // split
  CHECK(bytes({"", kByLayer, 5, 0, false}, CacheType::f32) == 4 * (8 + 5 + kK * kE));  // v is whole
  CHECK(bytes({"", kByLayer, 0, 7, false}, CacheType::f32) == 4 * (8 + 8 + 7));        // so is k_c
  CHECK(bytes({"", kHigh, 6, 6, true}, CacheType::int8) == 16 + 2 * 2);  // 14 codes in whole words, 2 groups
  CHECK(bytes({"", kHigh, 6, 6, true}, CacheType::int4) == 8 + 2 * 2);
}

TEST_CASE("mla: what does not fit is refused in words") {
  const auto refuse = [](const std::string& words, const std::function<void(AttentionConfig&)>& spoil) {
    AttentionConfig c = Variant{"", kHigh, 6, 6, true}.config(DType::f32);
    spoil(c);
    check_rejects([&] { make_attention(c); }, words);
  };
  refuse("4 query heads do not split over 3", [](auto& c) { c.K = 3; });
  refuse("kept_pairs lists 1 kv heads of 2", [](auto& c) { c.kept_pairs = {{0}}; });
  refuse("kept pair 4 at place 1; pairs must ascend within [0,4)", [](auto& c) { c.kept_pairs[0] = {0, 4}; });
  refuse("kept pair 1 at place 1", [](auto& c) { c.kept_pairs[1] = {1, 1}; });
  refuse("ranks 0 of k and 0 of v", [](auto& c) { c.rank_k = c.rank_v = 0; });
  refuse("has one rank, got 6 and 5", [](auto& c) { c.rank_v = 5; });
  refuse("RMSNorm on q and k", [](auto& c) { c.qk_norm = true; });
  const Decoding d(Variant{"", kHigh, 6, 6, true}.config(DType::f32), 1, 2);
  const auto cache = d.layer.attention->make_cache(1, 2, CacheType::f32);
  const Var x = constant(d.x);
  check_rejects(
      [&] {
        d.layer.attention->forward(x, {d.table, positions(0, 2), 0, cache.get()});
      },
      "mla: a cache is for decoding and keeps no gradients; hold a NoGrad");
  AttentionConfig c = Variant{"", {}, 0, 0, false}.config(DType::f32);
  c.kind = "gqa";
  const auto other = make_attention(c)->make_cache(1, 2, CacheType::f32);
  const NoGrad off;
  check_rejects(
      [&] {
        d.layer.attention->forward(x, {d.table, positions(0, 2), 0, other.get()});
      },
      "mla: this cache was made by another kind of attention");
}
