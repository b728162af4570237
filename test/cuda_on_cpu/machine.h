// What the parts of the stand-in GPU know of one another.
//   block.cpp    runs one block of threads          memory.cpp   the device's memory, apart from the host's
//   stream.cpp   what runs when                     kernel.cpp   a launch: its limits, its blocks
//   runtime.cpp  the functions of cuda_runtime.h        nccl.cpp     what several processes do together
// One lock around everything (lock()): one OS thread at a time plays the device.
#pragma once
#include <cuda_runtime.h>
#include <memory>
#include <mutex>
#include <sstream>
#include <utility>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(at, bytes) (static_cast<void>(at), static_cast<void>(bytes))
#define ASAN_UNPOISON_MEMORY_REGION(at, bytes) (static_cast<void>(at), static_cast<void>(bytes))
#endif

inline std::ostream& operator<<(std::ostream& os, uint3 v) {
  return os << '(' << v.x << ',' << v.y << ',' << v.z << ')';
}

namespace cuda_on_cpu {

#if defined(__SANITIZE_ADDRESS__)
constexpr bool kAsan = true;
#else
constexpr bool kAsan = false;
#endif

// A recursive mutex that its holder can hand over for a while, however often it has locked it.
class DeviceLock {
 public:
  void lock() { mutex_.lock(), ++depth_; }
  void unlock() { --depth_, mutex_.unlock(); }
  template <class Nap>
  void nap(Nap&& nap) {
    const int depth = depth_;
    for (int i = 0; i < depth; ++i) unlock();
    nap();
    for (int i = 0; i < depth; ++i) lock();
  }

 private:
  std::recursive_mutex mutex_;
  int depth_ = 0;
};
DeviceLock& device_lock();
inline std::unique_lock<DeviceLock> lock() { return std::unique_lock(device_lock()); }

template <class... Parts>
std::string sentence(const Parts&... parts) {
  std::ostringstream os;
  (os << ... << parts);
  return os.str();
}

// Numbers that depend on LLATTE_CUDA_SEED (0 if unset) and the order of calls alone.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 0x9e3779b97f4a7c15u + 0x2545f4914f6cdd1du) {}
  uint32_t next() {  // splitmix64
    uint64_t z = (state_ += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return static_cast<uint32_t>(z >> 32);
  }
  uint64_t below(uint64_t n) { return n >> 32 ? next() % n : (uint64_t(next()) * n) >> 32; }

 private:
  uint64_t state_;
};
uint64_t seed();

// Each of 0..n-1 once: start, start + step, start + 2 step ... mod n, with a random start and a step that is
// coprime to n.
class Shuffled {
 public:
  Shuffled(uint64_t n, Random& random);
  uint64_t next() {
    const uint64_t now = at_;
    at_ = at_ + step_ >= n_ ? at_ + step_ - n_ : at_ + step_;
    return now;
  }

 private:
  uint64_t n_, at_ = 0, step_ = 1;
};

// ---- block.cpp
struct Launch {
  std::string name;
  dim3 grid, block;
  size_t shared_bytes;
  std::function<void()> thread;
};
void run_block(const Launch& launch, uint64_t seed);  // blockIdx, blockDim, gridDim are set; throws a Fault
bool current_thread(uint3& thread);                   // of the block that is running, if one is
bool in_guard_page_of_a_stack(const void* address);

// ---- kernel.cpp
std::string& running_kernel();  // "" between kernels

// ---- memory.cpp
constexpr uint16_t kPoison = 0x7ff7;  // NaN as f32, f64 and bf16; as an integer far outside of everything
constexpr uint16_t kGuard = 0x7f81;   // of redzones; and the 60 values after it
void fill(void* at, size_t bytes, uint16_t pattern);
bool holds(const void* at, size_t bytes, uint16_t pattern);
constexpr size_t kRedzone = 256;

// While one exists, kernels and copies may touch device memory. Without one a touch is a trap with a
// sentence.
struct DeviceAccess {
  DeviceAccess();
  ~DeviceAccess();
};
void* allocate_device(size_t bytes);             // null: no room
std::function<void()> release_device(void* at);  // forgotten at once; what it returns frees the bytes
void* allocate_pinned(size_t bytes);
void release_pinned(void* at);
bool is_device(const void* at);                // in the device's address range
bool is_pinned(const void* at, size_t bytes);  // throws where only a part is
void check_device_range(const std::string& what, const void* at,
                        size_t bytes);  // throws if not in one allocation
void check_kernel_pointer(const std::string& kernel, const PointerArgument& argument);
void check_redzones(const std::string& kernel);
size_t device_bytes_in_use();
size_t device_bytes_reserved();  // the most in use since trim_reserved(), in whole huge pages
void trim_reserved();
size_t device_capacity();

// ---- stream.cpp
using Work = std::function<void()>;
void enqueue(cudaStream_t stream, Work work);
void keep_up(cudaStream_t stream);  // after a launch: runs something if too much is waiting
void wait_for(cudaStream_t stream);
void wait_for_everything();
inline cudaStream_t default_stream() { return nullptr; }

}  // namespace cuda_on_cpu
