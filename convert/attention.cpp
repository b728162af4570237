// The Checkpoint around converted layers, whatever they become.
#include "convert/attention.h"
#include "convert/fisher.h"
#include "convert/hla.h"
#include "convert/mla.h"
#include "convert/refit.h"
#include "convert/unified.h"

namespace llatte {
namespace {

// `model.layers.7.self_attn.W_up_k.weight` -> (7, "W_up_k.weight"); (-1, "") for what is not in an attention.
std::pair<int64_t, std::string> place_of(const std::string& name) {
  const std::string head = "model.layers.", middle = ".self_attn.";
  const size_t at = name.find(middle);
  if (!name.starts_with(head) || at == std::string::npos) return {-1, ""};
  return {std::stoll(name.substr(head.size(), at - head.size())), name.substr(at + middle.size())};
}

// Weights as they would lie on disk, in the source's own width.
std::vector<std::pair<std::string, WeightInfo>> weights_of(const LlamaConfig& c, DType t) {
  std::vector<std::pair<std::string, WeightInfo>> all;
  for (const auto& [name, shape] : param_shapes(c))
    all.push_back(
        {name,
         {t == DType::bf16 ? "BF16" : "F32", shape, numel_of(shape) * static_cast<int64_t>(size_of(t))}});
  return all;
}

// `checkpoint` with the o_proj weights [L].
Checkpoint with_outputs(const Checkpoint& checkpoint, const std::vector<Tensor>& outputs) {
  Checkpoint c = checkpoint;
  c.read = [read = checkpoint.read, outputs](const std::string& name, DType t) {
    const auto [layer, part] = place_of(name);
    return part == "o_proj.weight" ? outputs[static_cast<size_t>(layer)].to(t).clone() : read(name, t);
  };
  return c;
}

LayerWeights layer_weights(const Checkpoint& source, const ConversionPlan& plan, int64_t l,
                           LayerError& error) {
  if (!plan.config.hla) return mla_weights(source, plan, l, error);
  if (plan.config.hla->rope == HlaRope::unified) return unified_weights(source, plan, l, error);
  return hla_weights(source, plan, l, error);
}

}  // namespace

std::string attention_name(int64_t layer, const std::string& name) {
  return str("model.layers.", layer, ".self_attn.", name);
}

void put(LayerWeights& w, const std::string& name, const Tensor& a) {
  if (a.defined() && a.numel() > 0) w[name] = a;
}

Checkpoint with_attention(const Checkpoint& base, const LlamaConfig& config,
                          std::function<LayerWeights(int64_t layer)> make) {
  struct Last {
    int64_t layer = -1;
    LayerWeights weights;
  };
  Checkpoint c = base;
  c.config = config, c.weights = weights_of(config, base.dtype());
  c.read = [read = base.read, make = std::move(make), last = std::make_shared<Last>()](
               const std::string& name, DType t) {
    const auto [layer, part] = place_of(name);
    if (layer < 0) return read(name, t);
    if (layer != last->layer) last->weights = make(layer), last->layer = layer;
    const auto found = last->weights.find(part);
    return found == last->weights.end() ? read(name, t) : found->second.to(t).clone();
  };
  return c;
}

Checkpoint convert_attention(const Checkpoint& source, const ConversionPlan& plan,
                             std::shared_ptr<std::vector<LayerError>> errors, Device device) {
  if (errors) errors->assign(static_cast<size_t>(plan.config.num_hidden_layers), {});
  const Checkpoint result = with_attention(source, plan.config, [=](int64_t l) {
    LayerError error;
    LayerWeights w = layer_weights(source, plan, l, error);
    if (errors) errors->at(static_cast<size_t>(l)) = error;
    return w;
  });
  if (!plan.settings.refit_o) return result;
  const CalibrationFile statistics(plan.settings.calibration, source.config);
  return with_outputs(
      result, refit_o(source, plan.config.hla ? result : lifted(result), statistics.tokens(), device));
}

}  // namespace llatte
