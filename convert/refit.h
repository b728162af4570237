// After conversion the heads put out something else than o_proj was trained on. The best o_proj for what they
// put out now is a linear least-squares problem per layer, solved in turn, each on the stream that the layers
// before it leave.
#pragma once
#include <vector>
#include "models/checkpoint.h"

namespace llatte {

// New o_proj weights f32 [L] x [D,HE] of `converted`, whose attention is ordinary (mla.h, lifted), from the
// first 64 windows of tokens i32 [N,T]. With a the heads' outputs of the converted model, and t = (attention
// output of the original) + x_original - x_converted, what would put the stream right again:
//   W_o := ((E[a a^T] + rho I)^-1 (E[a t^T] + rho W_o^T))^T
// with rho = 1e-2 of the mean diagonal of E[a a^T]. E weighs each token by 1 / mean_D(h^2), h the original
// stream behind the attention: errors count as the next norm sees them. The models run on `device`; the
// systems are solved on the host. The tokens of the first 4 windows are seen alone too, each as the first of
// a text: there is one such token in a window, and all others rely on it (it sees itself alone, later layers
// blow its stream up a hundredfold, and heads attend to it when there is nothing to attend to). Left to a
// window's average, o_proj of the first layer becomes one with which that no longer happens after some first
// tokens, and their texts are lost.
std::vector<Tensor> refit_o(const Checkpoint& source, const Checkpoint& converted, const Tensor& tokens_NT,
                            Device device = Device::cpu);

}  // namespace llatte
