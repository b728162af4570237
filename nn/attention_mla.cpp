// MLA as MHA2MLA makes it from a trained model (arXiv 2502.14837): each kv head keeps RoPE on some of its
// pairs; the dims of k that lost it, and v, are read from latents.
//   q = x Wq, rotated in the pairs that its kv head keeps
//   z = x W_k_r, the kept pairs of all kv heads, rotated      (one plane a pair, ordered by head, then pair)
//   k_c = c_k W_up_k, the dims that lost RoPE;  v = c_v W_up_v;  c_k = x W_down_k, c_v = x W_down_v
//   k = z and k_c, put back in their own dims;  softmax scale 1/sqrt(E)
// Shared latent (joint): c_v is c_k. What is not factored (rank 0) is kept whole in the latent's place:
// W_up_k or W_up_v then reads x. Rows on disk: W_k_r and W_up_k by kv head, its dims ascending. Parameters
// without rows are not there.
//   B batch  T time  D model width  H query heads  K kv heads  E head width  P planes  R latent width
#include <numeric>
#include <optional>
#include "autograd/ops.h"
#include "nn/latent_attention.h"
#include "nn/layers.h"

namespace llatte {
namespace {

using Ids = std::vector<int32_t>;

Tensor ids(const Ids& v) { return Tensor::from(v, {static_cast<int64_t>(v.size())}); }

// Where every dim of every kv head is found. Dim d of kv head kappa is entry kappa E + d.
struct Layout {
  int64_t P = 0, lost = 0;
  Ids row_of_column;  // [2P] of the stream's z: its row of W_k_r
  Ids pair_of_plane;  // [P]: the frequency it turns with
  Ids plane_column;   // [K E]: column of z, -1 where RoPE is lost
  Ids lost_row;       // [K E]: row of W_up_k, -1 where RoPE is kept

  explicit Layout(const AttentionConfig& c) {
    for (const auto& pairs : c.kept_pairs) P += static_cast<int64_t>(pairs.size());
    lost = c.K * c.E - 2 * P;
    row_of_column.resize(static_cast<size_t>(2 * P));
    plane_column.assign(static_cast<size_t>(c.K * c.E), -1);
    lost_row.assign(static_cast<size_t>(c.K * c.E), -1);
    for (int64_t head = 0; head < c.K; ++head) add_head(head, c.E, c.kept_pairs[static_cast<size_t>(head)]);
    int32_t row = 0;
    for (size_t d = 0; d < lost_row.size(); ++d)
      if (plane_column[d] < 0) lost_row[d] = row++;
  }

 private:
  // W_k_r holds the real parts of a head's pairs, then the imaginary ones; z the real parts of all heads
  // first.
  void add_head(int64_t head, int64_t E, const Ids& pairs) {
    const auto first = static_cast<int32_t>(pair_of_plane.size()), n = static_cast<int32_t>(pairs.size());
    for (int32_t i = 0; i < n; ++i) {
      const auto re = static_cast<size_t>(first + i), im = re + static_cast<size_t>(P);
      row_of_column[re] = 2 * first + i, row_of_column[im] = 2 * first + n + i;
      const auto dim = static_cast<size_t>(head * E + pairs[static_cast<size_t>(i)]);
      plane_column[dim] = static_cast<int32_t>(re),
      plane_column[dim + static_cast<size_t>(E / 2)] = static_cast<int32_t>(im);
    }
    pair_of_plane.insert(pair_of_plane.end(), pairs.begin(), pairs.end());
  }
};

StreamWidths stream_widths(const AttentionConfig& c, const Layout& at) {
  StreamWidths w;
  w.planes = 2 * at.P, w.shared = c.shared_latent;
  w.c_k = c.rank_k ? c.rank_k : at.lost;
  w.c_v = c.rank_v ? c.rank_v : c.K * c.E;
  return w;
}

class Mla final : public LatentAttention {
 public:
  Mla(const AttentionConfig& c, const Layout& at)
      : LatentAttention(c, stream_widths(c, at)),
        lost_(at.lost),
        q_proj_(c.D, c.H * c.E, c.qkv_bias, c.dtype) {
    if (at.P > 0) k_r_.emplace(c.D, 2 * at.P, c.qkv_bias, c.dtype);
    if (c.rank_k > 0) down_k_.emplace(c.D, c.rank_k, false, c.dtype);
    if (c.rank_v > 0 && !c.shared_latent) down_v_.emplace(c.D, c.rank_v, false, c.dtype);
    if (at.lost > 0) up_k_.emplace(c.rank_k ? c.rank_k : c.D, at.lost, c.qkv_bias, c.dtype);
    make_indices(at);
  }

  void params(const std::string& prefix, const ParamFn& f) override {
    q_proj_.params(prefix + "q_proj.", f);
    if (k_r_) k_r_->params(prefix + "W_k_r.", f);
    if (down_k_) down_k_->params(prefix + "W_down_k.", f);
    if (down_v_) down_v_->params(prefix + "W_down_v.", f);
    if (up_k_) up_k_->params(prefix + "W_up_k.", f);
    up_v_.params(prefix + "W_up_v.", f);
    o_proj_.params(prefix + "o_proj.", f);
  }

  void buffers(const BufferFn& f) override {
    LatentAttention::buffers(f);
    for (Tensor* t : {&q_pairs_, &plane_pairs_, &plane_rows_, &key_dims_, &lost_rows_, &query_columns_})
      f(*t);
  }

 protected:
  Var queries(const Var& x_BTD, const AttentionInput& in) const override {
    const Var q_BTHE = reshape(q_proj_(x_BTD), {x_BTD.size(0), x_BTD.size(1), c_.H, c_.E});
    return rope(q_BTHE, in.rope.cos, in.rope.sin, in.pos, q_pairs_);
  }

  LatentStream stream(const Var& x_BTD, const AttentionInput& in) const override {
    LatentStream s;
    if (k_r_) s.z_BTP = turned(gather((*k_r_)(x_BTD), -1, plane_rows_), plane_pairs_, in);
    if (down_k_) s.c_k_BTR = (*down_k_)(x_BTD);
    else if (up_k_) s.c_k_BTR = (*up_k_)(x_BTD);
    s.c_v_BTR = c_.shared_latent ? s.c_k_BTR : down_v_ ? (*down_v_)(x_BTD) : up_v_(x_BTD);
    return s;
  }

  Var keys(const LatentStream& s, const RopeTable&, const Tensor&) const override {
    Var k_c = s.c_k_BTR;
    if (down_k_) k_c = up_k_ ? (*up_k_)(k_c) : Var();
    const Var all = !k_r_ ? k_c : !up_k_ ? s.z_BTP : concat(s.z_BTP, k_c, -1);
    return reshape(gather(all, -1, key_dims_), {all.size(0), all.size(1), c_.K, c_.E});
  }

  // q's dims at their own columns, and q_n W_up_k at those of the latent. The bias of W_up_k adds q_n . b to
  // every score of a query, which the softmax does not see.
  Var absorb(const Var& q_BTHE) const override {
    const int64_t B = q_BTHE.size(0), T = q_BTHE.size(1), H = c_.H;
    const auto placed = [&] {
      return reshape(gather(reshape(q_BTHE, {B, T, H * c_.E}), -1, query_columns_), {B, T, H, -1});
    };
    if (!down_k_ || !up_k_) return placed();
    const Var up_KER = reshape(gather(up_k_->weight(), 0, lost_rows_), {c_.K, c_.E, c_.rank_k});
    const Var q_c = by_token(matmul(by_group(q_BTHE), up_KER), B, T);
    return k_r_ ? concat(placed(), q_c, -1) : q_c;
  }

  int64_t key_products() const override { return lost_ * c_.rank_k; }

 private:
  void make_indices(const Layout& at);

  const int64_t lost_;
  Linear q_proj_;
  std::optional<Linear> k_r_, down_k_, down_v_, up_k_;
  Tensor q_pairs_, plane_pairs_;  // for rope
  Tensor plane_rows_;             // [2P] column of z -> row of W_k_r
  Tensor key_dims_;               // [K E] dim of k -> column of [z | k_c]
  Tensor lost_rows_;              // [K E] dim of k -> row of W_up_k, -1: none
  Tensor query_columns_;          // [H, columns that meet q as it is] -> dim of q, -1: zero
};

void Mla::make_indices(const Layout& at) {
  const int64_t H = c_.H, KE = c_.K * c_.E, G = H / c_.K;
  q_pairs_ = rope_pairs(c_, H);
  plane_pairs_ = Tensor::from(at.pair_of_plane, {1, at.P});
  plane_rows_ = ids(at.row_of_column);
  lost_rows_ = ids(at.lost_row);
  Ids key_dims(static_cast<size_t>(KE));  // also: of [z | k_c], the column of each dim
  for (size_t d = 0; d < key_dims.size(); ++d)
    key_dims[d] =
        at.plane_column[d] >= 0 ? at.plane_column[d] : static_cast<int32_t>(2 * at.P) + at.lost_row[d];
  key_dims_ = ids(key_dims);

  const int64_t plain = 2 * at.P + (c_.rank_k ? 0 : at.lost);
  Ids columns(static_cast<size_t>(H * plain), -1);
  for (int64_t h = 0; h < H; ++h)
    for (int64_t e = 0; e < c_.E; ++e) {
      const int64_t dim = h / G * c_.E + e, column = key_dims[static_cast<size_t>(dim)];
      if (column < plain)
        columns[static_cast<size_t>(h * plain + column)] = static_cast<int32_t>(h * c_.E + e);
    }
  query_columns_ = ids(columns);
}

void check_widths(const AttentionConfig& c) {
  LLATTE_CHECK(c.D > 0 && c.H > 0 && c.K > 0 && c.E > 0, "mla: widths must be positive, got D=", c.D,
               " H=", c.H, " K=", c.K, " E=", c.E);
  LLATTE_CHECK(c.H % c.K == 0, "mla: ", c.H, " query heads do not split over ", c.K, " kv heads");
  LLATTE_CHECK(c.E % 2 == 0, "mla: head width ", c.E, " is odd, RoPE turns pairs");
  LLATTE_CHECK(!c.qk_norm, "mla: an RMSNorm on q and k cannot be kept, k is not there to be normed");
  LLATTE_CHECK(c.rank_k >= 0 && c.rank_v >= 0 && c.rank_k + c.rank_v > 0, "mla: ranks ", c.rank_k,
               " of k and ", c.rank_v, " of v; at least one must be positive");
  LLATTE_CHECK(!c.shared_latent || c.rank_k == c.rank_v, "mla: a latent shared by k and v has one rank, got ",
               c.rank_k, " and ", c.rank_v);
}

void check_pairs(const AttentionConfig& c) {
  LLATTE_CHECK(static_cast<int64_t>(c.kept_pairs.size()) == c.K, "mla: kept_pairs lists ",
               c.kept_pairs.size(), " kv heads of ", c.K);
  for (const auto& pairs : c.kept_pairs)
    for (size_t i = 0; i < pairs.size(); ++i)
      LLATTE_CHECK((i == 0 ? -1 : pairs[i - 1]) < pairs[i] && pairs[i] < c.E / 2, "mla: kept pair ", pairs[i],
                   " at place ", i, "; pairs must ascend within [0,", c.E / 2, ")");
}

}  // namespace

std::unique_ptr<Attention> make_attention_mla(const AttentionConfig& given) {
  check_widths(given);
  AttentionConfig c = given;
  if (c.kept_pairs.empty()) {  // all of them
    Ids all(static_cast<size_t>(c.E / 2));
    std::iota(all.begin(), all.end(), 0);
    c.kept_pairs.assign(static_cast<size_t>(c.K), all);
  }
  check_pairs(c);
  return std::make_unique<Mla>(c, Layout(c));
}

}  // namespace llatte
