#include "convert/calibrate.h"
#include <algorithm>
#include <cstring>
#include "autograd/ops.h"
#include "convert/head_gradients.h"
#include "convert/moments.h"
#include "data/safetensors.h"
#include "tensor/kernels.h"  // sample, random_uniform

namespace llatte {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kLogitRows = 128;  // rows of logits that labels are drawn from at a time

// FNV-1a over 64-bit words; `bytes` is padded with zeros.
uint64_t fingerprint(const void* data, size_t bytes, uint64_t h = 14695981039346656037ull) {
  const char* p = static_cast<const char*>(data);
  for (size_t i = 0; i < bytes; i += 8) {
    uint64_t word = 0;
    std::memcpy(&word, p + i, std::min<size_t>(8, bytes - i));
    h = (h ^ word) * 1099511628211ull;
  }
  return h;
}

// Weights and what else the numbers depend on.
std::string fingerprint(Llama& model) {
  const LlamaConfig& c = model.config();
  const std::string shape = str(c.num_attention_heads, ' ', c.num_key_value_heads, ' ', c.rms_norm_eps);
  const std::vector<double> frequencies = rope_frequencies(c);
  uint64_t h = fingerprint(shape.data(), shape.size());
  h = fingerprint(frequencies.data(), frequencies.size() * sizeof(double), h);
  model.params("", [&](const std::string&, Var& p) {
    const Tensor w = p.value.to(Device::cpu);
    h = fingerprint(w.raw(), w.bytes(), h);
  });
  return std::to_string(h);
}

// While one lives, the only parameter that wants a gradient is the first norm's weight, one vector, which is
// before every attention layer: a backward pass reaches all layers and makes no other weight's gradient.
class OneLeaf {
 public:
  explicit OneLeaf(Llama& model) : model_(model) {
    model.params("", [&](const std::string& name, Var& p) {
      nodes_.push_back(p.node);
      p = name == "model.layers.0.input_layernorm.weight" ? leaf(p.value) : constant(p.value);
    });
  }
  ~OneLeaf() {
    size_t i = 0;
    model_.params("", [&](const std::string&, Var& p) { p.node = nodes_[i++]; });
  }
  OneLeaf(const OneLeaf&) = delete;

 private:
  Llama& model_;
  std::vector<std::shared_ptr<Node>> nodes_;
};

// While one lives, the model's attention layers report to `probe`.
class Probing {
 public:
  Probing(Llama& model, AttentionProbe& probe) : model_(model) { model.set_probe(&probe); }
  ~Probing() { model_.set_probe(nullptr); }
  Probing(const Probing&) = delete;

 private:
  Llama& model_;
};

// One label per position, drawn from softmax(logits) at u = element `position` of stream `window`.
Tensor sampled_labels(Llama& model, const Tensor& hidden_TD, uint64_t seed, uint64_t window) {
  const NoGrad off;
  const int64_t T = hidden_TD.size(0);
  Tensor u_T = Tensor::empty({T}, acc_dtype(model.dtype()), model.device());
  Tensor labels_T = Tensor::empty({T}, DType::i32, model.device());
  kernels::random_uniform(seed, window, u_T);
  for (int64_t t = 0; t < T; t += kLogitRows) {
    const int64_t end = std::min(T, t + kLogitRows);
    const Tensor logits_NV = model.logits(constant(hidden_TD.slice(0, t, end))).value.to(u_T.dtype());
    Tensor labels_N = labels_T.slice(0, t, end);
    kernels::sample(logits_NV, u_T.slice(0, t, end), SampleRule(), labels_N);
  }
  return labels_T;
}

// A (1,T,heads,E) activation as (T,heads,E), in the type sums are taken in.
Tensor of_window(const Tensor& x) {
  return x.to(acc_dtype(x.dtype())).contiguous().reshape({x.size(1), x.size(2), x.size(3)});
}

}  // namespace

// The sums, and what the attention layers add to them.
struct Calibration::Impl final : AttentionProbe {
  Impl(Llama& m, const Tensor& tokens, const CalibrationSettings& s, Comm* c)
      : model(m),
        settings(s),
        comm(c),
        tokens_NT(tokens),
        weights(fingerprint(m)),
        q_LHP(Tensor::zeros({layers(), m.config().num_attention_heads, pairs()}, DType::f64)),
        k_LKP(Tensor::zeros({layers(), m.config().num_key_value_heads, pairs()}, DType::f64)) {
    const LlamaConfig& shape = m.config();
    if (!s.covariance) return;
    moments.emplace(layers(), shape.hidden_size, shape.num_key_value_heads * shape.head_dim,
                    shape.num_attention_heads * shape.head_dim, acc(), m.device());
    rope = make_rope_table(rope_frequencies(shape), tokens.size(1), acc(), m.device());
  }

  int64_t layers() const { return model.config().num_hidden_layers; }
  int64_t pairs() const { return model.config().head_dim / 2; }
  DType acc() const { return acc_dtype(model.dtype()); }
  int64_t gradient_windows() const { return std::min(tokens_NT.size(0), settings.gradient_windows); }

  // Called by each attention layer. Where there is a tape, the backward pass hands the gradient at the heads'
  // outputs to the same layer's sums on its way.
  Var attention(int64_t layer, const Var& x_BTD, const Var& q_BTHE, const Var& k_BTKE, const Var& v_BTKE,
                const Var& o_BTHE) override {
    Tensor q = layer_of(q_LHP, layer), k = layer_of(k_LKP, layer);
    add_pair_norms(q_BTHE.value, q);
    add_pair_norms(k_BTKE.value, k);
    if (!moments) return o_BTHE;
    const Tensor x_TD = x_BTD.value.to(acc()).contiguous().reshape({x_BTD.size(1), x_BTD.size(2)});
    moments->add_inputs(layer, x_TD);
    return record(
        "observe", o_BTHE.value, {o_BTHE},
        [this, layer, x_TD, q_BTHE = q_BTHE.value, k_BTKE = k_BTKE.value,
         v_BTKE = v_BTKE.value](const Tensor& do_BTHE) -> Grads {
          const HeadInputs in{of_window(q_BTHE), of_window(k_BTKE), of_window(v_BTKE), of_window(do_BTHE)};
          const HeadGradients g = head_gradients(in, rope);
          moments->add_gradients(layer, x_TD, g);
          return {do_BTHE};
        });
  }

  // The loss is summed over the tokens of the window, each with a label drawn from the model's own softmax.
  void run_backward(const Tensor& tokens_1T, int64_t window) {
    const OneLeaf only(model);
    const int64_t T = tokens_1T.size(1);
    const Var hidden_TD = reshape(model.hidden(tokens_1T), {T, model.config().hidden_size});
    const Tensor labels_T =
        sampled_labels(model, hidden_TD.value, settings.seed, static_cast<uint64_t>(window));
    const Var mean = linear_cross_entropy(hidden_TD, model.head_weight(), labels_T);
    backward(mean, Tensor::full(mean.shape(), static_cast<double>(T), mean.value.dtype(), model.device()));
  }

  void run_window(int64_t window) {
    const Probing probing(model, *this);
    const Tensor tokens_1T = tokens_NT.slice(0, window, window + 1);
    if (moments && window < gradient_windows()) return run_backward(tokens_1T, window);
    const NoGrad off;
    model.hidden(tokens_1T);
  }

  // Rank r's next window is the r-th of those that are not done.
  void run_windows() {
    const int64_t N = tokens_NT.size(0), mine = done + (comm ? comm->rank() : 0);
    if (mine < N) run_window(mine);
    done = std::min(N, done + (comm ? comm->size() : 1));
  }

  bool speaks() const { return !comm || comm->rank() == 0; }

  // A sum over all ranks; of one, t itself.
  Tensor total(const Tensor& t) const {
    if (!comm || comm->size() == 1) return t;
    Tensor sum = t.device() == Device::cpu ? t.clone() : t.to(Device::cpu);
    comm->all_reduce_sum(sum);
    return sum;
  }

  static Tensor layer_of(const Tensor& x_LHP, int64_t layer) {
    return x_LHP.slice(0, layer, layer + 1).reshape({x_LHP.size(1), x_LHP.size(2)});
  }

  // Every sum by its name.
  void each(const std::function<void(const std::string&, Tensor&)>& f) {
    f("q_norms", q_LHP), f("k_norms", k_LKP);
    if (moments) moments->each(f);
  }

  // What a partial file must have been made with to be gone on with.
  std::map<std::string, std::string> origin() const {
    return {{"model", weights},
            {"data", std::to_string(fingerprint(tokens_NT.raw(), tokens_NT.bytes()))},
            {"settings",
             str("dtype ", name(model.dtype()), ", windows ", tokens_NT.shape(), ", covariance ",
                 settings.covariance, ", gradient windows ", gradient_windows(), ", seed ", settings.seed)}};
  }

  Llama& model;
  CalibrationSettings settings;
  Comm* comm;  // null: one rank
  Tensor tokens_NT;
  std::string weights;  // their fingerprint
  int64_t done = 0;
  Tensor q_LHP, k_LKP;  // sums of norms, f64
  std::optional<MomentSums> moments;
  RopeTable rope;
};

namespace {

void check(const Llama& model, const Tensor& tokens_NT, const CalibrationSettings& s) {
  LLATTE_CHECK(!model.config().mla && !model.config().hla,
               "calibrate: this model's attention was converted already; calibrate ",
               "the model it was made from");
  LLATTE_CHECK(tokens_NT.ndim() == 2 && tokens_NT.dtype() == DType::i32 && tokens_NT.numel() > 0,
               "calibrate: tokens must be i32 (N,T) with at least one window, got ", name(tokens_NT.dtype()),
               ' ', tokens_NT.shape());
  LLATTE_CHECK(!s.covariance || tokens_NT.size(1) > 1,
               "calibrate: windows of one token have no gradients of keys; use 2 tokens or more");
  LLATTE_CHECK(!s.covariance || s.gradient_windows > 0,
               "calibrate: covariances need at least one window for gradients, got ", s.gradient_windows);
}

}  // namespace

Calibration::Calibration(Llama& model, const Tensor& tokens_NT, const CalibrationSettings& settings,
                         Comm* comm) {
  check(model, tokens_NT, settings);
  impl_ = std::make_unique<Impl>(model, tokens_NT.contiguous(), settings, comm);
}
Calibration::~Calibration() = default;

int64_t Calibration::windows() const { return impl_->tokens_NT.size(0); }
int64_t Calibration::done() const { return impl_->done; }

void Calibration::add_window() {
  LLATTE_CHECK(done() < windows(), "calibrate: all ", windows(), " windows are done");
  impl_->run_windows();
}

void Calibration::save_partial(const fs::path& file) const {
  std::vector<std::pair<std::string, Tensor>> sums{
      {"done", Tensor::full({}, static_cast<double>(done()), DType::i32)}};
  impl_->each([&](const std::string& name, Tensor& t) { sums.emplace_back(name, impl_->total(t)); });
  if (impl_->speaks()) write_safetensors(file, sums, impl_->origin());
}

void Calibration::resume(const fs::path& file) {
  const SafetensorsFile partial = SafetensorsFile::open(file);
  for (const auto& [what, want] : impl_->origin()) {
    const auto it = partial.metadata().find(what);
    const std::string got = it == partial.metadata().end() ? "none" : it->second;
    LLATTE_CHECK(got == want, file.string(), " was made with other ", what == "model" ? "weights" : what,
                 what == "settings" ? " (" + got + "; now " + want + ")" : "",
                 ": remove it to start anew, or write to another file");
  }
  const auto windows_done = static_cast<int64_t>(partial.read("done", DType::i32).item());
  LLATTE_CHECK(0 <= windows_done && windows_done <= windows(), file.string(), ": ", windows_done,
               " windows are said to be done, of ", windows(), "; remove the file");
  impl_->each([&](const std::string& name, Tensor& t) {
    const Tensor sum = partial.read(name, t.dtype());
    LLATTE_CHECK(sum.shape() == t.shape(), file.string(), ": ", name, " is ", sum.shape(), ", expected ",
                 t.shape(), "; remove the file");
    if (impl_->speaks()) t.copy_from(sum);  // it is in the total once
  });
  impl_->done = windows_done;
}

void Calibration::write(const fs::path& file, ScoreKind kind) const {
  LLATTE_CHECK(done() == windows(), "calibrate: only ", done(), " of ", windows(), " windows are done");
  Impl& i = *impl_;
  i.each([&](const std::string&, Tensor& t) { t = i.total(t).to(t.device()); });
  if (!i.speaks()) return;
  const int64_t T = i.tokens_NT.size(1), tokens = windows() * T;
  const Tensor scores_LKP = two_norm_scores(i.q_LHP, i.k_LKP, tokens, kind);
  std::vector<TensorSource> out{{"tokens", DType::i32, i.tokens_NT.shape(), [&] { return i.tokens_NT; }},
                                {"scores", DType::f32, scores_LKP.shape(), [&] { return scores_LKP; }}};
  for (const std::string& name : MomentSums::results()) {
    if (!i.moments) break;
    out.push_back(
        {name, DType::f32, i.moments->shape(name), [&i, name, tokens, rows = i.gradient_windows() * (T - 1)] {
           return i.moments->result(name, tokens, rows);
         }});
  }
  const RawTensor rank{"rank", "U8", scores_LKP.shape(), descending_ranks(scores_LKP)};
  write_safetensors(file, out, {{"score", kind == ScoreKind::product ? "product" : "sum"}}, "pt", {rank});
}

}  // namespace llatte
