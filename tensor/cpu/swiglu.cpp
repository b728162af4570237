// SwiGLU.  With s = sigmoid(g):  y = g s u,   du = dy g s,   dg = dy u s (1 + g (1 - s)).
#include "tensor/cpu/parallel.h"
#include "tensor/cpu/simd_math.h"
#include "tensor/kernels.h"

namespace llatte::cpu {

void swiglu_fwd(const Tensor& gate, const Tensor& up, Tensor& y) {
  dispatch_float(gate.dtype(), "swiglu", [&]<class T>() {
    using A = acc_t<T>;
    const T *pg = gate.data<T>(), *pu = up.data<T>();
    T* py = y.data<T>();
    for_each(y.numel(), [=](int64_t i) {
      const A g = A(pg[i]), u = A(pu[i]);
      py[i] = T(g / (1 + simd_exp(-g)) * u);
    });
  });
}

void swiglu_bwd(const Tensor& dy, const Tensor& gate, const Tensor& up, Tensor& dgate, Tensor& dup) {
  dispatch_float(gate.dtype(), "swiglu", [&]<class T>() {
    using A = acc_t<T>;
    const T *pdy = dy.data<T>(), *pg = gate.data<T>(), *pu = up.data<T>();
    T *pdg = dgate.data<T>(), *pdu = dup.data<T>();
    for_each(dy.numel(), [=](int64_t i) {
      const A g = A(pg[i]), u = A(pu[i]), d = A(pdy[i]), s = 1 / (1 + simd_exp(-g));
      pdu[i] = T(d * g * s);
      pdg[i] = T(d * u * s * (1 + g * (1 - s)));
    });
  });
}

}  // namespace llatte::cpu
