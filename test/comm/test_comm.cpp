// Collectives: run alone, and by ctest under mpirun with 2, 3 and 4 ranks, with tensors on the CPU and on the
// GPU; the same expectations hold for any number. Whole numbers below 2^24 add exactly in f32, so every
// comparison is exact.
#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>
#include <chrono>
#include <thread>
#include "tensor/comm.h"
#include "test/near.h"
#include "test/on_device.h"

#ifdef LLATTE_MPI
namespace llatte {
std::unique_ptr<Comm> make_mpi_comm(int64_t piece);
}
#endif

using namespace llatte;
using namespace llatte::test;

namespace {

std::unique_ptr<Comm> comm;

// Element i of rank r.
double number(int r, int64_t i) { return 3 * r + static_cast<double>(i % 50); }

Tensor numbers(int r, int64_t n, DType t) {
  Vec v;
  for (int64_t i = 0; i < n; ++i) v.push_back(number(r, i));
  return to_tensor(v, {n}, t);
}

Vec sums(int64_t n) {
  Vec v(static_cast<size_t>(n), 0.0);
  for (int r = 0; r < comm->size(); ++r)
    for (int64_t i = 0; i < n; ++i) v[static_cast<size_t>(i)] += number(r, i);
  return v;
}

constexpr DType kFloats[] = {DType::f32, DType::bf16, DType::f64};

}  // namespace

TEST_CASE("ranks know their places") {
  CHECK(0 <= comm->rank());
  CHECK(comm->rank() < comm->size());
  CHECK(comm->local_size() == comm->size());  // tests run on one machine
  CHECK(comm->local_rank() == comm->rank());
}

TEST_CASE("all_reduce_sum") {
  for (DType t : kFloats)
    for (int64_t n : {0, 1, 33, 1000}) {
      Tensor x = numbers(comm->rank(), n, t);
      comm->all_reduce_sum(x);
      CHECK(to_vec(x) == sums(n));
    }
}

TEST_CASE("sums over bf16 are taken in f32: one rounding, not one for each rank") {
  Tensor x = full({4}, 256, DType::bf16);  // one more than this is lost in bf16
  if (comm->rank() > 0) x = full({4}, 1, DType::bf16);
  comm->all_reduce_sum(x);
  const double want = bf16(static_cast<float>(256 + comm->size() - 1));
  CHECK(to_vec(x) == Vec(4, want));
}

TEST_CASE("reduce_scatter_sum and all_gather") {
  const int64_t n = 17, me = comm->rank();
  for (DType t : kFloats) {
    const Tensor all = numbers(comm->rank(), n * comm->size(), t);
    Tensor mine = empty({n}, t);
    comm->reduce_scatter_sum(all, mine);
    const Vec want = sums(n * comm->size());
    CHECK(to_vec(mine) == Vec(want.begin() + me * n, want.begin() + (me + 1) * n));
    Tensor together = zeros({n * comm->size()}, t);
    comm->all_gather(mine, together);
    CHECK(to_vec(together) == want);
    Tensor in_place = zeros({n * comm->size()}, t);
    in_place.slice(0, me * n, (me + 1) * n).copy_from(mine);
    comm->all_gather(in_place.slice(0, me * n, (me + 1) * n), in_place);
    CHECK(to_vec(in_place) == want);
  }
}

TEST_CASE("tensors longer than what the stand-in GPU's NCCL moves at once") {
  if (test_device() == Device::cpu) return;  // there "pieces" does that to all tests
  const int64_t n = 20000, me = comm->rank();
  const Vec want = sums(n * comm->size());
  const Tensor all = numbers(comm->rank(), n * comm->size(), DType::f32);
  Tensor mine = empty({n}), together = empty({n * comm->size()});
  comm->reduce_scatter_sum(all, mine);
  CHECK(to_vec(mine) == Vec(want.begin() + me * n, want.begin() + (me + 1) * n));
  comm->all_gather(mine, together);
  CHECK(to_vec(together) == want);
  Tensor x = numbers(comm->rank(), n, DType::f32);
  comm->all_reduce_sum(x);
  CHECK(to_vec(x) == sums(n));
  comm->broadcast(together, comm->size() - 1);
  CHECK(to_vec(together) == want);
}

TEST_CASE("broadcast, of any type and from any rank") {
  for (int root = 0; root < comm->size(); ++root)
    for (DType t : {DType::f32, DType::bf16, DType::f64, DType::i32}) {
      Tensor x = numbers(comm->rank(), 100, DType::f64).to(t);
      comm->broadcast(x, root);
      CHECK(to_vec(x) == to_vec(numbers(root, 100, DType::f64)));
    }
}

TEST_CASE("what was started is done in order, while the rank goes on") {
  Tensor a = numbers(comm->rank(), 5000, DType::f32);
  auto first = comm->start_all_reduce_sum(a);
  auto second = comm->start_all_reduce_sum(a);  // of the first one's result
  auto third = comm->start_barrier();
  third.get();
  Vec want = sums(5000);
  for (double& x : want) x *= comm->size();
  CHECK(to_vec(a) == want);
  first.get(), second.get();
}

TEST_CASE("sums over bf16 keep the order too") {
  const double ranks = comm->size();
  Tensor sum = numbers(comm->rank(), 500, DType::f32), x = full({100}, comm->rank() + 1, DType::bf16);
  auto of_f32 = comm->start_all_reduce_sum(sum), copy = comm->start_broadcast(x, comm->size() - 1),
       once = comm->start_all_reduce_sum(x), twice = comm->start_all_reduce_sum(x);
  of_f32.get(), copy.get(), once.get(), twice.get();
  CHECK(to_vec(sum) == sums(500));
  CHECK(to_vec(x) == Vec(100, ranks * ranks * ranks));  // what the last rank had, added up twice
}

TEST_CASE("the host does not wait for a collective of the GPU, nor when it gets the future") {
  if (test_device() == Device::cpu) return;
  Tensor x = numbers(comm->rank(), 1000, DType::f32), y = full({1000}, 1, DType::bf16);
  Tensor all = empty({1000 * comm->size()});
  comm->all_reduce_sum(x), comm->barrier();  // NCCL is up
  if (comm->rank() > 0) std::this_thread::sleep_for(std::chrono::seconds(2));
  const auto began = std::chrono::steady_clock::now();
  const int64_t waits = cuda::waits();
  comm->all_reduce_sum(x), comm->all_reduce_sum(y);
  comm->all_gather(x, all), comm->reduce_scatter_sum(all, x), comm->broadcast(y, 0);
  CHECK(cuda::waits() == waits);
  const auto took = std::chrono::steady_clock::now() - began;
  if (comm->rank() == 0) CHECK(took < std::chrono::milliseconds(1500));  // the others are not there yet
  CHECK(to_vec(y) == Vec(1000, comm->size()));
}

TEST_CASE("tensors and futures that are dropped at once: the collective keeps what it works on") {
  const int64_t n = 3000;
  std::vector<std::future<void>> kept;
  const int times = test_device() == Device::cuda ? 60 : 2;
  for (int i = 0; i < times; ++i) {
    auto first = comm->start_all_reduce_sum(numbers(comm->rank(), n, DType::f32));
    if (i % 2) kept.push_back(std::move(first));
    else first = {};
    Tensor other = full({n}, 7);  // may have the memory of the one before
    auto result = comm->start_all_reduce_sum(other);
    const Tensor more = full({n}, 5);
    result.get();
    CHECK(to_vec(other) == Vec(n, 7.0 * comm->size()));
    CHECK(to_vec(more) == Vec(n, 5.0));
  }
}

TEST_CASE("all ranks get the same bits; on the CPU those of adding rank by rank") {
  const auto of_rank = [](int r) {
    std::mt19937 rng(static_cast<unsigned>(r));
    Vec values = noise(4097, rng);
    for (double& v : values) v *= 1.1;  // all 24 bits
    return to_tensor(values, {4097}, DType::f32).to(Device::cpu).to_vector<float>();
  };
  std::vector<float> rank_by_rank = of_rank(0);
  for (int r = 1; r < comm->size(); ++r) {
    const std::vector<float> more = of_rank(r);
    for (size_t i = 0; i < more.size(); ++i) rank_by_rank[i] += more[i];
  }
  Tensor x = Tensor::from(of_rank(comm->rank()), {4097}).to(test_device());
  comm->all_reduce_sum(x);
  Tensor of_first = x.clone();
  comm->broadcast(of_first, 0);
  CHECK(to_vec(x) == to_vec(of_first));
  if (test_device() == Device::cpu) CHECK(x.to_vector<float>() == rank_by_rank);
}

TEST_CASE("tensors that do not fit are refused before anything is sent") {
  if (comm->size() == 1) return;
  Tensor x = zeros({4, 6}), part = zeros({5});
  check_rejects([&] { comm->all_reduce_sum(x.transpose(0, 1)); }, "takes contiguous tensors");
  check_rejects([&] { comm->all_reduce_sum(x.to(DType::i32)); }, "takes floats, not i32");
  check_rejects([&] { comm->all_gather(part, x); }, "do not make 24 f32");
  check_rejects([&] { comm->broadcast(x, comm->size()); }, "there is no rank");
}

int main(int argc, char** argv) {
  doctest::Context context(argc, argv);
#ifdef LLATTE_MPI
  // By pieces of 10 elements, so that all that is longer is cut.
  const bool pieces = argc > 1 && std::string(argv[1]) == "pieces";
  comm = pieces ? make_mpi_comm(10) : make_comm();
#else
  comm = make_comm();
#endif
  take_gpu(comm->local_rank());
  const int failed = context.run();
  comm.reset();
  return failed;
}
