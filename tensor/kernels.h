// The table of contents of all device code: one row per kernel.
//
// A row promises two functions and makes a third:
//   cpu::foo      defined in tensor/cpu/<op>.cpp
//   cuda::foo     defined in tensor/cuda/<op>.cu   (forget it and the CUDA link fails by name)
//   kernels::foo  checks that all tensors share a device, then calls one of the two
//
// Contract of every kernel: tensors are contiguous unless the row says "strided"; outputs are allocated by
// the caller and overwritten; shapes were checked by the op above. `float` means f32, bf16 or f64, the same
// for all tensors of a call unless stated; sums over bf16 are taken in f32. "acc" is acc_dtype(x.dtype()):
// f32 for f32 and bf16, f64 for f64.
#pragma once
#include "tensor/kernel_row.h"

// clang-format off
// ---- moving numbers -------------------------------------------------------------------------------------- copy.cpp
// y := x, converted to y's dtype. Strided on both sides, any dtypes.
LLATTE_KERNEL(copy, const Tensor& x, Tensor& y)
LLATTE_KERNEL(fill, Tensor& y, double value)

// ---- elementwise, any shape; y may be one of the inputs ------------------------------------------- elementwise.cpp
LLATTE_KERNEL(add, const Tensor& a, const Tensor& b, Tensor& y)
LLATTE_KERNEL(mul, const Tensor& a, const Tensor& b, Tensor& y)
LLATTE_KERNEL(scale, const Tensor& x, double factor, Tensor& y)
// y *= factor[0]; factor is f32 or f64 [1] and stays on the device.
LLATTE_KERNEL(scale_by, const Tensor& factor, Tensor& y)
// sum += x, where sum may be wider (x bf16, sum f32).
LLATTE_KERNEL(accumulate, const Tensor& x, Tensor& sum)
// y_ND = x_ND + b_D;  sum_D (acc) = sum over N of x_ND.
LLATTE_KERNEL(add_bias, const Tensor& x, const Tensor& b, Tensor& y)
LLATTE_KERNEL(sum_rows, const Tensor& x, Tensor& sum)

// ---- matrix product ------------------------------------------------------------------------------------ matmul.cpp
// c := a b + beta c, beta 0 or 1.  a (..,M,K), b (..,K,N), c (..,M,N); ndim 2 or 3, a batch of 1 broadcasts.
// Strided: a, b, c may be views whose last two dimensions are row- or column-major (so a transpose() costs nothing).
// a and b share a dtype; c has it too, or is acc (bf16 products into f32).
LLATTE_KERNEL(matmul, const Tensor& a, const Tensor& b, Tensor& c, double beta)

// ---- embedding -------------------------------------------------------------------------------------- embedding.cpp
// y_ND = w_VD[ids_N];  dw_VD (acc) = sum of dy_ND over the positions of each id, in ascending order of position.
// An id outside [0,V) is an error that names it.
LLATTE_KERNEL(embedding_fwd, const Tensor& ids, const Tensor& w, Tensor& y)
LLATTE_KERNEL(embedding_bwd, const Tensor& dy, const Tensor& ids, Tensor& dw)

// ---- gather -------------------------------------------------------------------------------------------- gather.cpp
// y_NMI = x_NCI[:, index_M, :], zeros where index is -1;  dx_NCI (acc) = sum of dy_NMI over the m that picked c, ascending.
// index: i32; one outside [-1,C) is an error that names it.
LLATTE_KERNEL(gather_fwd, const Tensor& x, const Tensor& index, Tensor& y)
LLATTE_KERNEL(gather_bwd, const Tensor& dy, const Tensor& index, Tensor& dx)

// ---- RMSNorm ----------------------------------------------------------------------------------------- rms_norm.cpp
// y_ND = x_ND * r_N * w_D, r = 1/sqrt(mean_D(x^2) + eps) (acc), saved for the backward.  arXiv 1910.07467
LLATTE_KERNEL(rms_norm_fwd, const Tensor& x, const Tensor& w, double eps, Tensor& y, Tensor& r)
LLATTE_KERNEL(rms_norm_bwd, const Tensor& dy, const Tensor& x, const Tensor& w, const Tensor& r, Tensor& dx, Tensor& dw /*acc*/)

// ---- RoPE ------------------------------------------------------------------------------------------------ rope.cpp
// Rotates pair p, dims (p, p + P), of every head by the angle of (position, frequency): x, y (N,H,2P).
// cos, sin: acc [S,F], row = position, column = frequency; pos: i32 [N], in [0,S).
// pairs: i32 [H,P], the column that pair p of head h turns with, -1: not rotated; undefined: column p for every head.
// inverse: by the opposite angle, which is also the backward. y may be x.  arXiv 2104.09864, half-split layout
LLATTE_KERNEL(rope, const Tensor& x, const Tensor& cos, const Tensor& sin, const Tensor& pos, const Tensor& pairs, bool inverse, Tensor& y)

// ---- attention -------------------------------------------------------------------------------------- attention.cpp
// Causal softmax attention with grouped heads, tiled with an online softmax (arXiv 2205.14135): no [T,S] tensor.
// q (B,T,H,E), k (B,S,K,E), v (B,S,K,F), o (B,T,H,F), lse acc [B,H,T]; query t sees keys s <= t + (S - T).
// k and v may be strided in dimension 0 and 1 (a cache); H is a multiple of K.
LLATTE_KERNEL(attention_fwd, const Tensor& q, const Tensor& k, const Tensor& v, double scale, Tensor& o, Tensor& lse)
LLATTE_KERNEL(attention_bwd, const Tensor& dout, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& o, const Tensor& lse,
              double scale, Tensor& dq, Tensor& dk, Tensor& dv)

// ---- rows of a cache ------------------------------------------------------------------------------- cache_rows.cpp
// Rows [at, at + T) := x (B,T,W);  y (B,n,W) := rows [0,n). Codes: x ~= scale code, -m-1 <= code <= m = 2^(bits-1) - 1, |scale| <=
// max|x| / m of the group, so an error of max|x| / 2m at most (and 2^-8 of that, for the scale is bf16). A group that is not finite reads as NaN.
LLATTE_KERNEL(write_rows, const Tensor& x, int64_t at, CacheRows& rows)
LLATTE_KERNEL(read_rows, const CacheRows& rows, Tensor& y)
// Decoding with latents: o_h = sum_s softmax_s(scale q_h . row_s[0, Wk)) row_s[v0, v0 + F), one stream of rows for all heads.
// q (B,T,H,Wk), rows (B,S,W) of which the first S tokens are read, o (B,T,H,F); query t sees rows s <= t + (S - T).
LLATTE_KERNEL(latent_attention, const Tensor& q, const CacheRows& rows, int64_t S, double scale, int64_t v0, Tensor& o)

// ---- SwiGLU -------------------------------------------------------------------------------------------- swiglu.cpp
// y = silu(gate) * up, silu(z) = z / (1 + exp(-z)).  arXiv 2002.05202
LLATTE_KERNEL(swiglu_fwd, const Tensor& gate, const Tensor& up, Tensor& y)
LLATTE_KERNEL(swiglu_bwd, const Tensor& dy, const Tensor& gate, const Tensor& up, Tensor& dgate, Tensor& dup)

// ---- softmax ------------------------------------------------------------------------------------------ softmax.cpp
// Over the last dimension.
LLATTE_KERNEL(softmax_fwd, const Tensor& x, Tensor& y)
LLATTE_KERNEL(softmax_bwd, const Tensor& dy, const Tensor& y, Tensor& dx)

// ---- one head's attention as a matrix, for calibration ------------------------------------------ causal_softmax.cpp
// f32, f64. Row s of p_TT = softmax over t <= s of scale * z_TT, 0 beyond; p may be z.
// dz_st = w (dp - sum_t w dp) * scale with w = (1 - mix) p + mix / (s + 1), 0 beyond; mix 0: the gradient of z.
LLATTE_KERNEL(causal_softmax_fwd, const Tensor& z, double scale, Tensor& p)
LLATTE_KERNEL(causal_softmax_bwd, const Tensor& dp, const Tensor& p, double scale, double mix, Tensor& dz)

// ---- loss ------------------------------------------------------------------------------- linear_cross_entropy.cpp
// losses_N (acc) = -log softmax(x_ND w_VD^T)[target_N], 0 where target == ignore_index. Logits exist for a chunk of rows
// at a time only. If dx is defined: dx_ND, and if dw is: dw_VD (acc), of the MEAN loss over the rows not ignored.
LLATTE_KERNEL(linear_cross_entropy, const Tensor& x, const Tensor& w, const Tensor& targets, int32_t ignore_index, Tensor& losses,
              Tensor& dx, Tensor& dw)
// For each row kl = tau^2 sum_v p log(p / q) and ce = -log softmax(z)[target], p and q the softmax of u / tau and z / tau,
// z = x_ND w_VD^T, u = teacher_x_NC teacher_w_VC^T; 0 where target == ignore_index. dx, dw: as above, of the mean of
// weight kl + (1 - weight) ce.  arXiv 1503.02531                                                    linear_distill.cpp
LLATTE_KERNEL(linear_distill, const Tensor& x, const Tensor& w, const Tensor& teacher_x, const Tensor& teacher_w, const Tensor& targets,
              int32_t ignore_index, const DistillRule& rule, Tensor& kl, Tensor& ce, Tensor& dx, Tensor& dw)

// ---- optimizer ------------------------------------------------------------------------------------------- adamw.cpp
// One AdamW step (arXiv 1711.05101) of every w, w := master, rounded. Gradients are first multiplied by
// min(1, clip_grad / (sqrt(sum_squares) + 1e-6)), sum_squares f64 [1]; one that is not finite changes nothing.
LLATTE_KERNEL(adamw, std::vector<AdamWTensors>& tensors, const Tensor& sum_squares, const AdamWStep& s)
// out (f64 [1]) = sum of squares over all x, fixed order.
LLATTE_KERNEL(sum_squares, const std::vector<Tensor>& x, Tensor& out)

// ---- dense linear algebra, f64, row-major, for the conversion of weights --------------------------------- linalg.cpp
// LAPACK and cuSOLVER as they are; signs, order and finiteness are tensor/linalg.h's. These wait for the device.
// Upper triangles are read; `a` is overwritten. A method that does not finish is an error.
// a_MN = u_MP diag(s_P) vt_PN, P = min(M,N), s descending.
LLATTE_KERNEL(svd, Tensor& a, Tensor& u, Tensor& s, Tensor& vt)
// values_N ascending; a_NN := its eigenvectors, in columns, if vectors (re_NN + i im_NN: always).
LLATTE_KERNEL(eigh, Tensor& a, bool vectors, Tensor& values)
LLATTE_KERNEL(eigh_complex, Tensor& re, Tensor& im, Tensor& values)
// a_MN = q_MN r_NN, M >= N: a := q; r upper triangular, zeros below.
LLATTE_KERNEL(qr, Tensor& a, Tensor& r)
// x_NM := inverse of a_NN times x; a symmetric positive definite (Cholesky).
LLATTE_KERNEL(solve_spd, Tensor& a, Tensor& x)

// ---- random numbers --------------------------------------------------------------------------------------- random.cpp
// Philox4x32-10: element i of stream `stream` under `seed` is the same on every device and thread count.
LLATTE_KERNEL(random_normal, uint64_t seed, uint64_t stream, double mean, double std, Tensor& y)
LLATTE_KERNEL(random_uniform, uint64_t seed, uint64_t stream, Tensor& y)  // in [0,1)

// ---- sampling ------------------------------------------------------------------------------------------- sample.cpp
// ids_N (i32) from logits_NV (acc): temperature 0 = argmax (lowest id on a tie); else keep the top_k (0: all), then the
// smallest set with probability >= top_p, then those with p >= min_p * p_max; pick by inverse CDF, ids ascending, at u_N (acc, [0,1)).
LLATTE_KERNEL(sample, const Tensor& logits, const Tensor& u, const SampleRule& rule, Tensor& ids)
// For each id of ids_N (i32, all different) its logit z of logits_V (acc) becomes z / penalty if positive, else z * penalty.
LLATTE_KERNEL(repetition_penalty, const Tensor& ids, double penalty, Tensor& logits)
// clang-format on
