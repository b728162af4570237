// Tensors on the device under test: the CPU, or with LLATTE_TEST_DEVICE=cuda the GPU. A test that includes
// this header, or one of the *_case.h above it, is run on both (CMakeLists.txt).
#pragma once
#include <cstdlib>
#include <memory>
#include "tensor/cuda.h"
#include "tensor/tensor.h"

namespace llatte::test {

inline Device test_device() {
  static const Device device = [] {
    const char* set = std::getenv("LLATTE_TEST_DEVICE");
    const std::string word = set ? set : name(Device::cpu);
    LLATTE_CHECK(word == "cpu" || word == "cuda", "LLATTE_TEST_DEVICE is ", word, "; have cpu and cuda");
    LLATTE_CHECK(word == "cpu" || cuda::available(), "LLATTE_TEST_DEVICE=cuda: ", cuda::why_unavailable());
    return word == "cuda" ? Device::cuda : Device::cpu;
  }();
  return device;
}

// Of several ranks on one machine each takes a GPU of its own. Before the first tensor.
inline void take_gpu(int local_rank) {
  const char* set = std::getenv("LLATTE_TEST_DEVICE");
  if (set && std::string(set) == "cuda")
    setenv("CUDA_VISIBLE_DEVICES", std::to_string(local_rank).c_str(), 1);
}

// ---- tensors on the device under test
inline Tensor here(const Tensor& x) { return x.to(test_device()); }
template <class Module>
std::unique_ptr<Module> here(std::unique_ptr<Module> m) {
  m->to(test_device());
  return m;
}
inline Tensor full(const Shape& s, double value, DType t = DType::f32) {
  return Tensor::full(s, value, t, test_device());
}
inline Tensor zeros(const Shape& s, DType t = DType::f32) { return full(s, 0, t); }
inline Tensor empty(const Shape& s, DType t = DType::f32) { return Tensor::empty(s, t, test_device()); }
template <class T>
Tensor from(const std::vector<T>& values, const Shape& s, Device d = test_device()) {
  return Tensor::from(values, s).to(d);
}

}  // namespace llatte::test
