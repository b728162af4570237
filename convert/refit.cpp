// Original and converted model side by side, one layer at a time: both streams of all windows are kept, [T,D]
// each.
//   T time  D model width  H query heads  E head width
#include "convert/refit.h"
#include <algorithm>
#include <cmath>
#include <numeric>
#include "autograd/ops.h"
#include "convert/moments.h"  // weighted_rows
#include "models/block.h"
#include "tensor/kernels.h"  // matmul, accumulate, add, scale
#include "tensor/linalg.h"

namespace llatte {
namespace {

namespace la = linalg;

constexpr int64_t kWindows = 64;
constexpr int64_t kAlone = 4;    // windows whose tokens are seen alone too
constexpr double kRidge = 1e-2;  // rho, as a share of the mean diagonal

// Keeps the heads' outputs of the attention that runs.
struct HeadOutputs final : AttentionProbe {
  Var attention(int64_t, const Var&, const Var&, const Var&, const Var&, const Var& o_BTHE) override {
    seen = o_BTHE.value;
    return o_BTHE;
  }
  Tensor seen;
};

Block read_block(const Checkpoint& from, int64_t l, Device device) {
  Block block(from.config, l, DType::f32);
  block.params(str("model.layers.", l, "."),
               [&](const std::string& name, Var& p) { p.value = from.read(name, DType::f32); });
  block.to(device);
  return block;
}

// sum (f64) += a^T b, both f32 (N, n). The product of one window may round, as its factors did; sums over
// windows may not.
void add_product(const Tensor& a, const Tensor& b, Tensor& sum) {
  Tensor product = Tensor::empty(sum.shape(), DType::f32, sum.device());
  kernels::matmul(a.transpose(0, 1), b, product, 0);
  kernels::accumulate(product, sum);
}

// What the attention would have to add for the converted stream to become the original one, whose right_BTD
// is x + y: y + x - x_converted.
Tensor target(const Tensor& right_BTD, const Tensor& converted_BTD) {
  Tensor t = Tensor::empty_like(right_BTD);
  kernels::scale(converted_BTD, -1, t);
  kernels::add(right_BTD, t, t);
  return t;
}

// For each token 1 / rms of its stream, by which the next norm divides whatever is wrong in it. The stream of
// some tokens, the first above all, is hundreds of times as large as that of others: without these weights
// they alone would be fitted.
std::vector<double> weights_of(const Tensor& stream_BTD) {
  const int64_t D = stream_BTD.size(-1);
  std::vector<double> weights(static_cast<size_t>(stream_BTD.numel() / D));
  const Tensor on_host = stream_BTD.to(Device::cpu);
  const float* x = on_host.data<float>();
  for (size_t t = 0; t < weights.size(); ++t, x += D) {
    double sum = 0;
    for (int64_t d = 0; d < D; ++d) sum += double(x[d]) * double(x[d]);
    weights[t] = 1 / std::sqrt(sum / static_cast<double>(D));
  }
  return weights;
}

// The streams of one window, or of tokens alone (T = 1).
struct Window {
  Tensor x_BTD, converted_BTD, heads;  // on the device; heads: (B,T,HE) of the converted model's layer
};

Window embedded(const Tensor& table_VD, const Tensor& tokens_BT) {
  const int64_t B = tokens_BT.size(0), T = tokens_BT.size(1), D = table_VD.size(1);
  Tensor x_ND = Tensor::empty({B * T, D}, DType::f32, table_VD.device());
  kernels::embedding_fwd(tokens_BT.contiguous().reshape({B * T}), table_VD, x_ND);
  const Tensor x_BTD = x_ND.reshape({B, T, D});
  return {x_BTD, x_BTD, {}};
}

// The windows, and of the first few every token as the first of a text.
std::vector<Window> embedded_windows(const Checkpoint& source, const Tensor& tokens_NT, Device device) {
  const Tensor table_VD = source.read("model.embed_tokens.weight", DType::f32).to(device);
  std::vector<Window> windows;
  for (int64_t n = 0; n < std::min(kWindows, tokens_NT.size(0)); ++n) {
    const Tensor tokens_1T = tokens_NT.slice(0, n, n + 1).to(device);
    windows.push_back(embedded(table_VD, tokens_1T));
    if (n < kAlone) windows.push_back(embedded(table_VD, tokens_1T.transpose(0, 1)));
  }
  return windows;
}

// W_o f64 [D,HE] from aa = sum of a a^T [HE,HE] and at = sum of a t^T [HE,D] over N tokens.
Tensor solved(const Tensor& aa, const Tensor& at, const Tensor& wo_DA, double N) {
  Tensor left = la::scaled_rows(aa, Tensor::full({aa.size(0)}, 1 / N, DType::f64));
  Tensor right = la::scaled_rows(at, Tensor::full({at.size(0)}, 1 / N, DType::f64));
  const double rho = kRidge * la::mean_diagonal(left);
  const Tensor prior = la::transposed(wo_DA);
  for (int64_t i = 0; i < right.numel(); ++i) right.data<double>()[i] += rho * prior.data<double>()[i];
  return la::transposed(la::solve_spd(la::add_to_diagonal(left, rho), right));
}

Tensor refit_layer(const Checkpoint& source, const Checkpoint& converted, int64_t l, const RopeTable& rope,
                   const Tensor& pos_T, std::vector<Window>& windows) {
  const LlamaConfig& c = source.config;
  const int64_t D = c.hidden_size, A = c.num_attention_heads * c.head_dim;
  const Device device = pos_T.device();
  const Block original = read_block(source, l, device), changed = read_block(converted, l, device);
  Tensor aa = Tensor::zeros({A, A}, DType::f64, device), at = Tensor::zeros({A, D}, DType::f64, device);
  HeadOutputs probe;
  int64_t N = 0;
  for (Window& w : windows) {
    const int64_t B = w.x_BTD.size(0), T = w.x_BTD.size(1);
    const Tensor pos = pos_T.slice(0, 0, T);
    const Var x_BTD = constant(w.x_BTD), y_BTD = original.attend(x_BTD, {rope, pos, l});
    changed.attend(constant(w.converted_BTD), {rope, pos, l, nullptr, &probe});
    w.heads = probe.seen.contiguous().reshape({B, T, A});
    N += B * T;
    const Var right_BTD = add(x_BTD, y_BTD);
    const std::vector<double> weights = weights_of(right_BTD.value);
    const Tensor a_NA = weighted_rows(w.heads.reshape({B * T, A}), weights);
    const Tensor t_ND = target(right_BTD.value, w.converted_BTD).reshape({B * T, D});
    add_product(a_NA, a_NA, aa);
    add_product(a_NA, weighted_rows(t_ND, weights), at);
    w.x_BTD = original.feed_forward(right_BTD).value;
  }
  const std::string name = str("model.layers.", l, ".self_attn.o_proj.weight");
  const Tensor wo =
      solved(aa.to(Device::cpu), at.to(Device::cpu), source.read(name, DType::f64), static_cast<double>(N))
          .to(DType::f32);
  const Var fitted = constant(wo.to(device));
  for (Window& w : windows)
    w.converted_BTD =
        changed.feed_forward(add(constant(w.converted_BTD), linear(constant(w.heads), fitted))).value;
  return wo;
}

}  // namespace

std::vector<Tensor> refit_o(const Checkpoint& source, const Checkpoint& converted, const Tensor& tokens_NT,
                            Device device) {
  const NoGrad off;
  const int64_t T = tokens_NT.size(1);
  LLATTE_CHECK(T <= source.config.max_position_embeddings, "convert.refit_o: the calibration windows have ",
               T, " tokens, the model ", source.config.max_position_embeddings, " positions");
  std::vector<int32_t> positions(static_cast<size_t>(T));
  std::iota(positions.begin(), positions.end(), 0);
  const Tensor pos_T = Tensor::from(positions, {T}).to(device);
  const RopeTable rope = make_rope_table(rope_frequencies(source.config), T, DType::f32, device);
  std::vector<Window> windows = embedded_windows(source, tokens_NT, device);
  std::vector<Tensor> fitted;
  for (int64_t l = 0; l < source.config.num_hidden_layers; ++l)
    fitted.push_back(refit_layer(source, converted, l, rope, pos_T, windows));
  return fitted;
}

}  // namespace llatte
