// What kernels (kernels.h) take besides tensors and numbers.
#pragma once
#include "tensor/tensor.h"

namespace llatte {

// A parameter and what its AdamW update needs. g, m, v, master: acc; master undefined: w itself is acc.
struct AdamWTensors {
  Tensor w, g, m, v, master;
  double weight_decay;
};
struct AdamWStep {
  double lr, beta1, beta2, eps;
  double clip_grad;  // largest 2-norm of all gradients; 0: any
  int64_t t;         // counts from 1: the bias correction is 1 - beta^t
};
// Rows of W numbers as a cache keeps them: floats, or codes with a scale for each group of columns.
struct CacheRows {
  int64_t W = 0;
  int bits = 0;  // 0: floats; else 8 or 4
  // f32, bf16 or f64 (B,S,W);  codes: i32 (B,S,ceil(W bits / 32)), packed as cpu/cache_rows.h says
  Tensor data;
  // Codes only: bf16 (B,S,G), and i32 [G+1]: group g is columns [groups[g], groups[g+1]).
  Tensor scales, groups;
};
struct SampleRule {
  double temperature = 1, top_p = 1, min_p = 0;
  int64_t top_k = 0;
};
struct DistillRule {
  double weight = 1;  // of kl; 1 - weight of the cross-entropy
  double temperature = 1;
};

}  // namespace llatte
