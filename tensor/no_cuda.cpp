// What stands in for tensor/cuda in a build without it: every function of the table and of cuda.h, each
// refusing with the cure. Nothing but the linker knows which of the two a program has.
#define LLATTE_WITHOUT_CUDA
#pragma GCC diagnostic ignored "-Wunused-parameter"
#include "tensor/cuda.h"
#include "tensor/kernels.h"

namespace llatte::cuda {

bool available() { return false; }
std::string why_unavailable() { return "this build has no CUDA (make CUDA=1)"; }
std::string device_name() { LLATTE_FAIL(why_unavailable()); }
void* allocate(size_t) { LLATTE_FAIL("allocate: ", why_unavailable()); }
void release(void*, size_t) noexcept {}
AllocStats alloc_stats() { return {}; }
void reset_alloc_stats() {}
void release_cached_blocks() {}
void upload(void*, const void*, size_t) { LLATTE_FAIL("upload: ", why_unavailable()); }
void download(void*, const void*, size_t) { LLATTE_FAIL("download: ", why_unavailable()); }
void synchronize() {}
int64_t waits() { return 0; }

}  // namespace llatte::cuda
