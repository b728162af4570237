// Random tensors from Philox (tensor/philox.h): threads share the blocks of four elements.
#include <algorithm>
#include "tensor/cpu/parallel.h"
#include "tensor/kernels.h"
#include "tensor/philox.h"

namespace llatte::cpu {
namespace {

// y[4b + j] = four(block b)[j].
template <class F>
void fill_blocks(const char* op, uint64_t seed, uint64_t stream, Tensor& y, F four) {
  const int64_t n = y.numel();
  dispatch_float(y.dtype(), op, [&]<class T>() {
    T* py = y.data<T>();
    for_rows((n + 3) / 4, 64, [=](int64_t b) {  // 64: an element costs as much as many simple ones
      double v[4];
      four(philox_block(seed, stream, static_cast<uint64_t>(b)), v);
      for (int64_t i = 4 * b; i < std::min(n, 4 * b + 4); ++i) py[i] = T(static_cast<acc_t<T>>(v[i - 4 * b]));
    });
  });
}

}  // namespace

void random_normal(uint64_t seed, uint64_t stream, double mean, double std, Tensor& y) {
  fill_blocks("random_normal", seed, stream, y, [=](const Philox& b, double* v) {
    normals_of(b, v);
    for (int j = 0; j < 4; ++j) v[j] = mean + std * v[j];
  });
}

void random_uniform(uint64_t seed, uint64_t stream, Tensor& y) {
  fill_blocks("random_uniform", seed, stream, y, [](const Philox& b, double* v) {
    for (int j = 0; j < 4; ++j) v[j] = uniform_of(b.word[j]);
  });
}

}  // namespace llatte::cpu
