// exp and log of the type at hand, for kernels that are templates: f32 stays f32 (at most 2 ulp off, no
// fast-math variants, which would lose digits of the losses). Private to tensor/cuda.
#pragma once
#include <cmath>
#include "tensor/cuda/launch.h"

namespace llatte::cuda {

__device__ inline float exp_of(float x) { return expf(x); }
__device__ inline double exp_of(double x) { return exp(x); }
__device__ inline float log_of(float x) { return logf(x); }
__device__ inline double log_of(double x) { return log(x); }

}  // namespace llatte::cuda
