// What the ranks of a run tell one another besides gradients (optim/ddp.h). All ranks call these alike; with
// one rank they do nothing.
#pragma once
#include <vector>
#include "models/llama.h"
#include "tensor/comm.h"

namespace llatte {

// The numbers of every rank, in the order of ranks: what is added up from these is the same on all of them.
std::vector<std::vector<double>> of_all_ranks(const std::vector<double>& mine, Comm& comm);
bool any_rank(bool mine, Comm& comm);
// Rank 0's weights in the parameters of all.
void share_weights(Llama& model, Comm& comm);
// Throws, naming a rank, unless the weights of all are the same to the last bit.
void check_same_weights(Llama& model, Comm& comm);
// Calls f on rank 0, and when that is done on the others: what it writes, they find.
template <class F>
void rank_0_first(Comm& comm, const F& f) {
  if (comm.rank() == 0) f();
  comm.barrier();
  if (comm.rank() > 0) f();
}

}  // namespace llatte
