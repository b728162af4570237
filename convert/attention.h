// A trained grouped-query attention becomes latent attention, MLA (mla.h) or HLA (hla.h): a plan in, a
// Checkpoint out whose weights are computed layer by layer as they are read. All in f64; whoever reads
// rounds.
#pragma once
#include <map>
#include <memory>
#include <vector>
#include "convert/plan.h"

namespace llatte {

// What factoring lost in a layer, in the plan's metric: `error` of `total`.
struct LayerError {
  double error = 0, total = 0;
};

// `errors`, where given, is sized [L] and filled as layers are made. With refit_o, o_proj is fitted here and
// now, both models running on `device`.
Checkpoint convert_attention(const Checkpoint& source, const ConversionPlan& plan,
                             std::shared_ptr<std::vector<LayerError>> errors = nullptr,
                             Device device = Device::cpu);

// Weights of a layer's attention, f64, by their names in it: "W_k_r.weight".
using LayerWeights = std::map<std::string, Tensor>;
// One of them as it lies in a model: "W_k_r.weight" -> "model.layers.7.self_attn.W_k_r.weight".
std::string attention_name(int64_t layer, const std::string& name);
// `base` with another config, the weights of whose attention `make` computes; what it leaves out is read from
// `base`. The last layer asked for is kept.
Checkpoint with_attention(const Checkpoint& base, const LlamaConfig& config,
                          std::function<LayerWeights(int64_t layer)> make);
void put(LayerWeights& w, const std::string& name, const Tensor& a);  // but for what is undefined or empty

}  // namespace llatte
