// What vectorised loops need: exp, and a store that rounds.
//
// glibc keeps vector versions of the mathematical functions in libmvec (at most 4
// ulp off), but tells the compiler of them only under -ffast-math, which would also let it assume that there
// are no NaNs. So the declarations are repeated here with the pragma that says "a vector version exists": in
// a simd loop, expf becomes _ZGVeN16v_expf with AVX-512, _ZGVdN8v_expf with AVX2. NaN and infinity come
// through: exp(NaN) = NaN, exp(inf) = inf, exp(-inf) = 0. Elsewhere the scalar functions do the work.
#pragma once
#include <cmath>
#include "tensor/dtype.h"

#if defined(__x86_64__) && defined(__GLIBC__)
extern "C" {
#pragma omp declare simd notinbranch
float expf(float) noexcept;
#pragma omp declare simd notinbranch
double exp(double) noexcept;
}
#endif

namespace llatte::cpu {

inline float simd_exp(float x) { return ::expf(x); }
inline double simd_exp(double x) { return ::exp(x); }

// *y = T(v). As a function, because a bf16 temporary in the body of a simd loop keeps g++ 12 from vectorising
// it.
template <class T>
inline void store(T* y, acc_t<T> v) {
  *y = T(v);
}

}  // namespace llatte::cpu
