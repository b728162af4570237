// What a config will cost, said before it is run: parameters, tokens, memory, learning rates. Pure
// arithmetic; no tensor is made.
#pragma once
#include <string>
#include "train/config.h"

namespace llatte {

struct TrainPlan {
  int64_t parameters = 0, trained_parameters = 0;
  int64_t tokens_per_step = 0, total_tokens = 0;
  // Bytes at the peak of a step. Gradients are f32 and all alive when the optimizer begins; activations are
  // what the tape keeps for the backward of one micro-batch.
  int64_t weight_bytes = 0, gradient_bytes = 0, optimizer_bytes = 0, activation_bytes = 0;
  int64_t teacher_bytes = 0;  // its weights
  int64_t total_bytes() const {
    return weight_bytes + gradient_bytes + optimizer_bytes + activation_bytes + teacher_bytes;
  }
};

// `teacher` is the config of the model that is learned from, null: there is none.
TrainPlan make_plan(const TrainConfig& c, const LlamaConfig& model, const LlamaConfig* teacher = nullptr);
std::string describe_plan(const TrainConfig& c, const LlamaConfig& model,
                          const LlamaConfig* teacher = nullptr);

}  // namespace llatte
