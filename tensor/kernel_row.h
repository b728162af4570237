// What a row of kernels.h is made of: LLATTE_KERNEL(foo, parameters) declares cpu::foo and cuda::foo, and
// defines kernels::foo, which sees that all tensors of a call are on one device and calls that device's twin.
#pragma once
#include "tensor/kernel_args.h"

namespace llatte::detail {
inline void agree(const char* op, const Tensor*& first, const Tensor& t) {
  if (!t.defined()) return;  // an optional argument left out
  if (!first) first = &t;
  LLATTE_CHECK(first->device() == t.device(), op, ": tensors on ", name(first->device()), " and ",
               name(t.device()));
}
template <class Other>
void agree(const char*, const Tensor*&, const Other&) {}  // scalars have no device
inline void agree(const char* op, const Tensor*& first, const AdamWTensors& t) {
  for (const Tensor* x : {&t.w, &t.g, &t.m, &t.v, &t.master}) agree(op, first, *x);
}
template <class T>
void agree(const char* op, const Tensor*& first, const std::vector<T>& list) {
  for (const T& t : list) agree(op, first, t);
}

template <class... Args>
Device common_device(const char* op, const Args&... args) {
  const Tensor* first = nullptr;
  (agree(op, first, args), ...);
  LLATTE_CHECK(first, op, ": kernel called without a tensor");
  return first->device();
}
}  // namespace llatte::detail

// Without CUDA the twins exist too, and refuse: no_cuda.cpp has this header define them.
#ifdef LLATTE_WITHOUT_CUDA
#define LLATTE_CUDA_TWIN(name, ...) \
  void name(__VA_ARGS__) { LLATTE_FAIL(#name ": this build has no CUDA (make CUDA=1)"); }
#else
#define LLATTE_CUDA_TWIN(name, ...) void name(__VA_ARGS__);
#endif

#define LLATTE_KERNEL(name, ...)                                     \
  namespace llatte::cpu {                                            \
  void name(__VA_ARGS__);                                            \
  }                                                                  \
  namespace llatte::cuda {                                           \
  LLATTE_CUDA_TWIN(name, __VA_ARGS__)                                \
  }                                                                  \
  namespace llatte::kernels {                                        \
  template <class... A>                                              \
  void name(A&&... a) {                                              \
    if (::llatte::detail::common_device(#name, a...) == Device::cpu) \
      return ::llatte::cpu::name(std::forward<A>(a)...);             \
    ::llatte::cuda::name(std::forward<A>(a)...);                     \
  }                                                                  \
  }
