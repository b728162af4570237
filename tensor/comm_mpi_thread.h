// The one thread that owns MPI: it starts it, does the queue's work in order, and ends it, so MPI never sees
// two threads and the rank computes meanwhile. It polls, with naps that grow, for two reasons: a blocking
// call would burn a core that computes, and would wait for a dead rank for ever. Private to
// tensor/comm_mpi*.cpp.
#pragma once
#include <mpi.h>
#include <atomic>
#include <condition_variable>
#include <deque>
#include <functional>
#include <future>
#include <mutex>
#include <string>
#include <thread>

namespace llatte {

void check_mpi(int status, const char* what);

class MpiThread {
 public:
  MpiThread();   // starts MPI
  ~MpiThread();  // when the queue's work is done
  int rank() const { return rank_; }
  int size() const { return size_; }
  int local_rank() const { return local_rank_; }
  int local_size() const { return local_size_; }

  std::future<void> enqueue(std::function<void()> work);
  void set_timeout(double seconds) { timeout_ = seconds; }
  // As in comm.h.
  bool first_to_fail();
  // What waits for others gives up; if MPI itself hangs, the launcher sees this process's exit code.
  [[noreturn]] void end_all(int exit_code);
  bool ending() const { return ending_; }

  // ---- inside of the queue's work
  // Polls until done(). An Error after the time-out, naming the ranks that do not wait for this.
  void wait_until(const char* what, const std::function<bool()>& done);
  // call(MPI_Request*), until that is done.
  template <class Call>
  void finish(const char* what, const Call& call) {
    MPI_Request request;
    check_mpi(call(&request), what);
    wait_until(what, [&] {
      int done = 0;
      check_mpi(MPI_Test(&request, &done, MPI_STATUS_IGNORE), what);
      return done != 0;
    });
  }

 private:
  using Job = std::packaged_task<void()>;

  void own_mpi();
  void start();
  void stop();
  bool lower_rank_fails();
  std::string absent_ranks();

  std::atomic<double> timeout_{600};
  std::atomic<bool> ending_{false};
  int rank_ = 0, size_ = 1, local_rank_ = 0, local_size_ = 1;
  std::mutex mutex_;  // of queue_ and finishing_
  std::condition_variable changed_;
  std::deque<Job> queue_;
  bool finishing_ = false;
  std::thread thread_;  // last: it uses the others
};

}  // namespace llatte
