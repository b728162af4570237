// The stand-in's NCCL on trial: two ranks in one process, each with a stream, so that what waits for the
// other rank must not hold it up.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>
#include <nccl.h>
#include <array>
#include <numeric>
#include <thread>
#include "test/cuda_on_cpu/on_trial.h"

namespace {

using cuda_on_cpu::Fault;

struct Rank {
  ncclComm_t comm{};
  cudaStream_t stream{};
};

class Pair {
 public:
  Pair() {
    ncclUniqueId id;
    REQUIRE(ncclGetUniqueId(&id) == ncclSuccess);
    std::thread other([&] { ncclCommInitRank(&ranks_[1].comm, 2, id, 1); });
    const ncclResult_t status = ncclCommInitRank(&ranks_[0].comm, 2, id, 0);
    other.join();
    REQUIRE(status == ncclSuccess);
    for (Rank& r : ranks_) cudaStreamCreateWithFlags(&r.stream, cudaStreamNonBlocking);
  }
  ~Pair() {
    for (Rank& r : ranks_) ncclCommAbort(r.comm), cudaStreamDestroy(r.stream);
  }
  Pair(const Pair&) = delete;
  Rank& operator[](int r) { return ranks_[size_t(r)]; }

 private:
  std::array<Rank, 2> ranks_;
};

struct Buffer {
  float* at = nullptr;
  size_t n;
  explicit Buffer(const std::vector<float>& v) : n(v.size()) {
    REQUIRE(cudaMalloc(&at, n * sizeof(float)) == cudaSuccess);
    cudaMemcpy(at, v.data(), n * sizeof(float), cudaMemcpyHostToDevice);
  }
  ~Buffer() { cudaFree(at); }
  Buffer(const Buffer&) = delete;
  std::vector<float> read() const {
    std::vector<float> v(n);
    cudaMemcpy(v.data(), at, n * sizeof(float), cudaMemcpyDeviceToHost);
    return v;
  }
};

ncclResult_t add(Rank& r, const Buffer& x, size_t n) {
  return ncclAllReduce(x.at, x.at, n, ncclFloat32, ncclSum, r.comm, r.stream);
}

}  // namespace

TEST_CASE("sums, parts and copies, of more than a slot holds") {
  Pair ranks;
  for (const size_t n : {size_t(1), size_t(50001)}) {
    const Buffer a(counting(2 * n, 0)), b(counting(2 * n, 1));
    const Buffer part_a(counting(n, 0)), part_b(counting(n, 0));
    const auto each = [&](auto&& call) { call(ranks[0], a, part_a), call(ranks[1], b, part_b); };
    each([&](Rank& r, const Buffer& x, const Buffer& part) {
      CHECK(ncclReduceScatter(x.at, part.at, n, ncclFloat32, ncclSum, r.comm, r.stream) == ncclSuccess);
      CHECK(ncclAllGather(part.at, x.at, n, ncclFloat32, r.comm, r.stream) == ncclSuccess);
    });
    cudaDeviceSynchronize();
    std::vector<float> want(2 * n);
    for (size_t i = 0; i < want.size(); ++i) want[i] = 2 * float(i) + 1;
    CHECK(a.read() == want);
    CHECK(b.read() == want);
    each([&](Rank& r, const Buffer&, const Buffer& part) {
      CHECK(ncclBroadcast(part.at, part.at, n, ncclFloat32, 1, r.comm, r.stream) == ncclSuccess);
    });
    cudaDeviceSynchronize();
    CHECK(part_a.read() == part_b.read());
    CHECK(part_b.read() == std::vector<float>(want.begin() + long(n), want.end()));
  }
}

TEST_CASE("a rank waits for the other without holding up its own streams; who polls is told") {
  Pair ranks;
  const Buffer a(counting(10, 0)), b(counting(10, 0));
  cudaEvent_t done;
  cudaEventCreateWithFlags(&done, cudaEventDisableTiming);
  add(ranks[0], a, 10);
  cudaEventRecord(done, ranks[0].stream);
  for (int i = 0; i < 20; ++i) CHECK(cudaEventQuery(done) == cudaErrorNotReady);
  CHECK(b.read() == counting(10, 0));  // the null stream goes on
  add(ranks[1], b, 10);
  int asked = 0;
  while (cudaEventQuery(done) == cudaErrorNotReady && asked < 100) ++asked;
  CHECK(asked < 100);
  CHECK(a.read()[9] == 18);
  cudaEventDestroy(done);
}

TEST_CASE("a thread that waits lets another play the device") {
  Pair ranks;
  const Buffer a(counting(10, 0)), b(counting(10, 0));
  add(ranks[0], a, 10);
  std::thread late([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    add(ranks[1], b, 10);
  });
  CHECK(cudaStreamSynchronize(ranks[0].stream) == cudaSuccess);
  late.join();
  CHECK(a.read()[9] == 18);
}

TEST_CASE("what NCCL would hang on or corrupt is named") {
  Pair ranks;
  const Buffer a(counting(10, 0)), b(counting(10, 0));
  std::vector<float> host(10);
  const Rank& r = ranks[0];
  CHECK(contains(
      fault_of([&] { ncclAllReduce(host.data(), a.at, 10, ncclFloat32, ncclSum, r.comm, r.stream); }),
      "is host memory"));
  CHECK(contains(fault_of([&] { add(ranks[0], a, 11); }), "4 bytes past the end"));
  CHECK(contains(fault_of([&] { ncclAllReduce(a.at, a.at + 1, 9, ncclFloat32, ncclSum, r.comm, r.stream); }),
                 "overlap"));
  CHECK(ncclAllReduce(a.at, a.at, 10, ncclBfloat16, ncclSum, r.comm, r.stream) == ncclInvalidArgument);
  CHECK(ncclBroadcast(a.at, a.at, 10, ncclFloat32, 2, r.comm, r.stream) == ncclInvalidArgument);
  CHECK(contains(fault_of([&] { add(ranks[0], a, 10), add(ranks[1], b, 9); }), "asks for ncclAllReduce of"));
}
