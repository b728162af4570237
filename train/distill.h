// Healing with a teacher: the model learns the next-token distribution of the original beside, or instead of,
// the text itself.  arXiv 1503.02531
//   loss = weight * temperature^2 KL(teacher || student) + (1 - weight) * cross-entropy
// both distributions of the KL softened by the temperature; the factor keeps its gradient as large as the
// cross-entropy's, whatever the temperature.
#pragma once
#include "autograd/ops.h"
#include "models/checkpoint.h"
#include "train/config.h"

namespace llatte {

// The mean over the targets i32 [B,T] that are not -100. The teacher keeps no tape; [B*T,V] logits of neither
// model are ever held.
DistillLoss distill_loss(Llama& student, Llama& teacher, const Tensor& tokens_BT, const Tensor& targets_BT,
                         const DistillRule& rule);

Checkpoint open_teacher(const Distill& d, const std::function<void(const std::string&)>& say);

// A teacher must know the student's vocabulary and T positions; `where` names it in the error.
void check_teacher(const LlamaConfig& student, const LlamaConfig& teacher, int64_t T,
                   const std::string& where);

}  // namespace llatte
