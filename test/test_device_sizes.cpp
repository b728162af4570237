// Kernels on sizes beyond one warp, block, tile or partial sum, which the small shapes of the op tests do not
// reach, against the CPU's own results on the same numbers.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <functional>
#include "tensor/kernels.h"
#include "test/near.h"

using namespace llatte;
using namespace llatte::test;

// Standard normal numbers, the same on both devices.
static Tensor normal(const Shape& s, int seed, Device d, DType t = DType::f32) {
  std::mt19937 rng(static_cast<unsigned>(seed));
  return to_tensor(noise(numel_of(s), rng), s, t, d);
}

static Tensor ids(int64_t n, int32_t low, int32_t high, int seed, Device d) {
  std::mt19937 rng(static_cast<unsigned>(seed));
  std::vector<int32_t> v(static_cast<size_t>(n));
  for (int32_t& x : v) x = std::uniform_int_distribution<int32_t>(low, high - 1)(rng);
  return from(v, {n}, d);
}

// What `run` leaves in the tensor it returns, on the GPU (whatever the device under test) and on the CPU.
static void check_same(const char* what, const std::function<Tensor(Device)>& run, double tol) {
  if (!cuda::available()) return;
  check_near(what, to_vec(run(Device::cuda)), to_vec(run(Device::cpu)), tol);
}

// f32 sums of hundreds to thousands of terms in another order: 2^-24 each, which add up as a random walk.
constexpr double kTol = 2e-5;

TEST_CASE("copies between layouts larger than a tile") {
  for (const DType t : {DType::f32, DType::bf16, DType::i32}) {
    const auto turned = [&](Device d) {
      Tensor x = normal({3, 70, 65, 5}, 1, d).to(t), y = Tensor::zeros({3, 65, 70, 5}, DType::f32, d);
      y.copy_from(x.transpose(1, 2));
      return y;
    };
    check_same("dims 1 and 2", turned, 0);
    const auto matrix = [&](Device d) {
      Tensor x = normal({100, 133}, 2, d).to(t), y = Tensor::zeros({133, 100}, DType::f64, d);
      y.copy_from(x.transpose(0, 1));
      return y;
    };
    check_same("a matrix", matrix, 0);
    const auto slices = [&](Device d) {  // whole packs, and rows that begin off a pack
      Tensor x = normal({40, 64}, 3, d).to(t), y = Tensor::zeros({40, 80}, t, d);
      y.slice(1, 16, 80).copy_from(x);
      y.slice(1, 1, 33).copy_from(x.slice(1, 3, 35));
      return y;
    };
    check_same("slices", slices, 0);
  }
}

TEST_CASE("sums over more rows than one partial sum") {
  for (const int64_t N : {127, 128, 129, 1000}) {
    const auto rows = [&](Device d) {
      Tensor sum = Tensor::empty({45}, DType::f32, d);
      kernels::sum_rows(normal({N, 45}, 4, d), sum);
      return sum;
    };
    check_same("sum_rows", rows, kTol);
    const auto gain = [&](Device d) {
      Tensor x = normal({N, 45}, 5, d), w = normal({45}, 6, d), y = Tensor::empty_like(x),
             r = Tensor::empty({N}, DType::f32, d), dw = Tensor::empty_like(w);
      kernels::rms_norm_fwd(x, w, 1e-5, y, r);
      kernels::rms_norm_bwd(normal({N, 45}, 7, d), x, w, r, y, dw);
      return dw;
    };
    check_same("rms_norm dw", gain, kTol);
  }
}

TEST_CASE("rows longer than a block's packs") {
  for (const int64_t D : {1024, 2049, 5003}) {
    for (const DType t : {DType::f32, DType::bf16}) {
      const double tol = t == DType::f32 ? kTol : 1 / 128.0;  // two roundings to bf16
      check_same(
          "softmax",
          [&](Device d) {
            Tensor y = Tensor::empty({3, D}, t, d);
            kernels::softmax_fwd(normal({3, D}, 8, d, t), y);
            return y;
          },
          tol);
      check_same(
          "rms_norm",
          [&](Device d) {
            Tensor y = Tensor::empty({3, D}, t, d), r = Tensor::empty({3}, DType::f32, d);
            kernels::rms_norm_fwd(normal({3, D}, 9, d, t), normal({D}, 10, d, t), 1e-5, y, r);
            return y;
          },
          tol);
    }
  }
}

TEST_CASE("gradients of many ids: frequent, rare and absent ones") {
  for (const int64_t N : {255, 256, 257, 1500}) {
    check_same(
        "embedding",
        [&](Device d) {
          Tensor dw = Tensor::empty({90, 37}, DType::f32, d);
          kernels::embedding_bwd(normal({N, 37}, 11, d), ids(N, 3, 60, 12, d), dw);
          return dw;
        },
        kTol);
    check_same(
        "gather",
        [&](Device d) {
          Tensor dx = Tensor::empty({2, 50, 3}, DType::f32, d);
          kernels::gather_bwd(normal({2, N, 3}, 13, d), ids(N, -1, 40, 14, d), dx);
          return dx;
        },
        kTol);
  }
}

TEST_CASE("draws among thousands of ids, with many equal logits") {
  const int64_t V = 3001, N = 12;
  for (const SampleRule rule : {SampleRule{1, 1, 0, 0}, SampleRule{0.7, 1, 0, 50}, SampleRule{1.3, 0.6, 0, 0},
                                SampleRule{1, 0.9, 0.05, 700}, SampleRule{0, 1, 0, 0}}) {
    const auto draw = [&](Device d) {
      Tensor z = normal({N, V}, 15, Device::cpu), out = Tensor::empty({N}, DType::i32, d);
      for (int64_t i = 0; i < z.numel(); ++i) z.data<float>()[i] = std::round(4 * z.data<float>()[i]) / 4;
      std::vector<float> u(N);
      for (size_t n = 0; n < u.size(); ++n) u[n] = (float(n) + 0.37f) / float(N);
      kernels::sample(z.to(d), from(u, {N}, d), rule, out);
      return out;
    };
    check_same("ids", draw, 0);
  }
}
