// One rank; and which ranks there are.
#include "tensor/comm.h"
#include <algorithm>
#include <cstdlib>
#include <string>

namespace llatte {
#ifdef LLATTE_MPI
// comm_mpi.cpp; piece: how many elements one call of MPI moves at most, so that its int counts suffice
std::unique_ptr<Comm> make_mpi_comm(int64_t piece = int64_t{1} << 26);
#endif

namespace {

std::future<void> done() {
  std::promise<void> p;
  p.set_value();
  return p.get_future();
}

class Single final : public Comm {
 public:
  int rank() const override { return 0; }
  int size() const override { return 1; }
  int local_rank() const override { return 0; }
  int local_size() const override { return 1; }
  std::future<void> start_all_reduce_sum(Tensor) override { return done(); }
  std::future<void> start_reduce_scatter_sum(const Tensor& all, Tensor mine) override {
    return move(all, mine);
  }
  std::future<void> start_all_gather(const Tensor& mine, Tensor all) override { return move(mine, all); }
  std::future<void> start_broadcast(Tensor, int) override { return done(); }
  std::future<void> start_barrier() override { return done(); }
  void set_timeout(double) override {}
  void on_failure(std::function<void(const std::string&)>) override {}
  bool first_to_fail() override { return true; }
  [[noreturn]] void end_all(int exit_code) override { std::_Exit(exit_code); }

 private:
  static std::future<void> move(const Tensor& from, Tensor& to) {
    if (from.raw() != to.raw()) to.copy_from(from);
    return done();
  }
};

}  // namespace

// Open MPI, MPICH and Intel MPI (PMI), Slurm's srun. PMIx by itself tells a process its rank alone.
bool started_together() {
  for (const char* name : {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"})
    if (const char* value = std::getenv(name)) return std::atoi(value) > 1;
  return std::getenv("PMIX_RANK") != nullptr;
}

std::vector<std::vector<double>> of_all_ranks(const std::vector<double>& mine, Comm& comm) {
  if (comm.size() == 1) return {mine};
  const auto n = static_cast<int64_t>(mine.size());
  Tensor all = Tensor::empty({comm.size() * n}, DType::f64);
  comm.all_gather(Tensor::from(mine, {n}), all);
  std::vector<std::vector<double>> out;
  for (int64_t r = 0; r < comm.size(); ++r)
    out.push_back(all.slice(0, r * n, (r + 1) * n).to_vector<double>());
  return out;
}

bool any_rank(bool mine, Comm& comm) {
  const auto all = of_all_ranks({mine ? 1.0 : 0.0}, comm);
  return std::any_of(all.begin(), all.end(), [](const auto& of_rank) { return of_rank[0] != 0; });
}

std::unique_ptr<Comm> make_comm() {
  if (!started_together()) return std::make_unique<Single>();
#ifdef LLATTE_MPI
  return make_mpi_comm();
#else
  LLATTE_FAIL(
      "several processes were started together, but this build has no MPI; install it "
      "(libopenmpi-dev) and build again");
#endif
}

}  // namespace llatte
