// Collectives of tensors on the GPU, by NCCL: what tensor/comm_mpi.cpp does for those on the CPU, with the
// laws of comm.h and these:
//   1. They run on a stream of their own, in the order in which they were started. A collective waits for all
//      that was asked of the device before it was started; getting its future makes all that is asked of the
//      device from then on wait for it. The host waits in neither. Sums over bf16 alone, which go by f32
//      copies, run in the order of everything else.
//   2. Until it is done its tensors are kept, even if its future is dropped.
//   3. Each is shown to `watch` before it is started, with a function that says whether the device is through
//      with it (or throws), from any thread and without a wait. Who watches must end the process where that
//      stays false: a rank may already be waiting for its device, and nothing would wake it.
// A build without NCCL has these functions too (no_nccl.cpp).
#pragma once
#include <functional>
#include <future>
#include <memory>
#include <string>
#include <vector>
#include "tensor/tensor.h"

namespace llatte::cuda {

class Collectives {
 public:
  virtual ~Collectives() = default;  // all that was started is over, or given up
  virtual std::future<void> all_reduce_sum(Tensor t) = 0;
  virtual std::future<void> reduce_scatter_sum(const Tensor& all, Tensor mine) = 0;
  virtual std::future<void> all_gather(const Tensor& mine, Tensor all) = 0;
  virtual std::future<void> broadcast(Tensor t, int root) = 0;
};

using Watch = std::function<void(const char* what, std::function<bool()> finished)>;

std::string why_no_collectives();  // "" where there are; else one sentence with the cure
constexpr int64_t kGroupWords = 32;
std::vector<int32_t> new_collectives();  // names a group; one rank asks for it and tells the others
std::unique_ptr<Collectives> make_collectives(const std::vector<int32_t>& group, int rank, int size,
                                              Watch watch);

}  // namespace llatte::cuda
