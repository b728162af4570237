// Llama: blocks, the RoPE table they share, and the three ways to read the last hidden state.
//   B batch  T time  D model width  F ffn width  V vocabulary  L layers  S positions in the RoPE table
// Activations kept for backward, per block: x, both normed x, q, k, v, o, gate, up and silu(gate)*up. With
// set_recompute(true): x alone.
#include "models/llama.h"
#include <algorithm>
#include <cmath>
#include <map>
#include "autograd/ops.h"
#include "models/block.h"
#include "tensor/kernels.h"  // fill, random_normal, embedding_fwd, linear_cross_entropy

namespace llatte {
namespace {

AttentionConfig hla_attention(AttentionConfig a, const HlaConfig& c, int64_t layer) {
  const HlaLayer& l = c.layers[static_cast<size_t>(layer)];
  a.kind = "hla", a.hla_rope = c.rope, a.rope_pairs = c.rope_pairs, a.head_block = c.head_block;
  a.k_planes = l.k, a.q_planes = l.q;
  a.rank_q = l.rank_q, a.rank_k = l.rank_k, a.rank_v = l.rank_v;
  a.shared_latent = c.rope == HlaRope::unified;
  return a;
}

}  // namespace

AttentionConfig attention_config(const LlamaConfig& c, int64_t layer, DType t) {
  AttentionConfig a;
  a.D = c.hidden_size, a.H = c.num_attention_heads, a.K = c.num_key_value_heads, a.E = c.head_dim;
  a.qkv_bias = c.qkv_bias, a.qk_norm = c.qk_norm, a.norm_eps = c.rms_norm_eps, a.dtype = t;
  if (c.hla) return hla_attention(a, *c.hla, layer);
  if (!c.mla) return a;
  a.kept_pairs = c.mla->kept[static_cast<size_t>(layer)];
  if (!is_latent(c)) return a;
  const LatentWidths w = latent_widths(c);
  a.kind = "mla", a.rank_k = w.rank_k, a.rank_v = w.rank_v, a.shared_latent = w.shared;
  return a;
}

namespace {

// FNV-1a: the random stream of a parameter is its name, so adding a parameter leaves the others as they were.
uint64_t fnv1a(const std::string& s) {
  uint64_t h = 14695981039346656037ull;
  for (const char ch : s) h = (h ^ static_cast<unsigned char>(ch)) * 1099511628211ull;
  return h;
}

bool is_bias(const std::string& name) { return name.ends_with(".bias"); }

// The planes that a parameter of HLA lifts: A_k or A_q, as model.layers.N.self_attn.A_k_re. Else null.
const Planes* planes_of(const LlamaConfig& c, const std::string& name) {
  if (!c.hla || !(name.ends_with("_re") || name.ends_with("_im"))) return nullptr;
  const HlaLayer& l = c.hla->layers[std::stoul(name.substr(std::string("model.layers.").size()))];
  return name.find(".A_q_") != name.npos ? &l.q : &l.k;
}

// z = W_k_r x is as large as k_proj x. The n planes that serve a pair of a head add up to a k as large as
// that if the numbers of A_k are N(0, 1 / 2n), whatever the other matrices' std; so too A_q.
void init_plane_lift(uint64_t seed, uint64_t stream, const Planes& planes, Tensor& a_NP) {
  std::map<std::pair<int32_t, int32_t>, int64_t> sharing;
  for (size_t p = 0; p < planes.pair.size(); ++p) ++sharing[{planes.pair[p], planes.block[p]}];
  Tensor normal_NP = Tensor::empty(a_NP.shape(), DType::f64);
  kernels::random_normal(seed, stream, 0, 1, normal_NP);
  for (int64_t i = 0; i < a_NP.numel(); ++i) {
    const auto p = static_cast<size_t>(i % planes.count());
    normal_NP.data<double>()[i] /=
        std::sqrt(2 * static_cast<double>(sharing[{planes.pair[p], planes.block[p]}]));
  }
  a_NP.copy_from(normal_NP);
}

// [B,T], as the rope kernel reads them: made once for all layers.
Tensor positions(int64_t begin, int64_t B, int64_t T) {
  std::vector<int32_t> pos(static_cast<size_t>(B * T));
  for (int64_t i = 0; i < B * T; ++i) pos[static_cast<size_t>(i)] = static_cast<int32_t>(begin + i % T);
  return Tensor::from(pos, {B, T});
}

}  // namespace

struct Llama::Impl {
  Impl(const LlamaConfig& config, DType t)
      : c(config),
        dtype(t),
        frequencies(rope_frequencies(config)),
        embed_tokens(c.vocab_size, c.hidden_size, t),
        norm(c.hidden_size, c.rms_norm_eps, t) {
    for (int64_t l = 0; l < c.num_hidden_layers; ++l) blocks.push_back(std::make_unique<Block>(c, l, t));
    if (!c.tie_word_embeddings) lm_head = std::make_unique<Linear>(c.hidden_size, c.vocab_size, false, t);
  }

  // A table of at least S positions: grown by doubling, so that decoding rarely makes a new one.
  const RopeTable& rope_for(int64_t S) {
    LLATTE_CHECK(S <= c.max_position_embeddings, "llama: a sequence of ", S,
                 " tokens exceeds max_position_embeddings ", c.max_position_embeddings,
                 "; use a shorter window or a model with more positions");
    const int64_t have = rope.cos.defined() ? rope.cos.size(0) : 0;
    if (S > have)
      rope = make_rope_table(frequencies, std::min(c.max_position_embeddings, std::max(S, 2 * have)),
                             acc_dtype(dtype), device());
    return rope;
  }

  Device device() const { return embed_tokens.weight().value.device(); }

  const Var& head_weight() const { return lm_head ? lm_head->weight() : embed_tokens.weight(); }

  LlamaConfig c;
  DType dtype;
  bool recompute_blocks = false;
  AttentionProbe* probe = nullptr;
  std::vector<double> frequencies;
  RopeTable rope;
  Embedding embed_tokens;
  std::vector<std::unique_ptr<Block>> blocks;
  RmsNorm norm;
  std::unique_ptr<Linear> lm_head;  // null: tied to embed_tokens
};

Llama::Llama(const LlamaConfig& c, DType dtype) {
  c.check();
  LLATTE_CHECK(!c.mla || !c.mla->kept.empty(),
               "llama: which pairs keep RoPE is not known: RoPE.partial_rope_version ",
               c.mla ? c.mla->rope.partial_rope_version : 0, " needs its scores file, RoPE.qk_tensor_path");
  LLATTE_CHECK(is_float(dtype), "llama: weights are f32, bf16 or f64, not ", name(dtype));
  impl_ = std::make_unique<Impl>(c, dtype);
}
Llama::~Llama() = default;

const LlamaConfig& Llama::config() const { return impl_->c; }
DType Llama::dtype() const { return impl_->dtype; }
Device Llama::device() const { return impl_->device(); }
void Llama::set_recompute(bool each_layer) { impl_->recompute_blocks = each_layer; }
void Llama::set_probe(AttentionProbe* probe) { impl_->probe = probe; }

void Llama::init(uint64_t seed, double std) {
  params("", [&](const std::string& name, Var& p) {
    if (const Planes* planes = planes_of(impl_->c, name))
      init_plane_lift(seed, fnv1a(name), *planes, p.value);
    else if (p.value.ndim() == 2) kernels::random_normal(seed, fnv1a(name), 0, std, p.value);
    else kernels::fill(p.value, is_bias(name) ? 0 : 1);
  });
}

Var Llama::hidden(const Tensor& tokens_BT, KvCache* cache) {
  LLATTE_CHECK(tokens_BT.defined() && tokens_BT.ndim() == 2 && tokens_BT.dtype() == DType::i32 &&
                   tokens_BT.numel() > 0,
               "llama: tokens must be i32 (B,T) with at least one token, got ", name(tokens_BT.dtype()), " ",
               tokens_BT.shape());
  LLATTE_CHECK(!cache || cache->layers.size() == impl_->blocks.size(), "llama: a cache of ",
               cache ? cache->layers.size() : 0, " layers for a model of ", impl_->blocks.size());
  const int64_t T = tokens_BT.size(1), past = cache ? cache->length() : 0;
  const Tensor pos_BT = positions(past, tokens_BT.size(0), T).to(device());
  const RopeTable rope = impl_->rope_for(past + T);  // handles: the table may grow before backward runs

  Var x_BTD = impl_->embed_tokens(tokens_BT.to(device()));
  for (size_t l = 0; l < impl_->blocks.size(); ++l) {
    const Block& block = *impl_->blocks[l];
    const auto layer = static_cast<int64_t>(l);
    if (!cache && impl_->recompute_blocks)
      x_BTD = recompute(
          [&block, rope, pos_BT, layer](const Var& x) {
            return block.forward(x, {rope, pos_BT, layer});
          },
          x_BTD);
    else
      x_BTD =
          block.forward(x_BTD, {rope, pos_BT, layer, cache ? cache->layers[l].get() : nullptr, impl_->probe});
  }
  LLATTE_SHAPE(x_BTD, tokens_BT.size(0), T, impl_->c.hidden_size);
  return impl_->norm(x_BTD);
}

const Var& Llama::head_weight() const { return impl_->head_weight(); }

Var Llama::logits(const Var& hidden_BTD) { return linear(hidden_BTD, impl_->head_weight()); }

Var Llama::loss(const Tensor& tokens_BT, const Tensor& targets_BT) {
  LLATTE_CHECK(tokens_BT.shape() == targets_BT.shape(), "llama: tokens are ", tokens_BT.shape(),
               " but targets ", targets_BT.shape());
  const int64_t N = tokens_BT.numel();
  const Var hidden_ND = reshape(hidden(tokens_BT), {N, impl_->c.hidden_size});
  return linear_cross_entropy(hidden_ND, impl_->head_weight(), targets_BT.contiguous().reshape({N}));
}

Tensor Llama::losses(const Tensor& tokens_BT, const Tensor& targets_BT, KvCache* cache) {
  const NoGrad off;
  LLATTE_CHECK(tokens_BT.shape() == targets_BT.shape(), "llama: tokens are ", tokens_BT.shape(),
               " but targets ", targets_BT.shape());
  const auto all = targets_BT.contiguous().to_vector<int32_t>();
  std::vector<int32_t> rows, targets;
  for (size_t n = 0; n < all.size(); ++n)
    if (all[n] != -100) rows.push_back(static_cast<int32_t>(n)), targets.push_back(all[n]);
  const auto N = static_cast<int64_t>(rows.size()), D = impl_->c.hidden_size;
  Tensor losses_N = Tensor::empty({N}, acc_dtype(dtype()), device()), no_dx, no_dw;
  if (N == 0 && !cache) return losses_N;
  const Tensor hidden_BTD = hidden(tokens_BT, cache).value;
  if (N == 0) return losses_N;
  // Only rows that count meet the vocabulary: picking rows of a matrix is what an embedding does.
  Tensor x_ND = Tensor::empty({N, D}, dtype(), device());
  const Tensor rows_N = Tensor::from(rows, {N}).to(device()),
               targets_N = Tensor::from(targets, {N}).to(device());
  kernels::embedding_fwd(rows_N, hidden_BTD.reshape({tokens_BT.numel(), D}), x_ND);
  kernels::linear_cross_entropy(x_ND, impl_->head_weight().value, targets_N, -100, losses_N, no_dx, no_dw);
  return losses_N;
}

KvCache Llama::make_cache(int64_t B, int64_t S, std::optional<CacheType> t) const {
  LLATTE_CHECK(B > 0 && S > 0, "llama: a cache needs at least one sequence of one token, got B=", B,
               " S=", S);
  KvCache cache;
  for (const auto& block : impl_->blocks)
    cache.layers.push_back(block->attention().make_cache(B, S, t.value_or(cache_type(dtype()))));
  return cache;
}

void Llama::params(const std::string& prefix, const ParamFn& f) {
  impl_->embed_tokens.params(prefix + "model.embed_tokens.", f);
  for (size_t l = 0; l < impl_->blocks.size(); ++l)
    impl_->blocks[l]->params(prefix + "model.layers." + std::to_string(l) + ".", f);
  impl_->norm.params(prefix + "model.norm.", f);
  if (impl_->lm_head) impl_->lm_head->params(prefix + "lm_head.", f);
}

void Llama::buffers(const BufferFn& f) {
  f(impl_->rope.cos), f(impl_->rope.sin);
  for (const auto& block : impl_->blocks) block->buffers(f);
}

}  // namespace llatte
