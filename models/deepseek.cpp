// Each tensor of DeepSeek's attention as rows of ours. Letters as in DeepSeek's config: nope and rope are the
// parts of a head's q and k without and with RoPE; rope rows come in neighbours, (2p, 2p + 1) for plane p.
#include "models/deepseek.h"
#include <cmath>
#include <numeric>
#include "data/files.h"
#include "data/json.h"
#include "data/safetensors.h"
#include "models/hf.h"
#include "models/partial_rope.h"

namespace llatte {
namespace {

using ordered = nlohmann::ordered_json;
constexpr double kLatentNorm = 1 << 20;

// A plane of the shared rotated key: a pair, for the `copy`-th of the kv heads that keep it.
struct Plane {
  int64_t pair, copy;
};

// What all layers have in common.
struct Layout {
  std::vector<Plane> planes;
  bool plain = false;              // frequencies are theta^(-2i/dr)
  int64_t nope = 0;                // the most dims of k without RoPE that a head has
  int64_t rank_k = 0, rank_v = 0;  // coordinates of the latent that k and v read
  bool shared = false;             // the same ones
  std::vector<int64_t> constants;  // a_i
  int64_t latent() const { return rank_k + (shared ? 0 : rank_v); }
  int64_t n() const { return latent() + static_cast<int64_t>(constants.size()); }
  int64_t rope() const { return 2 * static_cast<int64_t>(planes.size()); }
};

// n as a sum of `count` squares, 0 among them; empty: it is none.
std::vector<int64_t> squares(int64_t n, int64_t count) {
  for (auto a = static_cast<int64_t>(std::sqrt(static_cast<double>(n))); a >= 0; --a) {
    if (count == 1) return a * a == n ? std::vector<int64_t>{a} : std::vector<int64_t>{};
    std::vector<int64_t> rest = squares(n - a * a, count - 1);
    if (rest.empty()) continue;
    rest.push_back(a);
    return rest;
  }
  return {};
}

// The fewest a_i that do. Below 2^8 they are exact in bf16 too: so they are for every n < 65536.
std::vector<int64_t> constants_for(int64_t latent) {
  std::vector<int64_t> a;
  for (int64_t s = 1; a.empty() && s <= 4; ++s) a = squares(latent + s, s);
  return a;
}

// How many kv heads keep each pair, in the layer where most do.
std::vector<int64_t> copies_of(const LlamaConfig& c) {
  std::vector<int64_t> most(static_cast<size_t>(c.head_dim / 2));
  for (const auto& heads : c.mla->kept) {
    std::vector<int64_t> here(most.size());
    for (const auto& pairs : heads)
      for (const int32_t j : pairs) ++here[static_cast<size_t>(j)];
    for (size_t j = 0; j < most.size(); ++j) most[j] = std::max(most[j], here[j]);
  }
  return most;
}

void choose_planes(const LlamaConfig& c, Layout& y) {
  const std::vector<int64_t> copies = copies_of(c);
  const int64_t F = c.head_dim / 2;
  int64_t step = F;
  y.plain = !c.rope_scaling;
  for (int64_t j = 0; j < F; ++j) {
    const int64_t n = copies[static_cast<size_t>(j)];
    if (n > 0) step = std::gcd(step, j);
    if (n > 1) y.plain = false;
    for (int64_t copy = 0; copy < n; ++copy) y.planes.push_back({j, copy});
  }
  if (y.planes.empty()) y.plain = true;  // one plane of zeros
  if (!y.plain) return;
  y.planes.clear();
  for (int64_t j = 0; j < F; j += step) y.planes.push_back({j, 0});
}

Layout layout_of(const LlamaConfig& c) {
  Layout y;
  choose_planes(c, y);
  for (const auto& heads : c.mla->kept)
    for (const auto& pairs : heads)
      y.nope = std::max(y.nope, c.head_dim - 2 * static_cast<int64_t>(pairs.size()));
  const LatentWidths w = latent_widths(c);
  y.rank_k = w.rank_k ? w.rank_k : w.lost;
  y.rank_v = w.rank_v ? w.rank_v : w.kept + w.lost;
  y.shared = w.shared;
  y.constants = constants_for(y.latent());
  return y;
}

// ---- one layer -------------------------------------------------------------------------------------------

// The dims of a kv head's k: with RoPE, as (pair, plane), and the others.
struct HeadDims {
  std::vector<std::pair<int64_t, int64_t>> rotated;
  std::vector<int64_t> lost;
};

class Layer {
 public:
  Layer(const Checkpoint& c, const Layout& layout, int64_t layer)
      : c_(c), m_(c.config), y_(layout), at_(str("model.layers.", layer, ".self_attn.")) {
    const auto& kept = m_.mla->kept[static_cast<size_t>(layer)];
    std::vector<int64_t> seen(static_cast<size_t>(m_.head_dim / 2));
    for (const auto& pairs : kept) heads_.push_back(dims_of(pairs, seen));
  }

  // Per head [nope | rope]; zeros where the head has no such dim.
  Tensor q_proj() const {
    const int64_t H = m_.num_attention_heads, E = m_.head_dim, width = y_.nope + y_.rope();
    const double scale = std::sqrt(static_cast<double>(width) / static_cast<double>(E));
    const Tensor q = read("q_proj");
    Tensor out = Tensor::zeros({H * width, m_.hidden_size}, DType::f64);
    for (int64_t h = 0; h < H; ++h) {
      const HeadDims& head = head_of(h);
      for (size_t i = 0; i < head.lost.size(); ++i)
        copy_row(q, h * E + head.lost[i], out, h * width + static_cast<int64_t>(i), 0, scale);
      for (const auto& [pair, plane] : head.rotated)
        for (const int64_t half : {0, 1})
          copy_row(q, h * E + pair + half * E / 2, out, h * width + y_.nope + 2 * plane + half, 0, scale);
    }
    return out;
  }

  // [latent | constants | rope]
  Tensor kv_a_proj() const {
    Tensor out = Tensor::zeros({y_.n() + y_.rope(), m_.hidden_size}, DType::f64);
    const Tensor k = latent_of_k(), k_r = rotated_k();
    for (int64_t i = 0; i < y_.rank_k; ++i) copy_row(k, i, out, i);
    if (!y_.shared) {
      const Tensor v = latent_of_v();
      for (int64_t i = 0; i < y_.rank_v; ++i) copy_row(v, i, out, y_.rank_k + i);
    }
    int64_t row = 0;  // of k_r: per head the first dims of its pairs, then the second ones
    for (const HeadDims& head : heads_)
      for (const int64_t half : {0, 1})
        for (const auto& [pair, plane] : head.rotated) copy_row(k_r, row++, out, y_.n() + 2 * plane + half);
    return out;
  }

  // Per head [nope | v]; the constants are read by nobody.
  Tensor kv_b_proj() const {
    const int64_t H = m_.num_attention_heads, E = m_.head_dim, width = y_.nope + E;
    const Tensor up_k = up("W_up_k", factored_k(), y_.rank_k), up_v = up("W_up_v", factored_v(), y_.rank_v);
    Tensor out = Tensor::zeros({H * width, y_.n()}, DType::f64);
    std::vector<int64_t> first(heads_.size());  // row of up_k where a kv head begins
    for (size_t k = 1; k < heads_.size(); ++k)
      first[k] = first[k - 1] + static_cast<int64_t>(heads_[k - 1].lost.size());
    for (int64_t h = 0; h < H; ++h) {
      const int64_t k = h * m_.num_key_value_heads / H;
      const auto lost = static_cast<int64_t>(head_of(h).lost.size());
      for (int64_t i = 0; i < lost; ++i)
        copy_row(up_k, first[static_cast<size_t>(k)] + i, out, h * width + i);
      for (int64_t e = 0; e < E; ++e)
        copy_row(up_v, k * E + e, out, h * width + y_.nope + e, y_.shared ? 0 : y_.rank_k);
    }
    return out;
  }

 private:
  HeadDims dims_of(const std::vector<int32_t>& pairs, std::vector<int64_t>& seen) const {
    HeadDims d;
    std::vector<bool> kept(static_cast<size_t>(m_.head_dim));
    for (const int32_t j : pairs) {
      const int64_t copy = seen[static_cast<size_t>(j)]++;
      for (size_t p = 0; p < y_.planes.size(); ++p)
        if (y_.planes[p].pair == j && y_.planes[p].copy == copy)
          d.rotated.push_back({j, static_cast<int64_t>(p)});
      kept[static_cast<size_t>(j)] = kept[static_cast<size_t>(j + m_.head_dim / 2)] = true;
    }
    for (int64_t e = 0; e < m_.head_dim; ++e)
      if (!kept[static_cast<size_t>(e)]) d.lost.push_back(e);
    return d;
  }

  const HeadDims& head_of(int64_t h) const {
    return heads_[static_cast<size_t>(h * m_.num_key_value_heads / m_.num_attention_heads)];
  }
  bool latent() const { return is_latent(m_); }
  bool factored_k() const { return latent_widths(m_).rank_k > 0; }
  bool factored_v() const { return latent_widths(m_).rank_v > 0; }

  Tensor read(const std::string& name) const { return c_.read(at_ + name + ".weight", DType::f64); }

  // to[row, column..] = scale * from[i, :]
  static void copy_row(const Tensor& from, int64_t i, Tensor& to, int64_t row, int64_t column = 0,
                       double scale = 1) {
    const int64_t n = from.size(1);
    const double* x = from.data<double>() + i * n;
    double* y = to.data<double>() + row * to.size(1) + column;
    for (int64_t c = 0; c < n; ++c) y[c] = scale * x[c];
  }

  // Rows of k_proj: what W_k_r, or an unfactored W_up_k, is where k was left whole.
  Tensor rows_of_k(bool rotated) const {
    const Tensor k = read("k_proj");
    std::vector<int64_t> rows;
    for (size_t head = 0; head < heads_.size(); ++head) {
      const int64_t begin = static_cast<int64_t>(head) * m_.head_dim;
      if (!rotated)
        for (const int64_t e : heads_[head].lost) rows.push_back(begin + e);
      for (const int64_t half : {0, 1})
        for (const auto& [pair, plane] : heads_[head].rotated)
          if (rotated) rows.push_back(begin + pair + half * m_.head_dim / 2);
    }
    Tensor out = Tensor::empty({static_cast<int64_t>(rows.size()), m_.hidden_size}, DType::f64);
    for (size_t i = 0; i < rows.size(); ++i) copy_row(k, rows[i], out, static_cast<int64_t>(i));
    return out;
  }

  Tensor rotated_k() const {
    if (!latent()) return rows_of_k(true);
    return latent_widths(m_).kept > 0 ? read("W_k_r") : Tensor::zeros({0, m_.hidden_size}, DType::f64);
  }
  Tensor latent_of_k() const {
    if (!latent()) return rows_of_k(false);
    if (y_.rank_k == 0) return Tensor::zeros({0, m_.hidden_size}, DType::f64);
    return read(factored_k() ? "W_down_k" : "W_up_k");
  }
  Tensor latent_of_v() const {
    if (!latent()) return read("v_proj");
    return read(factored_v() ? "W_down_v" : "W_up_v");
  }
  // From the latent to k or v; what is not factored is in the latent itself.
  Tensor up(const char* name, bool factored, int64_t rank) const {
    if (factored) return read(name);
    Tensor identity = Tensor::zeros({rank, rank}, DType::f64);
    for (int64_t i = 0; i < rank; ++i) identity.data<double>()[i * rank + i] = 1;
    return identity;
  }

  const Checkpoint& c_;
  const LlamaConfig& m_;
  const Layout& y_;
  const std::string at_;
  std::vector<HeadDims> heads_;
};

// ---- the folder ------------------------------------------------------------------------------------------

ordered rope_scaling_of(const LlamaConfig& c, const Layout& y) {
  if (y.plain) return nullptr;
  const std::vector<double> wanted = rope_frequencies(c);
  ordered factors = ordered::array();
  for (size_t p = 0; p < y.planes.size(); ++p) {
    const double theirs =
        std::pow(c.rope_theta, -2.0 * static_cast<double>(p) / static_cast<double>(y.rope()));
    factors.push_back(theirs / wanted[static_cast<size_t>(y.planes[p].pair)]);
  }
  return {{"rope_type", "longrope"},    {"type", "longrope"},
          {"rope_theta", c.rope_theta}, {"factor", 1.0},
          {"attention_factor", 1.0},    {"original_max_position_embeddings", c.max_position_embeddings},
          {"short_factor", factors},    {"long_factor", factors}};
}

std::string config_text(const LlamaConfig& c, const Layout& y, DType dtype) {
  LlamaConfig plain = c;
  plain.mla.reset(), plain.rope_scaling.reset();
  ordered j = ordered::parse(hf_config(plain, dtype));
  j["architectures"] = {"DeepseekV3ForCausalLM"};
  j["model_type"] = "deepseek_v3";
  j["num_key_value_heads"] = c.num_attention_heads;  // k and v are lifted for each query head
  for (const char* key : {"head_dim", "mlp_bias"}) j.erase(key);
  j["q_lora_rank"] = nullptr;
  j["kv_lora_rank"] = y.n();
  j["qk_nope_head_dim"] = y.nope;
  j["qk_rope_head_dim"] = y.rope();
  j["v_head_dim"] = c.head_dim;
  j["rope_interleave"] = true;
  j["rope_scaling"] = rope_scaling_of(c, y);
  j["attention_bias"] = true;                        // for the latent's constants
  j["first_k_dense_replace"] = c.num_hidden_layers;  // no experts: the fields below are not used
  j["moe_intermediate_size"] = c.intermediate_size;
  for (const char* key :
       {"n_routed_experts", "n_shared_experts", "num_experts_per_tok", "n_group", "topk_group"})
    j[key] = 1;
  j["num_nextn_predict_layers"] = 0;
  return j.dump(2) + "\n";
}

Tensor kv_a_bias(const Layout& y) {
  Tensor bias = Tensor::zeros({y.n() + y.rope()}, DType::f64);
  for (size_t i = 0; i < y.constants.size(); ++i)
    bias.data<double>()[y.latent() + static_cast<int64_t>(i)] =
        static_cast<double>(y.constants[i]) * kLatentNorm;
  return bias;
}

bool replaced(const std::string& name) {
  return name.find(".self_attn.") != name.npos && !name.ends_with(".o_proj.weight");
}

void check_writable(const Checkpoint& checkpoint) {
  const LlamaConfig& c = checkpoint.config;
  const std::string where = checkpoint.path.string() + ": DeepSeek-V3's format";
  LLATTE_CHECK(!c.hla, where, " has no form for RoPE inside the latents (HLA); write --to hf");
  LLATTE_CHECK(c.mla, where,
               " is for latent attention, which this model has not; convert it with RoPE and SVD");
  require_pairs(c, checkpoint.path.string());
  LLATTE_CHECK(!c.qkv_bias, where, " has no bias on q_proj, this model (Qwen2) has one; write --to hf");
  LLATTE_CHECK(!c.qk_norm, where, " has no norms on q and k, this model (Qwen3) has them; write --to hf");
}

}  // namespace

void save_deepseek(const std::filesystem::path& folder, const Checkpoint& checkpoint, DType dtype) {
  check_writable(checkpoint);
  const LlamaConfig& c = checkpoint.config;
  const Layout y = layout_of(c);
  const int64_t H = c.num_attention_heads, D = c.hidden_size;
  std::vector<TensorSource> tensors;
  const auto add = [&](const std::string& name, const Shape& shape, const std::function<Tensor()>& get) {
    tensors.push_back({name, dtype, shape, [get, dtype] { return get().to(dtype); }});
  };
  for (const auto& [name, shape] : param_shapes(c))
    if (!replaced(name)) add(name, shape, [&, name = name] { return checkpoint.read(name, dtype); });
  for (int64_t l = 0; l < c.num_hidden_layers; ++l) {
    const std::string at = str("model.layers.", l, ".self_attn.");
    const auto layer = [&checkpoint, &y, l] { return Layer(checkpoint, y, l); };
    add(at + "q_proj.weight", {H * (y.nope + y.rope()), D}, [=] { return layer().q_proj(); });
    add(at + "kv_a_proj_with_mqa.weight", {y.n() + y.rope(), D}, [=] { return layer().kv_a_proj(); });
    add(at + "kv_a_proj_with_mqa.bias", {y.n() + y.rope()}, [&y] { return kv_a_bias(y); });
    add(at + "kv_a_layernorm.weight", {y.n()},
        [&y] { return Tensor::full({y.n()}, kLatentNorm, DType::f64); });
    add(at + "kv_b_proj.weight", {H * (y.nope + c.head_dim), y.n()}, [=] { return layer().kv_b_proj(); });
    add(at + "o_proj.bias", {D}, [D] { return Tensor::zeros({D}, DType::f64); });
  }
  write_file_atomic(folder / "config.json", config_text(c, y, dtype));
  write_safetensors(folder / "model.safetensors", tensors);
  write_tokenizer_files(folder, checkpoint);
}

}  // namespace llatte
