// Every differentiable op, with its shapes. Each is defined in autograd/<op>.cpp over the kernels of the same
// name. Inputs may be strided views; a shape that does not fit is an Error naming the op and both shapes.
#pragma once
#include "autograd/var.h"

namespace llatte {

struct DistillRule;  // tensor/kernels.h

// ---- shapes: views where possible
Var reshape(const Var& x, const Shape& shape);                 // one entry may be -1
Var transpose(const Var& x, int a, int b);                     // a view
Var slice(const Var& x, int dim, int64_t begin, int64_t end);  // a view; backward pads with zeros
Var concat(const Var& a, const Var& b, int dim);
Var cast(const Var& x, DType t);
// y[.., m, ..] = x[.., index[m], ..] in dimension dim; zeros where index is -1. index i32 (M).
Var gather(const Var& x, int dim, const Tensor& index);

// ---- elementwise, same shape and dtype
Var add(const Var& a, const Var& b);
Var mul(const Var& a, const Var& b);
Var scale(const Var& x, double factor);

// c (..,M,N) = a (..,M,K) b (..,K,N), 2 or 3 dimensions.
Var matmul(const Var& a, const Var& b);
// y (..,O) = x (..,I) w_OI^T (+ b_O).
Var linear(const Var& x, const Var& w);
Var linear(const Var& x, const Var& w, const Var& b);

// y (..,D) = w_VD[ids (..)]. ids i32.
Var embedding(const Tensor& ids, const Var& w);
// y (..,D) = x (..,D) / rms(x) * w_D.  arXiv 1910.07467
Var rms_norm(const Var& x, const Var& w, double eps);
// x (B,T,H,2P) turned by position; see the kernel row. cos, sin: acc [S,F]; pos i32 [T] or [B,T]; pairs i32
// [H,P] or undefined.
Var rope(const Var& x, const Tensor& cos, const Tensor& sin, const Tensor& pos, const Tensor& pairs = {});
// o (B,T,H,F): causal attention of q (B,T,H,E) over k (B,S,K,E), v (B,S,K,F).  arXiv 2205.14135
Var attention(const Var& q, const Var& k, const Var& v, double scale);
// silu(gate) * up.  arXiv 2002.05202
Var swiglu(const Var& gate, const Var& up);
// Over the last dimension.
Var softmax(const Var& x);
// Mean of -log softmax(x_ND w_VD^T)[target_N] over the rows whose target is not ignore_index; acc, shape ().
// The gradient is made in the forward pass, chunk by chunk, while the logits exist. Targets may lie on the
// host whatever the device of x: there they are counted without waiting.
Var linear_cross_entropy(const Var& x, const Var& w, const Tensor& targets, int32_t ignore_index = -100);

// The same rows, learnt from a teacher too (arXiv 1503.02531): mean of weight * kl + (1 - weight) * ce with
// kl = temperature^2 KL(teacher || student), both softened by the temperature, and ce the cross-entropy.
// The teacher's x (..,D'), w (V,D') want no gradient. kl and ce: their means, acc, shape ().
struct DistillLoss {
  Var loss;
  Tensor kl, ce;
};
DistillLoss linear_distill(const Var& x, const Var& w, const Tensor& teacher_x, const Tensor& teacher_w,
                           const Tensor& targets, const DistillRule& rule, int32_t ignore_index = -100);

}  // namespace llatte
