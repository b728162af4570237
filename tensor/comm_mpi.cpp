// Collectives by MPI, for tensors on the CPU. One thread owns MPI: it starts it, does the queue's work in
// order, and ends it, so MPI never sees two threads and the rank computes meanwhile. It polls, with naps that
// grow, for two reasons: a blocking call would burn a core that computes, and would wait for a dead rank for
// ever.
#include <mpi.h>
#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include "tensor/comm.h"

namespace llatte {
namespace {

using Clock = std::chrono::steady_clock;

void check(int status, const char* what) {
  if (status == MPI_SUCCESS) return;
  char text[MPI_MAX_ERROR_STRING];
  int n = 0;
  MPI_Error_string(status, text, &n);
  LLATTE_FAIL(what, ": ", std::string(text, static_cast<size_t>(n)));
}

MPI_Datatype mpi_type(DType t) {
  return t == DType::f64   ? MPI_DOUBLE
         : t == DType::f32 ? MPI_FLOAT
         : t == DType::i32 ? MPI_INT32_T
                           : MPI_UINT16_T;
}

char* at(Tensor& t, int64_t element) {
  return static_cast<char*>(t.raw()) + element * static_cast<int64_t>(size_of(t.dtype()));
}
const char* at(const Tensor& t, int64_t element) { return at(const_cast<Tensor&>(t), element); }

void check_tensor(const char* op, const Tensor& t, bool sums) {
  LLATTE_CHECK(t.is_contiguous() && t.device() == Device::cpu, op,
               " by MPI takes contiguous tensors on the CPU");
  LLATTE_CHECK(!sums || is_float(t.dtype()), op, " takes floats, not ", name(t.dtype()));
}

class Mpi final : public Comm {
 public:
  explicit Mpi(int64_t piece) : piece_(piece), thread_([this] { own_mpi(); }) {
    try {
      enqueue([this] { start(); }).get();
    } catch (...) {
      finish();
      throw;
    }
  }
  ~Mpi() override { finish(); }

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  int local_rank() const override { return local_rank_; }
  int local_size() const override { return local_size_; }

  std::future<void> start_all_reduce_sum(Tensor t) override {
    check_tensor("all_reduce_sum", t, true);
    return enqueue([this, t]() mutable {
      Tensor wide = t.to(acc_dtype(t.dtype()));  // t itself unless it is bf16
      in_pieces(wide.numel(), [&](int64_t begin, int n, MPI_Request* r) {
        return MPI_Iallreduce(MPI_IN_PLACE, at(wide, begin), n, mpi_type(wide.dtype()), MPI_SUM,
                              MPI_COMM_WORLD, r);
      });
      if (t.dtype() != wide.dtype()) t.copy_from(wide);
    });
  }

  std::future<void> start_reduce_scatter_sum(const Tensor& all, Tensor mine) override {
    check_parts("reduce_scatter_sum", mine, all);
    check_tensor("reduce_scatter_sum", all, true);
    return enqueue([this, all, mine]() mutable {
      const Tensor wide = all.to(acc_dtype(all.dtype()));
      Tensor sum = mine.dtype() == wide.dtype() ? mine : Tensor::empty(mine.shape(), wide.dtype());
      scatter_sum(wide, sum);
      if (sum.dtype() != mine.dtype()) mine.copy_from(sum);
    });
  }

  std::future<void> start_all_gather(const Tensor& mine, Tensor all) override {
    check_parts("all_gather", mine, all);
    return enqueue([this, mine, all]() mutable {
      const int64_t n = mine.numel();
      if (at(all, rank_ * n) != at(mine, 0)) std::copy_n(at(mine, 0), mine.bytes(), at(all, rank_ * n));
      gather_parts(all, n);
    });
  }

  std::future<void> start_broadcast(Tensor t, int root) override {
    check_tensor("broadcast", t, false);
    LLATTE_CHECK(0 <= root && root < size_, "broadcast: there is no rank ", root, " among ", size_);
    return enqueue([this, t, root]() mutable { broadcast_elements(t, 0, t.numel(), root); });
  }

  std::future<void> start_barrier() override {
    return enqueue(
        [this] { finish_call("barrier", [](MPI_Request* r) { return MPI_Ibarrier(MPI_COMM_WORLD, r); }); });
  }

  void set_timeout(double seconds) override { timeout_ = seconds; }

  bool first_to_fail() override {
    ending_ = true;
    bool first = true;
    enqueue([this, &first] { first = !lower_rank_fails(); }).wait();
    return first;
  }

  // What waits for others gives up; if MPI itself hangs, the launcher sees this process's exit code.
  [[noreturn]] void end_all(int exit_code) override {
    ending_ = true;
    enqueue([exit_code] { MPI_Abort(MPI_COMM_WORLD, exit_code); }).wait_for(std::chrono::seconds(2));
    std::_Exit(exit_code);
  }

 private:
  using Job = std::packaged_task<void()>;

  std::future<void> enqueue(std::function<void()> work) {
    Job job(std::move(work));
    std::future<void> f = job.get_future();
    {
      const std::lock_guard lock(mutex_);
      queue_.push_back(std::move(job));
    }
    changed_.notify_one();
    return f;
  }

  void own_mpi() {
    for (;;) {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [&] { return !queue_.empty() || finishing_; });
      if (queue_.empty()) break;
      Job job = std::move(queue_.front());
      queue_.pop_front();
      lock.unlock();
      job();
    }
    int up = 0;
    MPI_Initialized(&up);
    if (up) MPI_Finalize();
  }

  void start() {
    int provided = 0;
    check(MPI_Init_thread(nullptr, nullptr, MPI_THREAD_FUNNELED, &provided), "MPI_Init");
    LLATTE_CHECK(provided >= MPI_THREAD_FUNNELED, "this MPI works in programs without threads only");
    MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
    check(MPI_Comm_rank(MPI_COMM_WORLD, &rank_), "MPI_Comm_rank");
    check(MPI_Comm_size(MPI_COMM_WORLD, &size_), "MPI_Comm_size");
    MPI_Comm local;
    check(MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, rank_, MPI_INFO_NULL, &local),
          "MPI_Comm_split_type");
    MPI_Comm_rank(local, &local_rank_);
    MPI_Comm_size(local, &local_size_);
    MPI_Comm_free(&local);
  }

  void finish() {
    {
      const std::lock_guard lock(mutex_);
      finishing_ = true;
    }
    changed_.notify_one();
    if (thread_.joinable()) thread_.join();
  }

  template <class Call>
  void finish_call(const char* what, const Call& call) {
    MPI_Request request;
    check(call(&request), what);
    const double timeout = timeout_;
    const auto deadline = Clock::now() + std::chrono::duration<double>(timeout);
    auto nap = std::chrono::microseconds(0);
    for (int done = 0;;) {
      check(MPI_Test(&request, &done, MPI_STATUS_IGNORE), what);
      if (done) return;
      LLATTE_CHECK(!ending_, what, ": not finished, all ranks are being ended");
      LLATTE_CHECK(Clock::now() < deadline, what, ": ", timeout, " s were not enough for ", absent_ranks(),
                   "; see what holds it up there, or raise parallelism.timeout_s");
      std::this_thread::sleep_for(nap);  // 0: lets another thread run
      nap = std::min(nap + std::chrono::microseconds(5), std::chrono::microseconds(200));
    }
  }

  bool lower_rank_fails() {
    for (int r = rank_ + 1; r < size_; ++r) {
      MPI_Request said;
      MPI_Isend(nullptr, 0, MPI_BYTE, r, kFailing, MPI_COMM_WORLD, &said);
    }
    int heard = 0;
    for (const auto until = Clock::now() + kPatience; rank_ > 0 && !heard && Clock::now() < until;) {
      MPI_Iprobe(MPI_ANY_SOURCE, kFailing, MPI_COMM_WORLD, &heard, MPI_STATUS_IGNORE);
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    return heard;
  }

  // The ranks that do not wait as this one does: after a time-out each that waits says so to all others.
  std::string absent_ranks() {
    const auto n = static_cast<size_t>(size_);
    std::vector<MPI_Request> said(n, MPI_REQUEST_NULL), heard(n, MPI_REQUEST_NULL);
    for (int r = 0; r < size_; ++r)
      if (r != rank_) {
        const auto i = static_cast<size_t>(r);
        MPI_Irecv(nullptr, 0, MPI_BYTE, r, kWaiting, MPI_COMM_WORLD, &heard[i]);
        MPI_Isend(nullptr, 0, MPI_BYTE, r, kWaiting, MPI_COMM_WORLD, &said[i]);
      }
    std::vector<int> here(n, 0);
    int all = 0;
    for (const auto until = Clock::now() + kPatience; !all && Clock::now() < until;) {
      all = 1;
      for (size_t r = 0; r < n; ++r) {
        if (!here[r]) MPI_Test(&heard[r], &here[r], MPI_STATUS_IGNORE);
        all = all && here[r];
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    std::string absent;
    for (size_t r = 0; r < n; ++r)
      if (!here[r]) absent += str(absent.empty() ? "rank " : ", rank ", r);
    return absent.empty() ? "the network between the ranks" : absent;
  }

  // call(first element, how many, request) for all n.
  template <class Call>
  void in_pieces(int64_t n, const Call& call) {
    for (int64_t begin = 0; begin < n; begin += piece_)
      finish_call("collective", [&](MPI_Request* r) {
        return call(begin, static_cast<int>(std::min(piece_, n - begin)), r);
      });
  }

  // In one call where the parts are no longer than a piece, else part by part.
  void scatter_sum(const Tensor& all, Tensor& mine) {
    const int64_t n = mine.numel();
    const MPI_Datatype t = mpi_type(all.dtype());
    if (n <= piece_)
      return finish_call("reduce_scatter_sum", [&](MPI_Request* r) {
        return MPI_Ireduce_scatter_block(at(all, 0), at(mine, 0), static_cast<int>(n), t, MPI_SUM,
                                         MPI_COMM_WORLD, r);
      });
    for (int root = 0; root < size_; ++root)
      in_pieces(n, [&](int64_t begin, int count, MPI_Request* r) {
        return MPI_Ireduce(at(all, root * n + begin), at(mine, begin), count, t, MPI_SUM, root,
                           MPI_COMM_WORLD, r);
      });
  }

  void gather_parts(Tensor& all, int64_t n) {
    const MPI_Datatype t = mpi_type(all.dtype());
    if (n <= piece_)
      return finish_call("all_gather", [&](MPI_Request* r) {
        return MPI_Iallgather(MPI_IN_PLACE, 0, t, at(all, 0), static_cast<int>(n), t, MPI_COMM_WORLD, r);
      });
    for (int root = 0; root < size_; ++root) broadcast_elements(all, root * n, n, root);
  }

  void broadcast_elements(Tensor& t, int64_t first, int64_t n, int root) {
    in_pieces(n, [&](int64_t begin, int count, MPI_Request* r) {
      return MPI_Ibcast(at(t, first + begin), count, mpi_type(t.dtype()), root, MPI_COMM_WORLD, r);
    });
  }

  void check_parts(const char* op, const Tensor& mine, const Tensor& all) const {
    check_tensor(op, mine, false);
    check_tensor(op, all, false);
    LLATTE_CHECK(all.dtype() == mine.dtype() && all.numel() == size_ * mine.numel(), op, ": ", size_,
                 " ranks with parts of ", mine.numel(), " ", name(mine.dtype()), " do not make ", all.numel(),
                 " ", name(all.dtype()));
  }

  static constexpr int kWaiting = 1, kFailing = 2;  // tags of messages between single ranks
  static constexpr auto kPatience = std::chrono::seconds(3);
  std::atomic<double> timeout_{600};
  std::atomic<bool> ending_{false};
  const int64_t piece_;  // elements of one call: MPI counts in int
  int rank_ = 0, size_ = 1, local_rank_ = 0, local_size_ = 1;
  std::mutex mutex_;  // of queue_ and finishing_
  std::condition_variable changed_;
  std::deque<Job> queue_;
  bool finishing_ = false;
  std::thread thread_;  // last: it uses the others
};

}  // namespace

std::unique_ptr<Comm> make_mpi_comm(int64_t piece) { return std::make_unique<Mpi>(piece); }

}  // namespace llatte
