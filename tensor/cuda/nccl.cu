// NCCL's collectives on a stream of their own (cuda_comm.h). Events tie it to cuda::stream(): `ready` keeps a
// collective behind the work that makes its tensors, `done` keeps the work that reads them behind it.
#include <nccl.h>
#include <atomic>
#include <cstring>
#include "tensor/cuda/launch.h"
#include "tensor/cuda_comm.h"

namespace llatte::cuda {
namespace {

void check(ncclResult_t status, const char* what) {
  LLATTE_CHECK(status == ncclSuccess || status == ncclInProgress, what,
               " by NCCL: ", ncclGetErrorString(status),
               "; run it again with NCCL_DEBUG=WARN to see what went wrong");
}

ncclDataType_t nccl_type(DType t) {
  return t == DType::f64   ? ncclFloat64
         : t == DType::f32 ? ncclFloat32
         : t == DType::i32 ? ncclInt32
                           : ncclBfloat16;
}

size_t count_of(const Tensor& t) { return static_cast<size_t>(t.numel()); }

std::future<void> done_already() {
  std::promise<void> p;
  p.set_value();
  return p.get_future();
}

class Event {
 public:
  Event() { LLATTE_CUDA_CHECK("event", cudaEventCreateWithFlags(&event_, cudaEventDisableTiming)); }
  ~Event() { cudaEventDestroy(event_); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;

  void record(cudaStream_t s) { LLATTE_CUDA_CHECK("event", cudaEventRecord(event_, s)); }
  cudaError_t hold_back(cudaStream_t s) const { return cudaStreamWaitEvent(s, event_, 0); }
  cudaError_t query() const { return cudaEventQuery(event_); }
  bool passed() const {
    const cudaError_t status = query();
    LLATTE_CHECK(status == cudaSuccess || status == cudaErrorNotReady,
                 "device: ", cudaGetErrorString(status));
    return status == cudaSuccess;
  }

 private:
  cudaEvent_t event_{};
};

// What a watch sees of a collective. It keeps no tensor: those are released by the thread that computes.
struct Flight {
  Event done;
  std::atomic<bool> asked{false};     // done is recorded
  std::atomic<bool> given_up{false};  // asking for it failed, which its caller was told
};

// Tensors of a collective, which are not released before cuda::stream() is behind it.
class Kept {
 public:
  Kept(std::shared_ptr<Flight> flight, std::vector<Tensor> tensors)
      : flight_(std::move(flight)), tensors_(std::move(tensors)) {}
  ~Kept() {
    if (!joined_) flight_->done.hold_back(stream());  // fails only where the context is lost
  }
  Kept(const Kept&) = delete;
  Kept& operator=(const Kept&) = delete;

  void join() {
    joined_ = true;
    LLATTE_CUDA_CHECK("collective", flight_->done.hold_back(stream()));
  }

 private:
  std::shared_ptr<Flight> flight_;
  std::vector<Tensor> tensors_;
  bool joined_ = false;
};

class Nccl final : public Collectives {
 public:
  Nccl(const ncclUniqueId& id, int rank, int size, Watch watch) : watch_(std::move(watch)) {
    const auto up = std::make_shared<std::atomic<bool>>(false);
    watch_("the start of NCCL", [up] { return up->load(); });
    const ncclResult_t status = ncclCommInitRank(&comm_, size, id, rank);
    *up = true;
    check(status, "the start");
    LLATTE_CUDA_CHECK("collectives", cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
  }

  // A collective that is not over has lost a rank: then nobody can be waited for.
  ~Nccl() override {
    const bool over = !last_ || last_->done.query() == cudaSuccess;
    over ? ncclCommDestroy(comm_) : ncclCommAbort(comm_);
    if (over) cudaStreamDestroy(stream_);
  }

  std::future<void> all_reduce_sum(Tensor t) override {
    if (t.dtype() == DType::bf16) {
      join_last();
      Tensor wide = t.to(DType::f32);
      all_reduce_sum(wide).get();
      t.copy_from(wide);
      return done_already();
    }
    return ask("all_reduce_sum", {t}, [&] {
      return ncclAllReduce(t.raw(), t.raw(), count_of(t), nccl_type(t.dtype()), ncclSum, comm_, stream_);
    });
  }

  std::future<void> reduce_scatter_sum(const Tensor& all, Tensor mine) override {
    if (all.dtype() == DType::bf16) {
      join_last();
      Tensor sum = Tensor::empty(mine.shape(), DType::f32, Device::cuda);
      reduce_scatter_sum(all.to(DType::f32), sum).get();
      mine.copy_from(sum);
      return done_already();
    }
    return ask("reduce_scatter_sum", {mine, all}, [&] {
      return ncclReduceScatter(all.raw(), mine.raw(), count_of(mine), nccl_type(mine.dtype()), ncclSum, comm_,
                               stream_);
    });
  }

  std::future<void> all_gather(const Tensor& mine, Tensor all) override {
    return ask("all_gather", {mine, all}, [&] {
      return ncclAllGather(mine.raw(), all.raw(), count_of(mine), nccl_type(mine.dtype()), comm_, stream_);
    });
  }

  std::future<void> broadcast(Tensor t, int root) override {
    return ask("broadcast", {t}, [&] {
      return ncclBroadcast(t.raw(), t.raw(), count_of(t), nccl_type(t.dtype()), root, comm_, stream_);
    });
  }

 private:
  // The watch is told first: NCCL itself may wait for other ranks in `call`, where it connects to them.
  template <class Call>
  std::future<void> ask(const char* what, std::vector<Tensor> tensors, const Call& call) {
    if (tensors.front().numel() == 0) return done_already();
    const auto flight = std::make_shared<Flight>();
    watch_(what, [this, what, flight] { return finished(what, *flight); });
    try {
      ready_.record(cuda::stream());
      LLATTE_CUDA_CHECK(what, ready_.hold_back(stream_));
      check(call(), what);
      flight->done.record(stream_);
    } catch (...) {
      flight->given_up = true;
      throw;
    }
    flight->asked = true;
    last_ = flight;
    return std::async(std::launch::deferred,
                      [kept = std::make_shared<Kept>(flight, std::move(tensors))] { kept->join(); });
  }

  bool finished(const char* what, const Flight& flight) const {
    if (flight.given_up) return true;
    if (!flight.asked) return false;
    ncclResult_t error = ncclSuccess;
    check(ncclCommGetAsyncError(comm_, &error), what);
    check(error, what);
    return flight.done.passed();
  }

  // For work of cuda::stream() on what an earlier collective, not got yet, may still be writing.
  void join_last() const {
    if (last_) LLATTE_CUDA_CHECK("collective", last_->done.hold_back(cuda::stream()));
  }

  const Watch watch_;
  ncclComm_t comm_{};
  cudaStream_t stream_{};
  Event ready_;
  std::shared_ptr<Flight> last_;
};

}  // namespace

std::string why_no_collectives() { return ""; }

std::vector<int32_t> new_collectives() {
  ncclUniqueId id;
  check(ncclGetUniqueId(&id), "a new group");
  static_assert(sizeof id == kGroupWords * sizeof(int32_t));
  std::vector<int32_t> words(kGroupWords);
  std::memcpy(words.data(), &id, sizeof id);
  return words;
}

std::unique_ptr<Collectives> make_collectives(const std::vector<int32_t>& group, int rank, int size,
                                              Watch watch) {
  ncclUniqueId id;
  LLATTE_CHECK(group.size() == kGroupWords, "collectives: a group's name has ", kGroupWords, " words, not ",
               group.size());
  std::memcpy(&id, group.data(), sizeof id);
  return std::make_unique<Nccl>(id, rank, size, std::move(watch));
}

}  // namespace llatte::cuda
