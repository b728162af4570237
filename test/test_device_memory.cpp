// What a device has below its ops: the way of bytes to it and back, its allocator's figures, errors that it
// finds while it works, and lists of tensors longer than a launch takes.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "tensor/kernels.h"
#include "test/near.h"

using namespace llatte;
using namespace llatte::test;

static Tensor counted(int64_t n, int32_t from) {
  std::vector<int32_t> v(static_cast<size_t>(n));
  for (size_t i = 0; i < v.size(); ++i) v[i] = from + static_cast<int32_t>(i);
  return Tensor::from(v, {n});
}

TEST_CASE("bytes go there and come back, beyond every pinned buffer, the source free at once") {
  for (int64_t n : {0, 1, 1000, 1 << 20, (13 << 20) / 4 + 3, (29 << 20) / 4 + 1}) {
    Tensor source = counted(n, 7);
    const Tensor there = source.to(test_device()).clone();  // clone: on the CPU `to` is the source itself
    if (test_device() == Device::cuda) source.zero();
    const std::vector<int32_t> back = there.to_vector<int32_t>();
    REQUIRE(int64_t(back.size()) == n);
    bool same = true;
    for (int64_t i = 0; i < n; ++i) same = same && back[size_t(i)] == 7 + i;
    CHECK(same);
  }
}

TEST_CASE("many small uploads share the pinned buffers, none overwrites one that is on its way") {
  const int64_t n = 50'000;  // 200 kB each: the buffers of 4 MiB are used over and over
  std::vector<Tensor> there;
  Tensor source = Tensor::empty({n}, DType::i32);
  for (int32_t k = 0; k < 150; ++k) {
    kernels::fill(source, k);
    there.push_back(test_device() == Device::cuda ? source.to(Device::cuda) : source.clone());
  }
  for (int32_t k = 0; k < 150; ++k) {
    const std::vector<int32_t> back = there[size_t(k)].to_vector<int32_t>();
    CHECK((back.front() == k && back[n / 2] == k && back.back() == k));
  }
}

TEST_CASE("the allocator counts, and serves a block that was freed without the system") {
  const auto use = [] { return empty({1 << 20}); };
  use();
  reset_alloc_stats(test_device());
  const AllocStats start = alloc_stats(test_device());
  {
    const Tensor a = use();
    CHECK(alloc_stats(test_device()).bytes - start.bytes == 4 << 20);
  }
  for (int i = 0; i < 5; ++i) use();
  const AllocStats end = alloc_stats(test_device());
  CHECK(end.bytes == start.bytes);
  CHECK(end.peak_bytes == start.bytes + (4 << 20));
  CHECK(end.requests == 6);
  CHECK(end.system_requests == 0);
  CHECK(end.largest_request == 4 << 20);
}

TEST_CASE("what a kernel finds wrong is thrown once, by name, and the device goes on") {
  const Tensor w = full({5, 4}, 2);
  const auto look_up = [&](int32_t id) {
    Tensor y = empty({2, 4});
    kernels::embedding_fwd(from(std::vector<int32_t>{1, id}, {2}), w, y);
    return y;
  };
  check_rejects([&] { look_up(5); },
                "embedding: id 5 at position 1 is outside [0,5), the vocabulary of the table");
  check_rejects([&] { look_up(-3); }, "embedding: id -3 at position 1");
  CHECK(to_vec(look_up(4)) == Vec(8, 2.0));
}

// 1100 numbers or fewer each, in f32, f64 and bf16 mixed: more tensors than the 40 of one launch.
struct Lists {
  std::vector<AdamWTensors> tensors;
  std::vector<Tensor> grads;
};
static Lists lists(Device d) {
  std::mt19937 rng(3);
  Lists l;
  for (int k = 0; k < 100; ++k) {
    const int64_t n = k == 50 ? 40'000 : (k * 37) % 1100;  // 40,000: several blocks of one tensor; 0 too
    const DType t = k % 3 == 0 ? DType::bf16 : k % 7 == 0 ? DType::f64 : DType::f32, acc = acc_dtype(t);
    const auto make = [&](DType as) { return to_tensor(noise(n, rng), {n}, as, d); };
    Tensor master = t == acc ? Tensor() : make(acc);
    l.tensors.push_back(
        {make(t), make(acc), make(acc), full({n}, 0.5, acc).to(d), master, k % 2 ? 0.1 : 0.0});
    l.grads.push_back(l.tensors.back().g);
  }
  return l;
}

TEST_CASE("adamw and sum_squares over lists are those of the CPU, one by one") {
  Lists a = lists(test_device()), b = lists(Device::cpu);
  Tensor sum = empty({1}, DType::f64), one = Tensor::empty({1}, DType::f64);
  kernels::sum_squares(a.grads, sum);
  double want = 0;
  for (const Tensor& g : b.grads) {
    kernels::sum_squares(std::vector{g}, one);
    want += one.item();
  }
  CHECK(near(sum.item(), want, 1e-12));  // 1e5 positive terms in double, in another order
  const AdamWStep step{1e-2, 0.9, 0.95, 1e-8, 1.0, 3};
  kernels::adamw(a.tensors, sum, step);
  const Tensor total = Tensor::full({1}, want, DType::f64);
  for (AdamWTensors& x : b.tensors) {
    std::vector<AdamWTensors> alone{x};
    kernels::adamw(alone, total, step);
  }
  // A dozen f32 roundings; the bf16 copy may fall on the other side of one of its own (2^-8).
  for (size_t k = 0; k < b.tensors.size(); ++k) {
    const AdamWTensors &x = a.tensors[k], &y = b.tensors[k];
    check_near(str("w of ", k), to_vec(x.w), to_vec(y.w), y.w.dtype() == DType::bf16 ? 1 / 256.0 : 2e-6);
    check_near(str("m of ", k), to_vec(x.m), to_vec(y.m), 2e-6);
    check_near(str("v of ", k), to_vec(x.v), to_vec(y.v), 2e-6);
    if (y.master.defined()) check_near(str("master of ", k), to_vec(x.master), to_vec(y.master), 2e-6);
  }
}
