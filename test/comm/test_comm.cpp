// Collectives: run alone, and by ctest under mpirun with 2, 3 and 4 ranks; the same expectations hold for any
// number. Whole numbers below 2^24 add exactly in f32, so every comparison is exact.
#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>
#include <chrono>
#include <thread>
#include "tensor/comm.h"
#include "test/near.h"

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
  Tensor x = Tensor::full({4}, 256, DType::bf16);  // one more than this is lost in bf16
  if (comm->rank() > 0) x = Tensor::full({4}, 1, DType::bf16);
  comm->all_reduce_sum(x);
  const double want = bf16(static_cast<float>(256 + comm->size() - 1));
  CHECK(to_vec(x) == Vec(4, want));
}

TEST_CASE("reduce_scatter_sum and all_gather") {
  const int64_t n = 17, me = comm->rank();
  for (DType t : kFloats) {
    const Tensor all = numbers(comm->rank(), n * comm->size(), t);
    Tensor mine = Tensor::empty({n}, t);
    comm->reduce_scatter_sum(all, mine);
    const Vec want = sums(n * comm->size());
    CHECK(to_vec(mine) == Vec(want.begin() + me * n, want.begin() + (me + 1) * n));
    Tensor together = Tensor::zeros({n * comm->size()}, t);
    comm->all_gather(mine, together);
    CHECK(to_vec(together) == want);
    Tensor in_place = Tensor::zeros({n * comm->size()}, t);
    in_place.slice(0, me * n, (me + 1) * n).copy_from(mine);
    comm->all_gather(in_place.slice(0, me * n, (me + 1) * n), in_place);
    CHECK(to_vec(in_place) == want);
  }
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
  Tensor a = numbers(comm->rank(), 5000, DType::f32), b = Tensor::zeros({5000});
  auto first = comm->start_all_reduce_sum(a);
  auto second = comm->start_all_reduce_sum(a);  // of the first one's result
  auto third = comm->start_barrier();
  third.get();
  Vec want = sums(5000);
  for (double& x : want) x *= comm->size();
  CHECK(to_vec(a) == want);
  first.get(), second.get();
}

TEST_CASE("all ranks get the same bits") {
  std::mt19937 rng(static_cast<unsigned>(comm->rank()));
  Tensor x = to_tensor(noise(4097, rng), {4097}, DType::f32);
  for (int64_t i = 0; i < x.numel(); ++i) x.data<float>()[i] *= 1.1F;  // all 24 bits
  comm->all_reduce_sum(x);
  Tensor of_first = x.clone();
  comm->broadcast(of_first, 0);
  CHECK(x.to_vector<float>() == of_first.to_vector<float>());
}

TEST_CASE("tensors that do not fit are refused before anything is sent") {
  if (comm->size() == 1) return;
  Tensor x = Tensor::zeros({4, 6}), part = Tensor::zeros({5});
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
  const int failed = context.run();
  comm.reset();
  return failed;
}
