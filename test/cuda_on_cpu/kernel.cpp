// A launch: its limits, which are those of sm_90; its name; its blocks, one after the other in random order.
#include <map>
#include "machine.h"
#include "nvtx3/nvToolsExt.h"
#include "streams.h"

namespace cuda_on_cpu {
namespace {

constexpr size_t kSharedDefault = 48 * 1024, kSharedMost = 227 * 1024;

thread_local std::vector<std::string> ranges;

std::map<const void*, size_t>& shared_allowed() {
  static auto* m = new std::map<const void*, size_t>;
  return *m;
}

bool within(dim3 v, uint64_t x, uint64_t y, uint64_t z) {
  return v.x > 0 && v.y > 0 && v.z > 0 && v.x <= x && v.y <= y && v.z <= z;
}

cudaError_t refusal(const cudaLaunchConfig_t& c, const void* kernel) {
  if (!within(c.gridDim, 0x7fffffff, 65535, 65535) || !within(c.blockDim, 1024, 1024, 64) ||
      uint64_t(c.blockDim.x) * c.blockDim.y * c.blockDim.z > 1024)
    return cudaErrorInvalidConfiguration;
  const auto asked = shared_allowed().find(kernel);
  const size_t allowed =
      asked == shared_allowed().end() ? kSharedDefault : std::max(asked->second, kSharedDefault);
  return c.dynamicSmemBytes > allowed ? cudaErrorInvalidValue : cudaSuccess;
}

void run(const Launch& launch, uint64_t number) {
  running_kernel() = launch.name;
  gridDim = launch.grid, blockDim = launch.block;
  Random random(seed() * 1000003 + number);
  const uint64_t blocks = uint64_t(gridDim.x) * gridDim.y * gridDim.z;
  Shuffled order(blocks, random);
  for (uint64_t i = 0; i < blocks; ++i) {
    const uint64_t b = order.next();
    blockIdx = {static_cast<unsigned>(b % gridDim.x), static_cast<unsigned>(b / gridDim.x % gridDim.y),
                static_cast<unsigned>(b / gridDim.x / gridDim.y)};
    run_block(launch, random.next());
  }
  check_redzones(launch.name);
  running_kernel().clear();
}

}  // namespace

std::string& running_kernel() {
  static auto* name = new std::string;
  return *name;
}

cudaError_t launch(const cudaLaunchConfig_t& config, const void* kernel, std::function<void()> thread,
                   const std::vector<PointerArgument>& pointers) {
  const auto guard = lock();
  static uint64_t launches = 0;
  if (const cudaError_t error = refusal(config, kernel)) return error;
  const Launch launch{ranges.empty() ? "without a name" : ranges.back(), config.gridDim, config.blockDim,
                      config.dynamicSmemBytes, std::move(thread)};
  for (const PointerArgument& p : pointers) check_kernel_pointer(launch.name, p);
  enqueue(config.stream, [launch, number = launches++] { run(launch, number); });
  keep_up(config.stream);
  return cudaSuccess;
}

}  // namespace cuda_on_cpu

cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute, int value) {
  const auto guard = cuda_on_cpu::lock();
  if (value < 0 || size_t(value) > cuda_on_cpu::kSharedMost) return cudaErrorInvalidValue;
  cuda_on_cpu::shared_allowed()[kernel] = static_cast<size_t>(value);
  return cudaSuccess;
}

int nvtxRangePushA(const char* name) {
  cuda_on_cpu::ranges.emplace_back(name);
  return static_cast<int>(cuda_on_cpu::ranges.size()) - 1;
}
int nvtxRangePop() {
  if (cuda_on_cpu::ranges.empty()) return -1;
  cuda_on_cpu::ranges.pop_back();
  return static_cast<int>(cuda_on_cpu::ranges.size());
}
