// What stands in for tensor/cuda/nccl.cu in a build without NCCL, or without CUDA: refuses with the cure.
#include "tensor/cuda_comm.h"

namespace llatte::cuda {

std::string why_no_collectives() {
  return "this build has no NCCL, by which ranks share tensors on GPUs; install it (libnccl-dev) and build "
         "again (make CUDA=1), or use --device cpu";
}
std::vector<int32_t> new_collectives() { LLATTE_FAIL(why_no_collectives()); }
std::unique_ptr<Collectives> make_collectives(const std::vector<int32_t>&, int, int, Watch) {
  LLATTE_FAIL(why_no_collectives());
}

}  // namespace llatte::cuda
