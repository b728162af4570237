#include "tensor/comm_mpi_thread.h"
#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <vector>
#include "tensor/check.h"

namespace llatte {
namespace {

using Clock = std::chrono::steady_clock;

constexpr auto kPatience = std::chrono::seconds(3);  // to hear which ranks wait, or fail, too
constexpr int kWaiting = 1, kFailing = 2;            // tags of messages between single ranks

}  // namespace

void check_mpi(int status, const char* what) {
  if (status == MPI_SUCCESS) return;
  char text[MPI_MAX_ERROR_STRING];
  int n = 0;
  MPI_Error_string(status, text, &n);
  LLATTE_FAIL(what, ": ", std::string(text, static_cast<size_t>(n)));
}

MpiThread::MpiThread() : thread_([this] { own_mpi(); }) {
  try {
    enqueue([this] { start(); }).get();
  } catch (...) {
    stop();
    throw;
  }
}

MpiThread::~MpiThread() { stop(); }

std::future<void> MpiThread::enqueue(std::function<void()> work) {
  Job job(std::move(work));
  std::future<void> f = job.get_future();
  {
    const std::lock_guard lock(mutex_);
    queue_.push_back(std::move(job));
  }
  changed_.notify_one();
  return f;
}

bool MpiThread::first_to_fail() {
  ending_ = true;
  bool first = true;
  const auto ask = [this, &first] { first = !lower_rank_fails(); };
  if (std::this_thread::get_id() == thread_.get_id()) ask();
  else enqueue(ask).wait();
  return first;
}

void MpiThread::end_all(int exit_code) {
  ending_ = true;
  const auto abort = [exit_code] { MPI_Abort(MPI_COMM_WORLD, exit_code); };
  if (std::this_thread::get_id() == thread_.get_id()) abort();
  else enqueue(abort).wait_for(std::chrono::seconds(2));
  std::_Exit(exit_code);
}

// ---- the thread
void MpiThread::own_mpi() {
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

void MpiThread::start() {
  // Open MPI has one TCP connection between two hosts, on which a request for more waits behind the data that
  // goes the same way: with both directions in use it gets half of the link's rate, with two connections all.
  setenv("OMPI_MCA_btl_tcp_links", "2", 0);
  int provided = 0;
  check_mpi(MPI_Init_thread(nullptr, nullptr, MPI_THREAD_FUNNELED, &provided), "MPI_Init");
  LLATTE_CHECK(provided >= MPI_THREAD_FUNNELED, "this MPI works in programs without threads only");
  MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
  check_mpi(MPI_Comm_rank(MPI_COMM_WORLD, &rank_), "MPI_Comm_rank");
  check_mpi(MPI_Comm_size(MPI_COMM_WORLD, &size_), "MPI_Comm_size");
  MPI_Comm local;
  check_mpi(MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, rank_, MPI_INFO_NULL, &local),
            "MPI_Comm_split_type");
  MPI_Comm_rank(local, &local_rank_);
  MPI_Comm_size(local, &local_size_);
  MPI_Comm_free(&local);
}

void MpiThread::stop() {
  {
    const std::lock_guard lock(mutex_);
    finishing_ = true;
  }
  changed_.notify_one();
  if (thread_.joinable()) thread_.join();
}

void MpiThread::wait_until(const char* what, const std::function<bool()>& done) {
  const double timeout = timeout_;
  const auto deadline = Clock::now() + std::chrono::duration<double>(timeout);
  auto nap = std::chrono::microseconds(0);
  while (!done()) {
    LLATTE_CHECK(!ending_, what, ": not finished, all ranks are being ended");
    LLATTE_CHECK(Clock::now() < deadline, what, ": ", timeout, " s were not enough for ", absent_ranks(),
                 "; see what holds it up there, or raise parallelism.timeout_s");
    std::this_thread::sleep_for(nap);  // 0: lets another thread run
    nap = std::min(nap + std::chrono::microseconds(5), std::chrono::microseconds(200));
  }
}

// Every rank that fails says so to those above it.
bool MpiThread::lower_rank_fails() {
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
std::string MpiThread::absent_ranks() {
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

}  // namespace llatte
