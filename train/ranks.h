// What the ranks of a run tell one another besides gradients (optim/ddp.h). All ranks call these alike; with
// one rank they do nothing.
#pragma once
#include <vector>
#include "models/llama.h"
#include "tensor/comm.h"

namespace llatte {

// Rank 0's weights in the parameters of all.
void share_weights(Llama& model, Comm& comm);
// Throws, naming a rank, unless the weights of all are the same to the last bit.
void check_same_weights(Llama& model, Comm& comm);

}  // namespace llatte
