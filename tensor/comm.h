// Collectives: what data-parallel training needs of many processes ("ranks").
//   1. Every rank calls the same functions in the same order with tensors of the same shape and dtype.
//   2. start_* returns at once; the work is done in the order in which it was started, while the rank
//      computes. Until its future is got, nobody touches the tensors. The future throws what went wrong.
//   3. All ranks get the same bits from a sum; of tensors on the CPU it is added up in the order of the
//   ranks.
//      Sums over bf16 are taken in f32 and rounded once.
//   4. One rank is the identity: nothing above asks whether there are more.
//   5. Tensors may be on the GPU. Then nothing waits on the host, a future neither (cuda_comm.h), so what
//      goes wrong while the device works is thrown nowhere: on_failure's function is told, and all ranks are
//      ended.
// Tensors are contiguous, of floats; all_gather and broadcast move i32 too.
#pragma once
#include <functional>
#include <future>
#include <memory>
#include <string>
#include <vector>
#include "tensor/tensor.h"

namespace llatte {

class Comm {
 public:
  virtual ~Comm() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;
  virtual int local_rank() const = 0;  // among the ranks of this machine
  virtual int local_size() const = 0;

  // t := sum over ranks of t
  virtual std::future<void> start_all_reduce_sum(Tensor t) = 0;
  // mine := part rank() of the sum over ranks of `all`, whose size() parts lie one after the other
  virtual std::future<void> start_reduce_scatter_sum(const Tensor& all, Tensor mine) = 0;
  // part r of all := `mine` of rank r. mine may be a view of its own part.
  virtual std::future<void> start_all_gather(const Tensor& mine, Tensor all) = 0;
  virtual std::future<void> start_broadcast(Tensor t, int root) = 0;
  virtual std::future<void> start_barrier() = 0;
  // How long a collective may take before the other ranks are taken for dead.
  virtual void set_timeout(double seconds) = 0;
  // tell(sentence), from any thread, before a collective of the device that failed ends all ranks; to stderr
  // if unset. Before the first such collective.
  virtual void on_failure(std::function<void(const std::string&)> tell) = 0;
  // For a rank that fails, as often many do alike: true if it is for this one to say so, because no lower
  // rank fails within seconds. What was started before is given up.
  virtual bool first_to_fail() = 0;
  // Ends all ranks, this one too. For a rank that cannot go on: the others would wait for it.
  [[noreturn]] virtual void end_all(int exit_code) = 0;

  void all_reduce_sum(Tensor t) { start_all_reduce_sum(std::move(t)).get(); }
  void reduce_scatter_sum(const Tensor& all, Tensor mine) {
    start_reduce_scatter_sum(all, std::move(mine)).get();
  }
  void all_gather(const Tensor& mine, Tensor all) { start_all_gather(mine, std::move(all)).get(); }
  void broadcast(Tensor t, int root) { start_broadcast(std::move(t), root).get(); }
  void barrier() { start_barrier().get(); }
};

// The ranks that mpirun or srun started with this process, or this one alone. An Error where many were
// started but this build has no MPI.
std::unique_ptr<Comm> make_comm();
bool started_together();  // whether there are several, as the launcher's environment has it

// ---- for all ranks to call alike
// The numbers of every rank, in the order of ranks: what is added up from these is the same on all of them.
std::vector<std::vector<double>> of_all_ranks(const std::vector<double>& mine, Comm& comm);
bool any_rank(bool mine, Comm& comm);
// Calls f on rank 0, and when that is done on the others: what it writes, they find.
template <class F>
void rank_0_first(Comm& comm, const F& f) {
  if (comm.rank() == 0) f();
  comm.barrier();
  if (comm.rank() > 0) f();
}

}  // namespace llatte
