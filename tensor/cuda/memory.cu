// The device's memory, its one stream, and the way of bytes to it and back.
//   1. Blocks come from the driver's stream-ordered pool, which keeps what is freed (its release threshold is
//      "never") and hands it out again in the order of the stream, without a wait.
//   2. Bytes cross through pinned buffers, so a copy never waits for a page: an upload waits only when it is
//      kStaging ahead of the device, a download for its own bytes.
//   3. What kernels reported (error.h) is read back with every download and at synchronize(), and thrown.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <mutex>
#include "tensor/cuda.h"
#include "tensor/cuda/error.h"

namespace llatte::cuda {
namespace {

constexpr size_t kStaging = size_t(4) << 20;  // bytes of a pinned buffer
constexpr size_t kBuffers = 3;                // one fills while others are on their way

// What the driver says about devices, asked once.
struct Found {
  cudaError_t status = cudaSuccess;
  int count = 0;
  bool usable() const { return status == cudaSuccess && count > 0; }
};
const Found& found() {
  static const Found f = [] {
    Found r;
    r.status = cudaGetDeviceCount(&r.count);
    return r;
  }();
  return f;
}

// Pinned memory, and the event after which its bytes have been moved.
struct Pinned {
  char* bytes = nullptr;
  cudaEvent_t moved{};
  size_t used = 0;

  void make() {
    LLATTE_CUDA_CHECK("pinned memory", cudaMallocHost(reinterpret_cast<void**>(&bytes), kStaging));
    LLATTE_CUDA_CHECK("pinned memory", cudaEventCreateWithFlags(&moved, cudaEventDisableTiming));
  }
  void mark_moved() { LLATTE_CUDA_CHECK("copy", cudaEventRecord(moved, stream())); }
  void wait() { LLATTE_CUDA_CHECK("copy", cudaEventSynchronize(moved)); }
};

// What the process has of the device besides its tensors. Made at first use, never destroyed: tensors in
// static storage may be released after it would be.
struct Context {
  std::mutex mutex;
  cudaStream_t stream{};
  cudaMemPool_t pool{};
  std::array<Pinned, kBuffers> up, down;
  size_t filling = 0;  // of `up`
  ErrorRecord* errors = nullptr;
  ErrorRecord* errors_here = nullptr;  // pinned
  AllocStats stats;
  int64_t waits = 0;

  Context() {
    LLATTE_CHECK(available(), why_unavailable());
    int device = 0;
    LLATTE_CUDA_CHECK("CUDA", cudaGetDevice(&device));
    LLATTE_CUDA_CHECK("CUDA", cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    LLATTE_CUDA_CHECK("CUDA", cudaDeviceGetDefaultMemPool(&pool, device));
    uint64_t never = ~uint64_t(0);
    LLATTE_CUDA_CHECK("CUDA", cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &never));
    LLATTE_CUDA_CHECK("CUDA", cudaMalloc(reinterpret_cast<void**>(&errors), sizeof(ErrorRecord)));
    LLATTE_CUDA_CHECK("CUDA", cudaMemsetAsync(errors, 0, sizeof(ErrorRecord), stream));
    LLATTE_CUDA_CHECK("CUDA", cudaMallocHost(reinterpret_cast<void**>(&errors_here), sizeof(ErrorRecord)));
  }
};

Context& context() {
  static Context* c = new Context;
  return *c;
}

int64_t reserved(cudaMemPool_t pool) {
  uint64_t bytes = 0;
  LLATTE_CUDA_CHECK("allocate", cudaMemPoolGetAttribute(pool, cudaMemPoolAttrReservedMemCurrent, &bytes));
  return static_cast<int64_t>(bytes);
}

std::string number(double x) {
  const bool whole = std::abs(x) < 1e15 && x == std::floor(x);
  return whole ? std::to_string(static_cast<int64_t>(x)) : str(x);
}

std::string sentence_of(const ErrorRecord& r) {
  std::string s = r.sentence;
  size_t at = 0;
  for (int i = 0; i < r.count; ++i) {
    at = s.find("{}", at);
    const std::string value = number(r.values[i]);
    s.replace(at, 2, value);
    at += value.size();
  }
  return s;
}

// Waits for the stream, then throws what kernels reported since the last time.
void wait_and_throw_reports(Context& c) {
  ++c.waits;
  LLATTE_CUDA_CHECK("device", cudaMemcpyAsync(c.errors_here, c.errors, sizeof(ErrorRecord),
                                              cudaMemcpyDeviceToHost, c.stream));
  LLATTE_CUDA_CHECK("device", cudaStreamSynchronize(c.stream));
  if (!c.errors_here->taken) return;
  const std::string sentence = sentence_of(*c.errors_here);
  LLATTE_CUDA_CHECK("device", cudaMemsetAsync(c.errors, 0, sizeof(ErrorRecord), c.stream));
  LLATTE_FAIL(sentence);
}

// A pinned buffer with room for at least one byte; the one before it is on its way.
Pinned& buffer_with_room(Context& c) {
  Pinned* p = &c.up[c.filling];
  if (p->bytes && p->used == kStaging) {
    c.filling = (c.filling + 1) % kBuffers;
    p = &c.up[c.filling];
    if (p->bytes) p->wait(), ++c.waits;
    p->used = 0;
  }
  if (!p->bytes) p->make();
  return *p;
}

void upload_part(Context& c, char* to, const char* from, size_t bytes, Pinned& p) {
  char* staged = p.bytes + p.used;
  std::memcpy(staged, from, bytes);
  p.used += bytes;
  LLATTE_CUDA_CHECK("upload", cudaMemcpyAsync(to, staged, bytes, cudaMemcpyHostToDevice, c.stream));
  p.mark_moved();
}

// Part i of a download, into the pinned buffer that part i - kBuffers has left.
void start_download(Context& c, Pinned& p, const char* from, size_t bytes) {
  if (!p.bytes) p.make();
  LLATTE_CUDA_CHECK("download", cudaMemcpyAsync(p.bytes, from, bytes, cudaMemcpyDeviceToHost, c.stream));
  p.mark_moved();
}

}  // namespace

bool available() { return found().usable(); }

std::string why_unavailable() {
  const Found& f = found();
  if (f.usable()) return "";
  return str(
      "no CUDA device: ", f.status == cudaSuccess ? "the driver lists none" : cudaGetErrorString(f.status),
      "; install NVIDIA's driver and see that nvidia-smi lists a GPU, or use --device cpu");
}

std::string device_name() {
  LLATTE_CHECK(available(), why_unavailable());
  int device = 0;
  cudaDeviceProp properties{};
  LLATTE_CUDA_CHECK("device", cudaGetDevice(&device));
  LLATTE_CUDA_CHECK("device", cudaGetDeviceProperties(&properties, device));
  return properties.name;
}

cudaStream_t stream() { return context().stream; }

Report report(const char* sentence) { return {context().errors, sentence}; }

void* allocate(size_t bytes) {
  Context& c = context();
  const std::lock_guard lock(c.mutex);
  void* block = nullptr;
  const cudaError_t status = cudaMallocAsync(&block, std::max<size_t>(bytes, 1), c.stream);
  if (status != cudaSuccess) cudaGetLastError();  // this failure is told here, not by the next launch
  LLATTE_CHECK(status == cudaSuccess, "out of memory: the device refused ", bytes >> 20, " MiB beside ",
               c.stats.bytes >> 20, " MiB in use (", cudaGetErrorString(status),
               "); use a smaller micro_batch_size or sequence_length, or recompute_layer: true");
  const int64_t now = reserved(c.pool);
  AllocStats& s = c.stats;
  s.system_requests += now > s.reserved_bytes;
  s.reserved_bytes = now;
  ++s.requests;
  s.bytes += static_cast<int64_t>(bytes);
  s.peak_bytes = std::max(s.peak_bytes, s.bytes);
  s.largest_request = std::max(s.largest_request, static_cast<int64_t>(bytes));
  return block;
}

void release(void* block, size_t bytes) noexcept {
  Context& c = context();
  const std::lock_guard lock(c.mutex);
  c.stats.bytes -= static_cast<int64_t>(bytes);
  cudaFreeAsync(block, c.stream);  // fails only when the process is ending, and all is freed with it
}

AllocStats alloc_stats() {
  if (!available()) return {};
  const std::lock_guard lock(context().mutex);
  return context().stats;
}

void reset_alloc_stats() {
  if (!available()) return;
  const std::lock_guard lock(context().mutex);
  AllocStats& s = context().stats;
  s.peak_bytes = s.bytes;
  s.requests = s.system_requests = s.largest_request = 0;
}

void release_cached_blocks() {
  if (!available()) return;
  Context& c = context();
  const std::lock_guard lock(c.mutex);
  LLATTE_CUDA_CHECK("release_cached_blocks", cudaStreamSynchronize(c.stream));
  LLATTE_CUDA_CHECK("release_cached_blocks", cudaMemPoolTrimTo(c.pool, 0));
  c.stats.reserved_bytes = reserved(c.pool);
}

void upload(void* to, const void* from, size_t bytes) {
  Context& c = context();
  const std::lock_guard lock(c.mutex);
  for (size_t at = 0; at < bytes;) {
    Pinned& p = buffer_with_room(c);
    const size_t part = std::min(bytes - at, kStaging - p.used);
    upload_part(c, static_cast<char*>(to) + at, static_cast<const char*>(from) + at, part, p);
    at += part;
  }
}

void download(void* to, const void* from, size_t bytes) {
  Context& c = context();
  const std::lock_guard lock(c.mutex);
  const size_t parts = (bytes + kStaging - 1) / kStaging;
  const auto size = [&](size_t i) { return std::min(kStaging, bytes - i * kStaging); };
  const auto start = [&](size_t i) {
    start_download(c, c.down[i % kBuffers], static_cast<const char*>(from) + i * kStaging, size(i));
  };
  for (size_t i = 0; i < std::min(parts, kBuffers); ++i) start(i);
  for (size_t i = 0; i < parts; ++i) {
    c.down[i % kBuffers].wait();
    std::memcpy(static_cast<char*>(to) + i * kStaging, c.down[i % kBuffers].bytes, size(i));
    if (i + kBuffers < parts) start(i + kBuffers);
  }
  wait_and_throw_reports(c);
}

void synchronize() {
  if (!available()) return;
  Context& c = context();
  const std::lock_guard lock(c.mutex);
  wait_and_throw_reports(c);
}

int64_t waits() {
  if (!available()) return 0;
  const std::lock_guard lock(context().mutex);
  return context().waits;
}

}  // namespace llatte::cuda
