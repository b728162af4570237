// Collectives of many processes: of tensors on the CPU by MPI, in the thread that owns it; of tensors on the
// GPU by NCCL (cuda_comm.h), whose group is made at the first of them. MPI's thread watches those under the
// same time-out. What it finds wrong it cannot hand to the rank, which may be in a wait for its device: it
// tells on_failure's function and ends all ranks.
#include <algorithm>
#include <cstdio>
#include "tensor/comm.h"
#include "tensor/comm_mpi_thread.h"
#include "tensor/cuda_comm.h"

namespace llatte {
namespace {

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

bool on_device(const Tensor& t) { return t.device() == Device::cuda; }

void check_tensor(const char* op, const Tensor& t, bool sums) {
  LLATTE_CHECK(t.is_contiguous(), op, " takes contiguous tensors, not ", t.shape(), " with strides ",
               t.strides(), "; call contiguous() first");
  LLATTE_CHECK(!sums || is_float(t.dtype()), op, " takes floats, not ", name(t.dtype()));
}

// `count` elements of each of the parts, `part` elements long, that lie one after the other. MPI keeps the
// type until what uses it is done.
class OfEachPart {
 public:
  OfEachPart(int count, int64_t part, MPI_Datatype element) {
    MPI_Aint lower = 0, size = 0;
    MPI_Type_get_extent(element, &lower, &size);
    MPI_Datatype some;
    MPI_Type_contiguous(count, element, &some);
    MPI_Type_create_resized(some, 0, static_cast<MPI_Aint>(part) * size, &type_);
    MPI_Type_free(&some);
    MPI_Type_commit(&type_);
  }
  ~OfEachPart() { MPI_Type_free(&type_); }
  OfEachPart(const OfEachPart&) = delete;
  OfEachPart& operator=(const OfEachPart&) = delete;
  operator MPI_Datatype() const { return type_; }

 private:
  MPI_Datatype type_ = MPI_DATATYPE_NULL;
};

class Mpi final : public Comm {
 public:
  explicit Mpi(int64_t piece) : piece_(piece) {}

  int rank() const override { return mpi_.rank(); }
  int size() const override { return mpi_.size(); }
  int local_rank() const override { return mpi_.local_rank(); }
  int local_size() const override { return mpi_.local_size(); }

  std::future<void> start_all_reduce_sum(Tensor t) override {
    check_tensor("all_reduce_sum", t, true);
    if (on_device(t)) return device().all_reduce_sum(t);
    return mpi_.enqueue([this, t]() mutable {
      const int64_t n = t.numel(), part = (n + size() - 1) / size();
      const DType acc = acc_dtype(t.dtype());
      const Tensor flat = t.reshape({n});
      const bool in_place = t.dtype() == acc && part * size() == n;
      Tensor all = in_place ? flat : Tensor::zeros({part * size()}, acc);
      Tensor values = all.slice(0, 0, n), mine = all.slice(0, rank() * part, (rank() + 1) * part);
      if (!in_place) values.copy_from(flat);
      sum_parts("all_reduce_sum", all, mine);
      gather_parts("all_reduce_sum", all);
      if (!in_place) t.copy_from(values.reshape(t.shape()));
    });
  }

  std::future<void> start_reduce_scatter_sum(const Tensor& all, Tensor mine) override {
    check_parts("reduce_scatter_sum", mine, all);
    check_tensor("reduce_scatter_sum", all, true);
    if (on_device(all)) return device().reduce_scatter_sum(all, mine);
    return mpi_.enqueue([this, all, mine]() mutable {
      const Tensor wide = all.to(acc_dtype(all.dtype()));  // `all` itself unless it is bf16
      Tensor sum = mine.dtype() == wide.dtype() ? mine : Tensor::empty(mine.shape(), wide.dtype());
      sum_parts("reduce_scatter_sum", wide, sum);
      if (sum.dtype() != mine.dtype()) mine.copy_from(sum);
    });
  }

  std::future<void> start_all_gather(const Tensor& mine, Tensor all) override {
    check_parts("all_gather", mine, all);
    if (on_device(all)) return device().all_gather(mine, all);
    return mpi_.enqueue([this, mine, all]() mutable {
      const int64_t n = mine.numel();
      if (at(all, rank() * n) != at(mine, 0)) std::copy_n(at(mine, 0), mine.bytes(), at(all, rank() * n));
      gather_parts("all_gather", all);
    });
  }

  std::future<void> start_broadcast(Tensor t, int root) override {
    check_tensor("broadcast", t, false);
    LLATTE_CHECK(0 <= root && root < size(), "broadcast: there is no rank ", root, " among ", size());
    if (on_device(t)) return device().broadcast(t, root);
    return mpi_.enqueue([this, t, root]() mutable {
      for (const Piece& p : pieces(t.numel()))
        mpi_.finish("broadcast", [&](MPI_Request* r) {
          return MPI_Ibcast(at(t, p.begin), p.count, mpi_type(t.dtype()), root, MPI_COMM_WORLD, r);
        });
    });
  }

  std::future<void> start_barrier() override {
    return mpi_.enqueue(
        [this] { mpi_.finish("barrier", [](MPI_Request* r) { return MPI_Ibarrier(MPI_COMM_WORLD, r); }); });
  }

  void set_timeout(double seconds) override { mpi_.set_timeout(seconds); }
  void on_failure(std::function<void(const std::string&)> tell) override { tell_ = std::move(tell); }
  bool first_to_fail() override { return mpi_.first_to_fail(); }
  [[noreturn]] void end_all(int exit_code) override { mpi_.end_all(exit_code); }

 private:
  // ---- tensors on the GPU
  cuda::Collectives& device() {
    if (device_) return *device_;
    LLATTE_CHECK(cuda::why_no_collectives().empty(), cuda::why_no_collectives());
    Tensor group = Tensor::zeros({cuda::kGroupWords}, DType::i32);
    if (rank() == 0) group = Tensor::from(cuda::new_collectives(), {cuda::kGroupWords});
    broadcast(group, 0);
    device_ = cuda::make_collectives(
        group.to_vector<int32_t>(), rank(), size(),
        [this](const char* what, std::function<bool()> finished) { watch(what, std::move(finished)); });
    return *device_;
  }

  void watch(const char* what, std::function<bool()> finished) {
    mpi_.enqueue([this, what, finished = std::move(finished)] {
      try {
        mpi_.wait_until(what, finished);
      } catch (const std::exception& e) {
        if (mpi_.ending()) return;
        tell_(e.what());
        mpi_.end_all(1);
      }
    });
  }

  // ---- tensors on the CPU
  struct Piece {
    int64_t begin;
    int count;
  };
  std::vector<Piece> pieces(int64_t n) const {
    std::vector<Piece> out;
    for (int64_t begin = 0; begin < n; begin += piece_)
      out.push_back({begin, static_cast<int>(std::min(piece_, n - begin))});
    return out;
  }

  // mine := part rank() of the sum of `all`, of which it may be a view. Each rank gets its part from every
  // other and adds them up: as many bytes as a ring moves, and one order of summation, that of the ranks,
  // whatever MPI would have chosen (Open MPI's non-blocking sums of two ranks move twice as much).
  void sum_parts(const char* op, const Tensor& all, Tensor& mine) {
    const int64_t n = mine.numel();
    const MPI_Datatype t = mpi_type(all.dtype());
    Tensor theirs = Tensor::empty({size(), std::min(n, piece_)}, all.dtype());
    for (const Piece& p : pieces(n)) {
      const OfEachPart some(p.count, n, t);
      mpi_.finish(op, [&](MPI_Request* r) {
        return MPI_Ialltoall(at(all, p.begin), 1, some, at(theirs, 0), p.count, t, MPI_COMM_WORLD, r);
      });
      Tensor sum = mine.slice(0, p.begin, p.begin + p.count);
      if (all.dtype() == DType::f64) add_up<double>(theirs, sum);
      else add_up<float>(theirs, sum);
    }
  }

  // In MPI's thread: the cores of a kernel are busy with the rank's work.
  template <class T>
  void add_up(const Tensor& theirs, Tensor& sum) const {
    const int64_t n = sum.numel();
    const T* x = theirs.data<T>();
    T* y = sum.data<T>();
    std::copy_n(x, n, y);
    for (int r = 1; r < size(); ++r)
      for (int64_t i = 0; i < n; ++i) y[i] += x[r * n + i];
  }

  // From part r of `all` on rank r.
  void gather_parts(const char* op, Tensor& all) {
    const int64_t n = all.numel() / size();
    const MPI_Datatype t = mpi_type(all.dtype());
    for (const Piece& p : pieces(n)) {
      const OfEachPart some(p.count, n, t);
      mpi_.finish(op, [&](MPI_Request* r) {
        return MPI_Iallgather(MPI_IN_PLACE, 0, t, at(all, p.begin), 1, some, MPI_COMM_WORLD, r);
      });
    }
  }

  void check_parts(const char* op, const Tensor& mine, const Tensor& all) const {
    check_tensor(op, mine, false);
    check_tensor(op, all, false);
    LLATTE_CHECK(all.dtype() == mine.dtype() && all.numel() == size() * mine.numel(), op, ": ", size(),
                 " ranks with parts of ", mine.numel(), " ", name(mine.dtype()), " do not make ", all.numel(),
                 " ", name(all.dtype()));
    LLATTE_CHECK(all.device() == mine.device(), op, ": the parts are on ", name(mine.device()),
                 ", the whole is on ", name(all.device()), "; move one of them");
  }

  const int64_t piece_;  // elements of one call: MPI counts in int
  std::function<void(const std::string&)> tell_ = [this](const std::string& sentence) {
    std::fprintf(stderr, "rank %d: %s\n", rank(), sentence.c_str());
  };
  std::unique_ptr<cuda::Collectives> device_;  // null before the first
  MpiThread mpi_;                              // last: its thread watches what the others started
};

}  // namespace

std::unique_ptr<Comm> make_mpi_comm(int64_t piece) { return std::make_unique<Mpi>(piece); }

}  // namespace llatte
