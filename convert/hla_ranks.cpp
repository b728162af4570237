// How wide the latents of each layer are, and what their planes turn with.
//   D model width  H query heads  K kv heads  E head width  F = E/2 pairs  g kv heads of a block
#include <cmath>
#include <numeric>
#include "convert/allocate.h"
#include "convert/hla_parts.h"

namespace llatte {
namespace {

// The frequency of plane i of a head that has P: f(i).
int32_t frequency(const HlaSettings& s, int64_t i, int64_t P, int64_t F) {
  return static_cast<int32_t>(s.even ? i * F / P : i);
}

}  // namespace

std::vector<int64_t> sorted_by(const std::vector<int32_t>& pair) {
  std::vector<int64_t> order(pair.size());
  std::iota(order.begin(), order.end(), int64_t{0});
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
    return pair[static_cast<size_t>(a)] < pair[static_cast<size_t>(b)];
  });
  return order;
}

std::vector<int32_t> plane_frequencies(const HlaSettings& s, const char* key, int64_t rank, int64_t heads,
                                       int64_t F) {
  LLATTE_CHECK(rank % (2 * heads) == 0 && rank <= 2 * heads * F, "HLA.", key, " is ", rank, ", mode ",
               name(s.rope), " gives each of ", heads, " heads the same number of planes, up to ", F,
               ": use a multiple of ", 2 * heads);
  const int64_t each = rank / (2 * heads);
  std::vector<int32_t> pair;
  for (int64_t i = 0; i < rank / 2; ++i) pair.push_back(frequency(s, i % each, each, F));
  return pair;
}

namespace {

// ---- widths ----------------------------------------------------------------------------------------------

struct Widths {
  int64_t q = 0, k = 0, v = 0;  // of a layer's latents; q 0: not factored
};

int64_t within(const char* key, const std::optional<int64_t>& by_hand, int64_t otherwise, int64_t most) {
  LLATTE_CHECK(!by_hand || *by_hand <= most, "HLA.", key, " is ", by_hand.value_or(0),
               ", but there are only ", most, " ranks");
  return std::min(by_hand.value_or(otherwise), most);
}

// What a width is a multiple of: a plane takes two values; planes of the SVD are the same number for each
// head.
int64_t unit(HlaRope r, int64_t heads) { return plain_svd(r) ? 2 * heads : dense(r) ? 1 : 2; }

Widths widths_of(const LlamaConfig& c, const HlaSettings& s) {
  const int64_t H = c.num_attention_heads, K = c.num_key_value_heads, n = K * c.head_dim, HE = H * c.head_dim;
  const double share =
      s.cache_values ? static_cast<double>(*s.cache_values) / static_cast<double>(2 * n) : s.cache;
  LLATTE_CHECK(share <= 1, "HLA.cache_values is ", s.cache_values.value_or(0), ", the model caches ", 2 * n,
               " values per token and layer itself");
  // Rounding up by 1e-9: a share that was meant to be a whole number of values is one.
  const auto part = [&](int64_t of) { return static_cast<int64_t>(share * static_cast<double>(of) + 1e-9); };
  const auto whole = [](int64_t x, int64_t of) { return x / of * of; };
  const int64_t total = part(2 * n), k_unit = unit(s.rope, K), k = whole(total / 2, k_unit);
  const int64_t D = c.hidden_size, D_k = dense(s.rope) ? D : 2 * D;  // a pair can have D planes of two values
  Widths w{0, within("rank_k", s.rank_k, k, std::min(n, D_k)),
           within("rank_v", s.rank_v, total - k, std::min(n, D))};
  if (s.factor_q || s.rank_q)
    w.q = within("rank_q", s.rank_q, whole(part(HE), unit(s.rope, H)), std::min(HE, D_k));
  LLATTE_CHECK(w.k >= k_unit && w.v >= 1, "HLA.cache leaves k ", w.k, " values and v ", w.v, ", mode ",
               name(s.rope), " needs ", k_unit, " and 1; raise it");
  return w;
}

int64_t block_heads(const LlamaConfig& c, const HlaSettings& s) {
  if (s.rope == HlaRope::latent) return 1;
  const int64_t K = c.num_key_value_heads;
  LLATTE_CHECK(s.head_block == 0 || K % s.head_block == 0, "HLA.head_block is ", s.head_block,
               ", which does not divide the ", K, " kv heads");
  return s.head_block ? s.head_block : K;
}

HlaConfig empty_config(const LlamaConfig& c, const HlaSettings& s) {
  const int64_t F = c.head_dim / 2;
  HlaConfig h;
  h.rope = s.rope, h.rope_pairs = s.rope == HlaRope::hybrid    ? s.rope_pairs
                                  : s.rope == HlaRope::unified ? 0
                                                               : F;
  LLATTE_CHECK(s.rope == HlaRope::unified || (h.rope_pairs <= F && h.rope_pairs > 0), "HLA.rope_pairs is ",
               h.rope_pairs, ", expected 1 to the ", F, " pairs of a head");
  const int64_t g = block_heads(c, s);
  h.head_block = dense(s.rope) || g == c.num_key_value_heads ? 0 : g;
  h.layers.resize(static_cast<size_t>(c.num_hidden_layers));
  return h;
}

// ---- latent, latent_literal: planes of the plain SVD -----------------------------------------------------

// The planes of `heads` heads, sorted; head h belongs to block h / group.
Planes planes_by_head(const std::vector<int32_t>& pair, int64_t heads, int64_t group, bool blocks) {
  const int64_t each = static_cast<int64_t>(pair.size()) / heads;
  Planes p;
  for (const int64_t i : sorted_by(pair)) {
    p.pair.push_back(pair[static_cast<size_t>(i)]);
    p.block.push_back(blocks ? static_cast<int32_t>(i / each / group) : 0);
  }
  return p;
}

HlaLayer svd_layer(const LlamaConfig& c, const HlaSettings& s, const Widths& w) {
  const int64_t H = c.num_attention_heads, K = c.num_key_value_heads, F = c.head_dim / 2;
  const bool latent = s.rope == HlaRope::latent;
  HlaLayer layer;
  layer.k = planes_by_head(plane_frequencies(s, "rank_k", w.k, K, F), K, 1, latent);
  if (w.q) layer.q = planes_by_head(plane_frequencies(s, "rank_q", w.q, H, F), H, H / K, latent);
  layer.rank_v = w.v;
  if (!latent) layer.rank_k = w.k, layer.rank_q = w.q;
  return layer;
}

// ---- dealing out ranks -----------------------------------------------------------------------------------

// What every layer could hold: k's planes by pair and block, then its unrotated dims; v's dims; q's.
struct LayerSpectra {
  std::vector<Spectrum> k, v, q;
};

Spectrum dims_of(const Factors& f, int64_t most) {
  std::vector<double> e = f.eigenvalues;
  e.resize(static_cast<size_t>(most));
  return {e, 1};
}

std::vector<Spectrum> planes_spectra(const std::vector<PlaneFactors>& all) {
  std::vector<Spectrum> s;
  for (const PlaneFactors& f : all) s.push_back({f.eigenvalues, 2});
  return s;
}

// The best of them cannot be left out.
void need_the_best(std::vector<Spectrum>& spectra) {
  const auto best =
      std::max_element(spectra.begin(), spectra.end(), [](const Spectrum& a, const Spectrum& b) {
        return (a.gains.empty() ? -1 : a.gains[0]) < (b.gains.empty() ? -1 : b.gains[0]);
      });
  best->needed = 1;
}

LayerSpectra spectra_of(const LayerParts& p, bool factor_q) {
  LayerSpectra s;
  if (p.hla.rope == HlaRope::original) {
    s.k = {dims_of(p.dense_keys(1), p.most(p.rows.k_r))};
    if (factor_q)
      s.q = {dims_of(p.dense_queries(1), std::min(p.source.config.num_attention_heads * 2 * p.F(), p.D()))};
  } else {
    s.k = planes_spectra(p.key_planes());
    if (p.rows.k_n.numel() > 0) s.k.push_back(dims_of(p.unrotated_keys(1), p.most(p.rows.k_n)));
    if (factor_q) s.q = planes_spectra(p.query_planes());
  }
  s.v = {dims_of(p.values(1), p.most(p.rows.v))};
  need_the_best(s.k), need_the_best(s.v);
  if (factor_q) need_the_best(s.q);
  return s;
}

// The counts of one layer's lists, of which the last is unrotated dims where there are any.
void take_keys(const HlaConfig& h, std::vector<int64_t> counts, bool unrotated, HlaLayer& layer) {
  if (h.rope == HlaRope::original) {
    layer.rank_k = counts[0];
    return;
  }
  if (unrotated) layer.rank_k = counts.back(), counts.pop_back();
  layer.k = planes_of(counts, h.rope_pairs);
}

// One list of what all layers in [begin, end) could hold, the counts by layer.
std::vector<std::vector<int64_t>> allocate_over(const std::vector<LayerSpectra>& all, size_t begin,
                                                size_t end, std::vector<Spectrum> LayerSpectra::*what,
                                                int64_t budget) {
  std::vector<Spectrum> joined;
  for (size_t l = begin; l < end; ++l)
    joined.insert(joined.end(), (all[l].*what).begin(), (all[l].*what).end());
  const std::vector<int64_t> counts = allocate(joined, budget);
  std::vector<std::vector<int64_t>> by_layer;
  auto next = counts.begin();
  for (size_t l = begin; l < end; ++l) {
    const auto n = static_cast<ptrdiff_t>((all[l].*what).size());
    by_layer.emplace_back(next, next + n);
    next += n;
  }
  return by_layer;
}

// Where layers share their values, each keeps at least the best that this share of an even part would buy.
// aligned has k in planes alone: a layer with few of them loses whole frequencies, and what an error costs,
// measured near the model as it is, says too little about that. Unrotated dims are better off without.
double kept_share(HlaRope r) { return r == HlaRope::aligned ? 0.75 : 0; }

std::vector<Spectrum> with_kept(std::vector<Spectrum> layer, double width) {
  int64_t needed = 0;
  for (const Spectrum& s : layer) needed += s.needed * s.cost;
  const std::vector<int64_t> counts = allocate(layer, std::max(static_cast<int64_t>(width), needed));
  for (size_t i = 0; i < layer.size(); ++i) layer[i].needed = counts[i];
  return layer;
}

// Under `width` values a layer: in each, or in all of them together.
std::vector<std::vector<int64_t>> allocate_layers(std::vector<LayerSpectra> all,
                                                  std::vector<Spectrum> LayerSpectra::*what, int64_t width,
                                                  const HlaSettings& s) {
  if (s.allocate == Allocation::layer) {
    std::vector<std::vector<int64_t>> counts;
    for (size_t l = 0; l < all.size(); ++l) counts.push_back(allocate_over(all, l, l + 1, what, width)[0]);
    return counts;
  }
  for (LayerSpectra& l : all) l.*what = with_kept(l.*what, kept_share(s.rope) * static_cast<double>(width));
  return allocate_over(all, 0, all.size(), what, width * static_cast<int64_t>(all.size()));
}

// Where k and v are played off against each other, v's list is one more of k's.
void take_cached(const std::vector<LayerSpectra>& all, const HlaSettings& s, const Widths& w, HlaConfig& h) {
  const bool joint = s.allocate == Allocation::joint;
  std::vector<LayerSpectra> lists = all;
  if (joint)
    for (LayerSpectra& l : lists) l.k.push_back(l.v[0]);
  auto k = allocate_layers(lists, &LayerSpectra::k, joint ? w.k + w.v : w.k, s);
  std::vector<std::vector<int64_t>> v;
  if (!joint) v = allocate_layers(lists, &LayerSpectra::v, w.v, s);
  for (size_t l = 0; l < all.size(); ++l) {
    h.layers[l].rank_v = joint ? k[l].back() : v[l][0];
    if (joint) k[l].pop_back();
    take_keys(h, k[l], all[l].k.back().cost == 1, h.layers[l]);
  }
}

void take_queries(const std::vector<LayerSpectra>& all, const HlaSettings& s, const Widths& w, int64_t F,
                  HlaConfig& h) {
  const auto q = allocate_layers(all, &LayerSpectra::q, w.q, s);
  for (size_t l = 0; l < all.size(); ++l)
    if (h.rope == HlaRope::original) h.layers[l].rank_q = q[l][0];
    else h.layers[l].q = planes_of(q[l], F);
}

// Without weights: planes evenly over the pairs (and blocks), in hybrid as many of k's values as pairs keep
// RoPE.
Planes even_planes(int64_t P, int64_t F, int64_t blocks) {
  std::vector<int64_t> counts(static_cast<size_t>(F * blocks), 0);
  for (int64_t p = 0; p < P / blocks; ++p)
    for (int64_t b = 0; b < blocks; ++b) ++counts[static_cast<size_t>(p * F / (P / blocks) * blocks + b)];
  return planes_of(counts, F);
}

// unified: a quarter of the cached values in planes.
HlaLayer even_unified_layer(const LlamaConfig& c, const Widths& w) {
  HlaLayer layer;
  const int64_t total = w.k + w.v;
  layer.k = even_planes(total / 8, c.head_dim / 2, 1);
  layer.rank_k = layer.rank_v = total - 2 * layer.k.count();
  return layer;
}

HlaLayer even_layer(const LlamaConfig& c, const HlaConfig& h, const Widths& w) {
  if (h.rope == HlaRope::unified) return even_unified_layer(c, w);
  const int64_t K = c.num_key_value_heads, F = c.head_dim / 2, blocks = h.head_block ? K / h.head_block : 1;
  const int64_t rotated = w.k * h.rope_pairs / F / (2 * blocks) * (2 * blocks);
  LLATTE_CHECK(rotated > 0, "HLA.cache leaves ", w.k, " values for the planes of ", blocks,
               " blocks of heads; ", "raise it");
  HlaLayer layer;
  layer.k = even_planes(rotated / 2, h.rope_pairs, blocks);
  if (w.q) layer.q = even_planes(w.q / 2, F, blocks);
  if (h.rope_pairs < F) layer.rank_k = std::min(w.k - rotated, 2 * K * (F - h.rope_pairs));
  layer.rank_v = w.v;
  return layer;
}

HlaLayer fixed_layer(const LlamaConfig& c, const HlaSettings& s, const Widths& w) {
  if (s.rope != HlaRope::original) return svd_layer(c, s, w);
  HlaLayer layer;
  layer.rank_q = w.q, layer.rank_k = w.k, layer.rank_v = w.v;
  return layer;
}

void check_settings(const LlamaConfig& c, const ConversionSettings& s) {
  const HlaSettings& h = *s.hla;
  LLATTE_CHECK(!c.qk_norm, "HLA.rope ", name(h.rope),
               " cannot take RoPE into the latents of a model with q/k norms (Qwen3): they stand between a ",
               "latent and its rotation; use a model without them");
  LLATTE_CHECK(!plain_svd(h.rope) || s.metric == Metric::plain, "HLA.metric is ", name(s.metric),
               ", but mode ", name(h.rope), " takes its planes from the plain SVD; use plain");
  LLATTE_CHECK(h.allocate != Allocation::joint || s.metric == Metric::fisher,
               "HLA.allocate=joint plays k and v off against each other by what the loss pays for each; it ",
               "needs HLA.metric=fisher, not ", name(s.metric));
  LLATTE_CHECK(!plain_svd(h.rope) || h.allocate == Allocation::layer, "HLA.allocate is ", name(h.allocate),
               ", but mode ", name(h.rope), " gives every layer and head the same; use layer");
}

}  // namespace

HlaConfig hla_config(const Checkpoint& source, const ConversionSettings& s) {
  const LlamaConfig& c = source.config;
  check_settings(c, s);
  const Widths w = widths_of(c, *s.hla);
  ConversionPlan plan{s, c};
  HlaConfig& h = plan.config.hla.emplace(empty_config(c, *s.hla));
  if (plain_svd(h.rope) || (h.rope == HlaRope::original && s.hla->allocate == Allocation::layer)) {
    for (HlaLayer& layer : h.layers) layer = fixed_layer(c, *s.hla, w);
    return h;
  }
  std::vector<LayerSpectra> all;
  for (int64_t l = 0; l < c.num_hidden_layers; ++l)
    all.push_back(spectra_of(LayerParts(source, plan, l), w.q > 0));
  take_cached(all, *s.hla, w, h);
  if (w.q > 0) take_queries(all, *s.hla, w, c.head_dim / 2, h);
  return h;
}

HlaConfig new_hla_config(const LlamaConfig& c, const ConversionSettings& s) {
  check_settings(c, s);
  LLATTE_CHECK(s.hla->allocate == Allocation::layer, "HLA.allocate ", name(s.hla->allocate),
               " deals out ranks by what the weights say, and there are none yet; use layer");
  const Widths w = widths_of(c, *s.hla);
  HlaConfig h = empty_config(c, *s.hla);
  for (HlaLayer& layer : h.layers)
    layer =
        plain_svd(h.rope) || h.rope == HlaRope::original ? fixed_layer(c, *s.hla, w) : even_layer(c, h, w);
  return h;
}

ConversionPlan at_full_rank(const Checkpoint& source, const ConversionPlan& plan, HlaRope rope) {
  const LlamaConfig& c = source.config;
  const bool planes = rope == HlaRope::aligned;
  const int64_t n = c.num_key_value_heads * c.head_dim, D = c.hidden_size,
                HE = c.num_attention_heads * c.head_dim;
  ConversionPlan full{plan.settings, c};
  HlaSettings& s = full.settings.hla.emplace(*plan.settings.hla);
  s.rope = rope, s.allocate = Allocation::layer, full.settings.refit_o = false;
  s.cache = 1, s.cache_values.reset();
  s.rank_k = std::min(n, planes ? 2 * D : D), s.rank_v = std::min(n, D);
  s.rank_q.reset();
  if (s.factor_q) s.rank_q = std::min(HE, planes ? 2 * D : D);
  full.config.hla = hla_config(source, full.settings);
  return full;
}

}  // namespace llatte
