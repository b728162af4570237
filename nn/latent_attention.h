// What all latent attentions share: the stream they cache, and the two ways to read it.
//   Of each token a layer keeps one row [z | c_k | c_v]: z, P planes (two numbers each, half-split [Re | Im])
//   already rotated; c_k and c_v, unrotated latents, which may be one and the same.
//   lifted    k = keys(z, c_k), v = values(c_v), then ordinary attention: training, and long prompts.
//   absorbed  q~ . row is q . k, and the heads' outputs are values(sum of p c_v): decoding reads rows alone.
// Both give the same numbers to rounding. A kind of latent attention says what its planes and maps are.
// Keys may be wider than values: q and k meet in Q dims a head, v has E.
//   B batch  T time  S tokens seen  D model width  H query heads  K kv heads  E head width  Q score width
//   G = H/K  R latent width  W stream width
#pragma once
#include "nn/attention.h"
#include "nn/layers.h"
#include "nn/token_store.h"

namespace llatte {

// Columns of the stream.
struct StreamWidths {
  int64_t planes = 0;                            // 2P
  int64_t c_k = 0, c_v = 0;                      // c_v counts for the stream only if it is not shared
  bool shared = false;                           // c_k is c_v
  int64_t keys() const { return planes + c_k; }  // the columns that a query meets
  int64_t row() const { return keys() + (shared ? 0 : c_v); }
  int64_t first_value() const { return planes + (shared ? 0 : c_k); }
};

struct LatentStream {
  Var z_BTP, c_k_BTR, c_v_BTR;  // those of width 0 are undefined
  Var keys() const;             // [z | c_k]
};

class LatentCache final : public LayerCache {
 public:
  LatentCache(int64_t B, int64_t S, const StreamWidths& w, CacheType t, Device d);
  int64_t length() const override { return rows_.length(); }
  int64_t capacity() const override { return rows_.capacity(); }
  void truncate(int64_t length) override { rows_.truncate(length); }
  int64_t bytes_per_token() const override { return rows_.bytes_per_token(); }
  TokenStore& rows() { return rows_; }

 private:
  TokenStore rows_;
};

// W_up_v (rank_v 0: it reads x and v itself is cached) and o_proj are what every kind has.
class LatentAttention : public Attention {
 public:
  Var forward(const Var& x_BTD, const AttentionInput& in) final;
  std::unique_ptr<LayerCache> make_cache(int64_t B, int64_t S, CacheType t) const final;
  void buffers(const BufferFn& f) override { f(own_dims_); }

 protected:
  LatentAttention(const AttentionConfig& c, const StreamWidths& w);

  virtual Var queries(const Var& x_BTD, const AttentionInput& in) const = 0;          // rotated, (B,T,H,Q)
  virtual LatentStream stream(const Var& x_BTD, const AttentionInput& in) const = 0;  // z rotated
  // (B,S,K,Q), of tokens at pos_S: for a kind that rotates what it has lifted.
  virtual Var keys(const LatentStream& s, const RopeTable& rope, const Tensor& pos_S) const = 0;
  virtual bool can_absorb() const { return true; }
  // q~ (B,T,H,w): q~ . row[0, w) = q_h . k, up to a number that is the same for every row and so cancels in
  // the softmax.
  virtual Var absorb(const Var& q_BTHQ) const = 0;
  virtual int64_t key_products() const = 0;  // multiplications of keys() for one row

  // Planes (B,T,2P), half-split, by their positions: plane p turns as pair pair_1P[p] does.
  static Var turned(const Var& z_BTP, const Tensor& pair_1P, const AttentionInput& in);
  // (B,T,H,n) as (K, B T G, n) and back: what the heads of a kv head have in common is one matrix product.
  Var by_group(const Var& x_BTHn) const;
  Var by_token(const Var& x_KNn, int64_t B, int64_t T) const;

  const AttentionConfig c_;
  const StreamWidths widths_;
  Linear up_v_, o_proj_;

 private:
  Var attend(const Var& x_BTD, const Var& q_BTHQ, const LatentStream& s, const AttentionInput& in) const;
  Var attend_cached(const Var& q_BTHQ, const LatentStream& s, const AttentionInput& in) const;
  bool absorbs(int64_t T, int64_t Q) const;
  LatentStream split(const Var& rows_BSW) const;
  Var values(const Var& c_v_BSR) const;  // (B,S,K,E)
  Var outputs(const Var& o_BTHR) const;  // of sum p c_v: (B,T,H,E)

  // [H E] -> the kv head's own dims: of W_up_v's rows, or where v is not factored of (H, K E)
  Tensor own_dims_;
};

}  // namespace llatte
