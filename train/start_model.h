// The model a run begins with: made from nothing, or loaded from start weights, whose attention is converted
// first where the config asks for latent attention (RoPE, SVD, HLA) and they have none.
#pragma once
#include <memory>
#include "models/checkpoint.h"
#include "train/config.h"

namespace llatte {

// Whether start weights of this config are converted.
bool converts(const TrainConfig& c, const LlamaConfig& start);
// What is trained, when it starts from weights of this config. Pairs that keep RoPE need not be known, planes
// are dealt out evenly over them.
LlamaConfig trained_config(const TrainConfig& c, const LlamaConfig& start);

// c.model, weights N(0, init_std).
std::unique_ptr<Llama> new_model(const TrainConfig& c);
// The start weights in c.dtype, converted where `converts` says so.
std::unique_ptr<Llama> start_model(const TrainConfig& c, const Checkpoint& start);

}  // namespace llatte
