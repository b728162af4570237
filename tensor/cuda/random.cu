// Random tensors from Philox (tensor/philox.h): a thread makes the four elements of a block of the generator.
#include "tensor/cuda/pack.h"
#include "tensor/philox.h"

namespace llatte::cuda {
namespace {

struct Normal {
  double mean, std;
  __device__ void operator()(const Philox& b, double v[4]) const {
    normals_of(b, v);
    for (int j = 0; j < 4; ++j) v[j] = mean + std * v[j];
  }
};
struct Uniform {
  __device__ void operator()(const Philox& b, double v[4]) const {
    for (int j = 0; j < 4; ++j) v[j] = uniform_of(b.word[j]);
  }
};

// y[4b + j] = four(block b)[j].
template <class T, class Four>
__global__ void fill_blocks(uint64_t seed, uint64_t stream, T* y, int64_t n, Four four) {
  const int64_t at = global_thread() * 4;
  if (at >= n) return;
  double v[4];
  four(philox_block(seed, stream, static_cast<uint64_t>(at / 4)), v);
  for (int j = 0; j < 4; ++j)
    if (at + j < n) y[at + j] = T(static_cast<acc_t<T>>(v[j]));
}

template <class Four>
void run(const char* op, uint64_t seed, uint64_t stream, Tensor& y, Four four) {
  const int64_t n = y.numel();
  dispatch_float(y.dtype(), op, [&]<class T>() {
    launch(op, {blocks_for(n, kThreads * 4), unsigned(kThreads)}, fill_blocks<T, Four>, seed, stream,
           y.data<T>(), n, four);
  });
}

}  // namespace

void random_normal(uint64_t seed, uint64_t stream, double mean, double std, Tensor& y) {
  run("random_normal", seed, stream, y, Normal{mean, std});
}

void random_uniform(uint64_t seed, uint64_t stream, Tensor& y) {
  run("random_uniform", seed, stream, y, Uniform());
}

}  // namespace llatte::cuda
