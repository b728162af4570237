// What all latent attentions share: the stream they cache, and the two ways to read it.
//   Of each token a layer keeps one row [z | c_k | c_v]: z, P planes (two numbers each, half-split [Re | Im])
//   already rotated; c_k and c_v, unrotated latents, which may be one and the same.
//   lifted    k = keys(z, c_k), v = values(c_v), then ordinary attention: training, and long prompts.
//   absorbed  q~ . row is q . k, and the heads' outputs are values(sum of p c_v): decoding reads rows alone.
// Both give the same numbers to rounding. A kind of latent attention says what its planes and maps are.
//   B batch  T time  S tokens seen  D model width  H query heads  K kv heads  E head width  W stream width
#pragma once
#include "nn/attention.h"
#include "nn/token_store.h"

namespace llatte {

// Columns of the stream.
struct StreamWidths {
  int64_t planes = 0;        // 2P
  int64_t c_k = 0, c_v = 0;  // c_v counts for the stream only if it is not shared
  bool shared = false;       // c_k is c_v
  int64_t row() const { return planes + c_k + (shared ? 0 : c_v); }
  int64_t first_value() const { return planes + (shared ? 0 : c_k); }
};

struct LatentStream {
  Var z_BTP, c_k_BTR, c_v_BTR;  // those of width 0 are undefined
};

class LatentCache final : public LayerCache {
 public:
  LatentCache(int64_t B, int64_t S, const StreamWidths& w, CacheType t);
  int64_t length() const override { return rows_.length(); }
  int64_t capacity() const override { return rows_.capacity(); }
  void truncate(int64_t length) override { rows_.truncate(length); }
  int64_t bytes_per_token() const override { return rows_.bytes_per_token(); }
  TokenStore& rows() { return rows_; }

 private:
  TokenStore rows_;
};

class LatentAttention : public Attention {
 public:
  Var forward(const Var& x_BTD, const AttentionInput& in) final;
  std::unique_ptr<LayerCache> make_cache(int64_t B, int64_t S, CacheType t) const final;

 protected:
  LatentAttention(const AttentionConfig& c, const StreamWidths& w) : c_(c), widths_(w) {}

  virtual Var queries(const Var& x_BTD, const AttentionInput& in) const = 0;          // rotated, (B,T,H,E)
  virtual LatentStream stream(const Var& x_BTD, const AttentionInput& in) const = 0;  // z rotated
  virtual Var keys(const LatentStream& s) const = 0;                                  // (B,S,K,E)
  virtual Var values(const Var& c_v_BSR) const = 0;                                   // (B,S,K,E)
  // q~ (B,T,H,w): q~ . row[0, w) = q_h . k, up to a number that is the same for every row and so cancels in
  // the softmax.
  virtual Var absorb(const Var& q_BTHE) const = 0;
  virtual Var outputs(const Var& o_BTHR) const = 0;  // of sum p c_v: (B,T,H,E)
  virtual Var project(const Var& o_BTHE) const = 0;  // (B,T,D)
  virtual int64_t lift_products() const = 0;         // multiplications of keys() and values() for one row

  const AttentionConfig c_;
  const StreamWidths widths_;

 private:
  Var attend_cached(const Var& q_BTHE, const LatentStream& s, LayerCache& cache) const;
  bool absorbs(int64_t T) const;
  LatentStream split(const Var& rows_BSW) const;
};

}  // namespace llatte
