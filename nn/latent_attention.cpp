// The stream in and out of the cache, and the choice between lifting rows and absorbing the maps.
#include "nn/latent_attention.h"
#include <cmath>
#include "autograd/ops.h"

namespace llatte {
namespace {

double softmax_scale(const AttentionConfig& c) { return 1 / std::sqrt(static_cast<double>(c.E)); }

// [z | c_k | c_v], of those that are there.
Var joined(const LatentStream& s, bool shared) {
  Var row;
  for (const Var* part : {&s.z_BTP, &s.c_k_BTR, shared ? nullptr : &s.c_v_BTR})
    if (part && part->value.defined()) row = row.value.defined() ? concat(row, *part, -1) : *part;
  return row;
}

std::vector<int64_t> sections(const StreamWidths& w) { return {w.planes, w.c_k, w.shared ? 0 : w.c_v}; }

}  // namespace

LatentCache::LatentCache(int64_t B, int64_t S, const StreamWidths& w, CacheType t)
    : rows_(B, S, sections(w), t) {}

std::unique_ptr<LayerCache> LatentAttention::make_cache(int64_t B, int64_t S, CacheType t) const {
  return std::make_unique<LatentCache>(B, S, widths_, t);
}

Var LatentAttention::forward(const Var& x_BTD, const AttentionInput& in) {
  const int64_t B = x_BTD.size(0), T = x_BTD.size(1);
  LLATTE_SHAPE(x_BTD, B, T, c_.D);
  LLATTE_CHECK(!in.probe, c_.kind, ": only ordinary attention can be probed; give the model it came from");
  const Var q_BTHE = queries(x_BTD, in);
  const LatentStream s = stream(x_BTD, in);
  LLATTE_SHAPE(q_BTHE, B, T, c_.H, c_.E);
  if (in.cache) return project(attend_cached(q_BTHE, s, *in.cache));
  return project(attention(q_BTHE, keys(s), values(s.c_v_BTR), softmax_scale(c_)));
}

// The new tokens join the cache, then see all of it, themselves too, as the cache has rounded it.
Var LatentAttention::attend_cached(const Var& q_BTHE, const LatentStream& s, LayerCache& cache) const {
  auto* latent = dynamic_cast<LatentCache*>(&cache);
  LLATTE_CHECK(latent, c_.kind, ": this cache was made by another kind of attention");
  LLATTE_CHECK(!grad_enabled(), c_.kind, ": a cache is for decoding and keeps no gradients; hold a NoGrad");
  TokenStore& store = latent->rows();
  store.append(joined(s, widths_.shared).value);
  const int64_t B = q_BTHE.size(0), T = q_BTHE.size(1);
  const DType t = q_BTHE.value.dtype();
  if (!absorbs(T)) {
    const LatentStream all = split(constant(store.read(t, {widths_.row()})));
    return attention(q_BTHE, keys(all), values(all.c_v_BTR), softmax_scale(c_));
  }
  Tensor o_BTHR = Tensor::empty({B, T, c_.H, widths_.c_v}, t);
  kernels::latent_attention(absorb(q_BTHE).value.contiguous(), store.rows(), store.length(),
                            softmax_scale(c_), widths_.first_value(), o_BTHR);
  return outputs(constant(o_BTHR));
}

// Absorbed, a query meets a row in H (row + c_v) products, lifted in H 2E; but lifting a row costs as much
// for one query as for many.
bool LatentAttention::absorbs(int64_t T) const {
  return T * c_.H * (widths_.row() + widths_.c_v - 2 * c_.E) <= lift_products();
}

LatentStream LatentAttention::split(const Var& rows_BSW) const {
  const StreamWidths& w = widths_;
  const auto columns = [&](int64_t begin, int64_t n) {
    return n > 0 ? slice(rows_BSW, 2, begin, begin + n) : Var();
  };
  return {columns(0, w.planes), columns(w.planes, w.c_k), columns(w.first_value(), w.c_v)};
}

}  // namespace llatte
