// exp that vectorises. glibc's libmvec has vector versions of expf; g++ uses them in a `#pragma omp simd`
// loop once the declaration says that they exist, which <cmath> says only under -ffast-math. Values agree
// with expf to 4 ulp; infinities and NaN come out as from expf.
#pragma once
#include <cmath>

extern "C" {
#pragma omp declare simd notinbranch
float expf(float) noexcept;
#pragma omp declare simd notinbranch
double exp(double) noexcept;
}

namespace llatte::cpu {

inline float simd_exp(float x) { return ::expf(x); }
inline double simd_exp(double x) { return ::exp(x); }

}  // namespace llatte::cpu
