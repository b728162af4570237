// Gradients of the loss for the keys and values of one layer, from the gradient at the output of each head:
// what a backward pass would give, and two things it would not, so the [T,T] matrices are made, one head at
// a time. With p = the head's attention probabilities, do = the gradient at its output, R_t = RoPE at t:
//   dp(s,t) = do(s) . v(t)          dS_w(s,t) = w (dp - sum_t' w dp) / sqrt(E)
//   g_k(t) = R_-t sum_h sum_s dS(s,t) R_s q_h(s)    for a key that is rotated (before RoPE)
//   g_2(t) = sum_h sum_s dS(s,t) q_h(s)             for an addition to the key that is not rotated
//   g_v(t) = sum_h sum_s p(s,t) do_h(s)
//   g_q(s)[h] = R_-s sum_t dS(s,t) R_t k(t)         for a query, before RoPE
// summed over the query heads h of a kv head (g_q: of each); w = p, or w = pm = p/2 + 1/(2(s+1)), which also
// feels tokens that get no attention now and might once keys have changed.
//   T tokens  H query heads  K kv heads  E head width
#pragma once
#include "nn/attention.h"

namespace llatte {

// q and k before RoPE; all of one window, f32 or f64.
struct HeadInputs {
  Tensor q_THE, k_TKE, v_TKE, do_THE;
};
// Z = [g_k | g_2 | g_v], each K E numbers, kv head by kv head; `mixed` has pm in g_k and g_2. g_q has p.
struct HeadGradients {
  Tensor plain_T3n, mixed_T3n, q_THE;
};
HeadGradients head_gradients(const HeadInputs& in, const RopeTable& rope);

}  // namespace llatte
