// HLA: RoPE inside the latent space, so that no key is ever cached. Pair j of a head read as the complex
// number (dim j) + i (dim j + E/2), which RoPE multiplies by exp(i t theta_j), and M the key matrix:
//   z = W_k_r x, P planes (complex numbers), plane p turned as pair[p] is    c_k = W_down_k x, not rotated
//   k_(kappa,j) = sum of A_k[kappa mod g, p] z_p over the planes p of pair j whose block serves kappa
//   k_n,kappa   = W_up_k,kappa c_k, the unrotated dims of the pairs from rope_pairs on
//   q_h . k     = sum over the planes' pairs of Re(conj(rotated q_(h,j)) k_(kappa,j)) + q_n . k_n, over
//   sqrt(E)
// A rotation of z_p is the rotation of all it is lifted to, whatever A: q . k depends on s - t alone, and M =
// [A_k | W_up_k] may move to q's side (absorbed). q stays unrotated where it meets k_n, and a pair from
// rope_pairs on that has planes counts twice (unified): the score width Q may be more than E.
//   q = W_q x, or lifted as k is: q_(h,j) = sum of A_q[h mod g G, p] z_q,p, z_q = W_down_q x
// Two modes have no such lift, and M = W_up_k:
//   original        k = RoPE(W_up_k c_k) and q = RoPE(W_q x or W_up_q W_down_q x): rows are lifted when read
//   latent_literal  z = the latent W_down_k x itself; q = W_up_q of its own latent, turned in its own planes
//   B batch  T time  S tokens seen  D model width  H query heads  K kv heads  E head width  Q score width
//   P planes  R latent width  g = head_block, or K  G = H/K
#include <algorithm>
#include <optional>
#include "autograd/ops.h"
#include "nn/latent_attention.h"

namespace llatte {
namespace {

using Ids = std::vector<int32_t>;

Tensor ids(const Ids& v) { return Tensor::from(v, {static_cast<int64_t>(v.size())}); }

int64_t at_most_once(Ids& pairs) {
  std::sort(pairs.begin(), pairs.end());
  pairs.erase(std::unique(pairs.begin(), pairs.end()), pairs.end());
  return static_cast<int64_t>(pairs.size());
}

// How the Q dims in which a query and a key meet are ordered, half-split: the pairs that have planes, then
// the unrotated dims, half of them real and half imaginary parts.
struct ScoreDims {
  Ids pairs;          // ascending: those that have planes
  int64_t plain = 0;  // pairs from rope_pairs on, if they have a latent
  int64_t first = 0;  // of them

  explicit ScoreDims(const AttentionConfig& c) {
    if (!lifts_planes(c.hla_rope)) return;
    pairs = c.k_planes.pair;
    at_most_once(pairs);
    first = c.rope_pairs, plain = c.rank_k ? c.E / 2 - c.rope_pairs : 0;
  }
  int64_t half() const { return static_cast<int64_t>(pairs.size()) + plain; }
  int64_t place(int32_t pair) const {
    return std::lower_bound(pairs.begin(), pairs.end(), pair) - pairs.begin();
  }
};

// Lifts planes to `heads` heads of 2 `half` dims; pair j is dims (place(j), half + place(j)). Head h takes
// row h mod rows of A, and of that the planes whose block serves it.
class PlaneLift {
 public:
  template <class Place>
  PlaneLift(const Planes& planes, int64_t heads, int64_t rows, int64_t heads_a_block, int64_t half, DType t,
            const Place& place)
      : re_(leaf(Tensor::zeros({rows, planes.count()}, t))),
        im_(leaf(Tensor::zeros({rows, planes.count()}, t))),
        shape_{heads, 2 * half, 2 * planes.count()} {
    const int64_t P = planes.count();
    Ids entries(static_cast<size_t>(numel_of(shape_)), -1), own(static_cast<size_t>(2 * heads * P), -1),
        across = own, dims(static_cast<size_t>(2 * P)), crossed = dims;
    for (int64_t p = 0; p < P; ++p) {
      const auto i = static_cast<size_t>(p);
      const int64_t re = place(planes.pair[i]), im = half + re;
      put(dims, p, re), put(dims, P + p, im);
      put(crossed, p, im), put(crossed, P + p, re);
      for (int64_t h = 0; h < heads; ++h) {
        if (heads_a_block && planes.block[i] != h / heads_a_block) continue;
        const int64_t a_re = h % rows * P + p, a_im = rows * P + a_re, minus_im = rows * P + a_im;
        const int64_t row = h * 2 * half, column = 2 * P;
        put(entries, (row + re) * column + p, a_re), put(entries, (row + re) * column + P + p, minus_im);
        put(entries, (row + im) * column + p, a_im), put(entries, (row + im) * column + P + p, a_re);
        put(own, h * column + p, a_re), put(own, h * column + P + p, a_re);
        put(across, h * column + p, a_im), put(across, h * column + P + p, minus_im);
      }
    }
    entries_ = ids(entries), own_ = ids(own), across_ = ids(across);
    dims_ = ids(dims), crossed_ = ids(crossed);
  }

  // (heads, 2 half, 2P), rows (place(j), half + place(j)) and columns (p, P + p): [[Re A, -Im A], [Im A, Re
  // A]].
  Var matrix() const { return reshape(gather(coefficients(), 0, entries_), shape_); }

  // q~_(h,p) = conj(A[h/G, p]) q_(h, pair of p), so that q~ . z = q . (lift of z): (B,T,H,2P). The product
  // with matrix(), but for each plane alone: a token's queries meet 2P numbers a head instead of the matrix.
  Var absorb(const Var& q_BTHQ) const {
    const int64_t H = q_BTHQ.size(2), G = H / shape_[0], NH = q_BTHQ.size(0) * q_BTHQ.size(1) * H;
    Ids heads(static_cast<size_t>(NH));
    for (int64_t i = 0; i < NH; ++i) put(heads, i, i % H / G);
    const Tensor heads_NH = ids(heads).to(q_BTHQ.value.device());
    const auto times = [&](const Tensor& index, const Tensor& dims) {
      const Var a_KP = reshape(gather(coefficients(), 0, index), {shape_[0], shape_[2]});
      const Var q = gather(q_BTHQ, -1, dims);
      return mul(reshape(gather(a_KP, 0, heads_NH), q.shape()), q);
    };
    return add(times(own_, dims_), times(across_, crossed_));
  }

  void params(const std::string& name, const ParamFn& f) {
    f(name + "_re", re_);
    f(name + "_im", im_);
  }

  void buffers(const BufferFn& f) { f(entries_), f(own_), f(across_), f(dims_), f(crossed_); }

 private:
  static void put(Ids& at, int64_t i, int64_t value) {
    at[static_cast<size_t>(i)] = static_cast<int32_t>(value);
  }
  Var coefficients() const {  // [A_re | A_im | -A_im], flat
    const auto flat = [](const Var& a) { return reshape(a, {-1}); };
    return concat(concat(flat(re_), flat(im_), 0), scale(flat(im_), -1), 0);
  }

  Var re_, im_;
  Shape shape_;
  Tensor entries_;         // entry of matrix() -> coefficient, -1: zero
  Tensor own_, across_;    // [heads 2P] -> the coefficients that columns p, P + p of absorb() multiply with
  Tensor dims_, crossed_;  // [2P] -> the dims of q that those coefficients meet
};

StreamWidths stream_widths(const AttentionConfig& c) {
  StreamWidths w;
  w.planes = c.hla_rope == HlaRope::latent_literal ? c.rank_k : 2 * c.k_planes.count();
  w.c_k = c.hla_rope == HlaRope::latent_literal ? 0 : c.rank_k;
  w.c_v = c.rank_v, w.shared = c.shared_latent;
  return w;
}

Tensor plane_pairs(const Planes& p) { return Tensor::from(p.pair, {1, p.count()}); }

class Hla final : public LatentAttention {
 public:
  explicit Hla(const AttentionConfig& c)
      : LatentAttention(c, stream_widths(c)), lifts_(lifts_planes(c.hla_rope)), score_(c) {
    make_queries();
    make_keys();
    if (!c.shared_latent) down_v_.emplace(c.D, c.rank_v, false, c.dtype);
  }

  void params(const std::string& prefix, const ParamFn& f) override {
    const auto each = [&](std::optional<Linear>& w, const char* name) {
      if (w) w->params(prefix + name, f);
    };
    each(q_proj_, "q_proj.");
    each(down_q_, "W_down_q.");
    if (q_lift_) q_lift_->params(prefix + "A_q", f);
    each(up_q_, "W_up_q.");
    each(k_r_, "W_k_r.");
    if (k_lift_) k_lift_->params(prefix + "A_k", f);
    each(down_k_, "W_down_k.");
    each(up_k_, "W_up_k.");
    each(down_v_, "W_down_v.");
    up_v_.params(prefix + "W_up_v.", f);
    o_proj_.params(prefix + "o_proj.", f);
  }

  void buffers(const BufferFn& f) override {
    LatentAttention::buffers(f);
    for (auto* lift : {&q_lift_, &k_lift_})
      if (*lift) (*lift)->buffers(f);
    for (Tensor* t : {&q_pairs_, &k_pairs_, &query_dims_, &query_pairs_, &plain_dims_, &up_rows_}) f(*t);
  }

 protected:
  Var queries(const Var& x_BTD, const AttentionInput& in) const override {
    const int64_t B = x_BTD.size(0), T = x_BTD.size(1);
    const Var q_BTHE = reshape(plain_queries(x_BTD, in), {B, T, c_.H, c_.E});
    if (literal()) return q_BTHE;
    const Var q_BTHQ = lifts_ ? gather(q_BTHE, -1, query_dims_) : q_BTHE;
    return rope(q_BTHQ, in.rope.cos, in.rope.sin, in.pos, query_pairs_);
  }

  LatentStream stream(const Var& x_BTD, const AttentionInput& in) const override {
    LatentStream s;
    if (literal()) s.z_BTP = turned((*down_k_)(x_BTD), k_pairs_, in);
    else if (down_k_) s.c_k_BTR = (*down_k_)(x_BTD);
    if (k_r_) s.z_BTP = turned((*k_r_)(x_BTD), k_pairs_, in);
    s.c_v_BTR = c_.shared_latent ? s.c_k_BTR : (*down_v_)(x_BTD);
    return s;
  }

  Var keys(const LatentStream& s, const RopeTable& rope_table, const Tensor& pos_S) const override {
    const Var row_BSW = s.keys(), m_KQW = key_matrix();
    const Var m = reshape(m_KQW, {c_.K * m_KQW.size(1), m_KQW.size(2)});
    const Var k = up_k_ && c_.qkv_bias ? linear(row_BSW, m, key_bias()) : linear(row_BSW, m);
    const Var k_BSKQ = reshape(k, {k.size(0), k.size(1), c_.K, m_KQW.size(1)});
    return can_absorb() ? k_BSKQ : rope(k_BSKQ, rope_table.cos, rope_table.sin, pos_S);
  }

  bool can_absorb() const override { return c_.hla_rope != HlaRope::original; }

  // The bias of W_up_k adds q_n . b to every score of a query, which the softmax does not see.
  Var absorb(const Var& q_BTHQ) const override {
    if (!up_k_) return k_lift_->absorb(q_BTHQ);
    const Var q_n = lifts_ ? gather(q_BTHQ, -1, plain_dims_) : q_BTHQ;
    const Var up_KQR = reshape(up_k_->weight(), {c_.K, q_n.size(3), c_.rank_k});
    const Var q_c = by_token(matmul(by_group(q_n), up_KQR), q_n.size(0), q_n.size(1));
    return k_lift_ ? concat(k_lift_->absorb(q_BTHQ), q_c, -1) : q_c;
  }

  int64_t key_products() const override { return c_.K * score_width() * widths_.keys(); }

 private:
  bool literal() const { return c_.hla_rope == HlaRope::latent_literal; }
  int64_t score_width() const { return lifts_ ? 2 * score_.half() : c_.E; }

  // (B,T,H E), not rotated (latent_literal: of a rotated latent).
  Var plain_queries(const Var& x_BTD, const AttentionInput& in) const {
    if (q_proj_) return (*q_proj_)(x_BTD);
    Var z = (*down_q_)(x_BTD);
    if (literal()) z = turned(z, q_pairs_, in);
    if (up_q_) return (*up_q_)(z);
    return linear(z, reshape(q_lift_->matrix(), {c_.H * c_.E, 2 * c_.q_planes.count()}));
  }

  // (K,Q,W) over the stream's [z | c_k].
  Var key_matrix() const {
    if (!lifts_) return reshape(up_k_->weight(), {c_.K, c_.E, c_.rank_k});
    if (!up_k_) return k_lift_->matrix();
    const Var up_KQR = reshape(gather(up_k_->weight(), 0, up_rows_), {c_.K, score_width(), c_.rank_k});
    return k_lift_ ? concat(k_lift_->matrix(), up_KQR, -1) : up_KQR;
  }
  Var key_bias() const { return lifts_ ? gather(up_k_->bias(), 0, up_rows_) : up_k_->bias(); }

  void make_queries();
  void make_keys();
  void make_score_indices();

  const bool lifts_;
  const ScoreDims score_;
  std::optional<Linear> q_proj_, down_q_, up_q_, k_r_, down_k_, up_k_, down_v_;
  std::optional<PlaneLift> q_lift_, k_lift_;
  Tensor q_pairs_, k_pairs_;  // [1,P] pair of each plane
  Tensor query_dims_;         // [Q] dim of a query that the score reads
  Tensor query_pairs_;        // [H,Q/2] for rope: -1 where q stays unrotated
  Tensor plain_dims_;         // [2n] of the score's dims, those that stay unrotated
  Tensor up_rows_;            // [K Q] -> row of W_up_k, -1: a rotated dim
};

void Hla::make_queries() {
  const AttentionConfig& c = c_;
  const int64_t HE = c.H * c.E, P = c.q_planes.count(), rows = c.head_block * (c.H / c.K);
  if (lifts_ && P > 0) {
    down_q_.emplace(c.D, 2 * P, c.qkv_bias, c.dtype);
    q_lift_.emplace(c.q_planes, c.H, rows ? rows : c.H, rows, c.E / 2, c.dtype,
                    [](int32_t pair) { return int64_t{pair}; });
  } else if (c.rank_q > 0) {
    down_q_.emplace(c.D, c.rank_q, false, c.dtype);
    up_q_.emplace(c.rank_q, HE, c.qkv_bias, c.dtype);
    q_pairs_ = plane_pairs(c.q_planes);
  } else {
    q_proj_.emplace(c.D, HE, c.qkv_bias, c.dtype);
  }
}

void Hla::make_keys() {
  const AttentionConfig& c = c_;
  const int64_t P = c.k_planes.count(), rows = c.head_block ? c.head_block : c.K;
  k_pairs_ = plane_pairs(c.k_planes);
  if (c.rank_k > 0) {
    down_k_.emplace(c.D, c.rank_k, false, c.dtype);
    up_k_.emplace(c.rank_k, c.K * (lifts_ ? 2 * score_.plain : c.E), c.qkv_bias, c.dtype);
  }
  if (!lifts_) return;
  make_score_indices();
  if (P == 0) return;
  k_r_.emplace(c.D, 2 * P, c.qkv_bias, c.dtype);
  k_lift_.emplace(c.k_planes, c.K, rows, c.head_block, score_.half(), c.dtype,
                  [this](int32_t pair) { return score_.place(pair); });
}

void Hla::make_score_indices() {
  const int64_t F = c_.E / 2, n = score_.plain;
  Ids dims, plain, pairs, rows;
  for (int64_t imaginary = 0; imaginary < 2; ++imaginary) {
    for (const int32_t j : score_.pairs) dims.push_back(static_cast<int32_t>(imaginary * F) + j);
    for (int64_t j = 0; j < n; ++j) {
      plain.push_back(static_cast<int32_t>(dims.size()));
      dims.push_back(static_cast<int32_t>(imaginary * F + score_.first + j));
    }
  }
  for (int64_t h = 0; h < c_.H; ++h) {
    pairs.insert(pairs.end(), score_.pairs.begin(), score_.pairs.end());
    pairs.insert(pairs.end(), static_cast<size_t>(n), -1);
  }
  for (int64_t part = 0; part < 2 * c_.K; ++part) {  // real or imaginary parts of a kv head
    rows.insert(rows.end(), score_.pairs.size(), -1);
    for (int64_t j = 0; j < n; ++j) rows.push_back(static_cast<int32_t>(part * n + j));
  }
  query_dims_ = ids(dims), plain_dims_ = ids(plain), up_rows_ = ids(rows);
  query_pairs_ = Tensor::from(pairs, {c_.H, score_.half()});
}

// ---- what is impossible, in the names of config.json
void check_sizes(const AttentionConfig& c) {
  LLATTE_CHECK(c.D > 0 && c.H > 0 && c.K > 0 && c.E > 0, "hla: widths must be positive, got D=", c.D,
               " H=", c.H, " K=", c.K, " E=", c.E);
  LLATTE_CHECK(c.H % c.K == 0, "hla: ", c.H, " query heads do not split over ", c.K, " kv heads");
  LLATTE_CHECK(c.E % 2 == 0, "hla: head width ", c.E, " is odd, RoPE turns pairs");
  LLATTE_CHECK(!c.qk_norm, "hla: an RMSNorm on q and k (Qwen3) cannot be kept, k is not there to be normed");
  LLATTE_CHECK(c.head_block == 0 || (c.head_block > 0 && c.K % c.head_block == 0), "hla: head_block ",
               c.head_block, " does not divide the ", c.K, " kv heads; 0 lets all share the planes");
  LLATTE_CHECK(0 <= c.rope_pairs && c.rope_pairs <= c.E / 2, "hla: rope_pairs is ", c.rope_pairs,
               ", expected 0 to ", c.E / 2);
}

void check_planes(const char* name, const Planes& p, const AttentionConfig& c, int64_t pairs) {
  LLATTE_CHECK(p.block.size() == p.pair.size(), "hla: ", name, "_blocks lists ", p.block.size(), " of ",
               p.count(), " planes");
  const int64_t blocks = c.head_block ? c.K / c.head_block : 1;
  for (size_t i = 0; i < p.pair.size(); ++i) {
    LLATTE_CHECK(0 <= p.pair[i] && p.pair[i] < pairs, "hla: ", name, "_pairs has ", p.pair[i], " at place ",
                 i, "; expected 0 to ", pairs - 1);
    LLATTE_CHECK(0 <= p.block[i] && p.block[i] < blocks, "hla: ", name, "_blocks has ", p.block[i],
                 " at place ", i, " of ", blocks, " blocks");
    LLATTE_CHECK(i == 0 || !lifts_planes(c.hla_rope) || p.pair[i - 1] < p.pair[i] ||
                     (p.pair[i - 1] == p.pair[i] && p.block[i - 1] <= p.block[i]),
                 "hla: ", name, "_pairs and ", name, "_blocks must ascend by pair, then block; place ", i,
                 " is pair ", p.pair[i], " of block ", p.block[i]);
  }
}

void check_lifted(const AttentionConfig& c) {
  const int64_t P = c.k_planes.count(), F = c.E / 2;
  const bool unified = c.hla_rope == HlaRope::unified;
  LLATTE_CHECK(c.rank_q == 0, "hla: rank_q is ", c.rank_q,
               ", but q is factored in planes; leave rank_q out and list q_pairs");
  LLATTE_CHECK(c.shared_latent == unified && (!unified || c.rank_k == c.rank_v),
               "hla: unified has one latent for k and v, the other modes two; got rank_k ", c.rank_k,
               " and rank_v ", c.rank_v);
  const int64_t want = unified ? 0 : c.hla_rope == HlaRope::hybrid ? c.rope_pairs : F;
  LLATTE_CHECK(c.rope_pairs == want, "hla: rope_pairs is ", c.rope_pairs, ", in this mode it is ", want);
  LLATTE_CHECK(c.rank_k == 0 || c.rope_pairs < F, "hla: rank_k is ", c.rank_k,
               ", but all pairs keep RoPE and leave nothing to an unrotated latent");
  LLATTE_CHECK(P > 0 || c.rank_k > 0, "hla: k_pairs is empty and rank_k 0, so nothing is left of k");
  check_planes("k", c.k_planes, c, unified ? F : c.rope_pairs);
  check_planes("q", c.q_planes, c, F);
}

void check_unlifted(const AttentionConfig& c) {
  const int64_t P_k = c.k_planes.count(), P_q = c.q_planes.count();
  LLATTE_CHECK(c.rank_k > 0 && !c.shared_latent, "hla: rank_k is ", c.rank_k,
               ", this mode needs a latent of k and one of v");
  LLATTE_CHECK(c.head_block == 0, "hla: head_block is ", c.head_block, ", this mode has no planes to block");
  if (c.hla_rope == HlaRope::original) {
    LLATTE_CHECK(P_k == 0 && P_q == 0, "hla: original rotates no latent, but lists ", P_k,
                 " planes of k and ", P_q, " of q");
    return;
  }
  LLATTE_CHECK(c.rank_k == 2 * P_k && c.rank_q == 2 * P_q && P_q > 0, "hla: latent_literal turns all of its ",
               "latents: rank_k ", c.rank_k, " and rank_q ", c.rank_q, " must be twice the ", P_k, " and ",
               P_q, " planes");
  check_planes("k", c.k_planes, c, c.E / 2);
  check_planes("q", c.q_planes, c, c.E / 2);
}

}  // namespace

void check_hla(const AttentionConfig& c) {
  check_sizes(c);
  LLATTE_CHECK(c.rank_k >= 0 && c.rank_q >= 0 && c.rank_v > 0, "hla: rank_k ", c.rank_k, ", rank_v ",
               c.rank_v, ", rank_q ", c.rank_q, "; rank_v must be positive, the others at least 0");
  if (lifts_planes(c.hla_rope)) check_lifted(c);
  else check_unlifted(c);
}

std::unique_ptr<Attention> make_attention_hla(const AttentionConfig& c) {
  check_hla(c);
  return std::make_unique<Hla>(c);
}

}  // namespace llatte
