// The functions of cuda_runtime.h: each checks, then enqueues.
#include <utility>
#include "streams.h"

using namespace cuda_on_cpu;

namespace {

cudaError_t last_error = cudaSuccess;
cudaError_t result(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

struct Named {
  cudaError_t error;
  const char *name, *sentence;
};
constexpr Named kErrors[] = {
    {cudaSuccess, "cudaSuccess", "no error"},
    {cudaErrorInvalidValue, "cudaErrorInvalidValue", "invalid argument"},
    {cudaErrorMemoryAllocation, "cudaErrorMemoryAllocation", "out of memory"},
    {cudaErrorInvalidConfiguration, "cudaErrorInvalidConfiguration", "invalid configuration argument"},
    {cudaErrorInvalidDevicePointer, "cudaErrorInvalidDevicePointer", "invalid device pointer"},
    {cudaErrorInvalidMemcpyDirection, "cudaErrorInvalidMemcpyDirection", "invalid copy direction for memcpy"},
    {cudaErrorNoDevice, "cudaErrorNoDevice", "no CUDA-capable device is detected"},
    {cudaErrorInvalidDevice, "cudaErrorInvalidDevice", "invalid device ordinal"},
    {cudaErrorInvalidResourceHandle, "cudaErrorInvalidResourceHandle", "invalid resource handle"},
    {cudaErrorNotReady, "cudaErrorNotReady", "device not ready"},
};
const Named& named(cudaError_t error) {
  for (const Named& n : kErrors)
    if (n.error == error) return n;
  static const Named unknown{cudaSuccess, "cudaErrorUnknown", "unknown error"};
  return unknown;
}

// ---- copies
const char* name(cudaMemcpyKind kind) {
  constexpr const char* names[] = {"host to host", "host to device", "device to host", "device to device",
                                   "default"};
  return names[kind];
}

void check_end(const char* what, cudaMemcpyKind kind, const char* end, bool on_device, const void* at,
               size_t bytes) {
  const std::string where = sentence(what, " of ", bytes, " bytes ", name(kind), ", ", end);
  if (on_device) return check_device_range(where, at, bytes);
  if (is_device(at)) throw Fault(sentence(where, ": ", at, " is device memory"));
}

cudaMemcpyKind resolved(cudaMemcpyKind kind, const void* to, const void* from) {
  if (kind != cudaMemcpyDefault) return kind;
  return static_cast<cudaMemcpyKind>(2 * is_device(from) + is_device(to));
}

// Bytes in pageable memory are read at once: the driver stages them.
Work copy_from_pageable(void* to, const void* from, size_t bytes) {
  const auto* p = static_cast<const char*>(from);
  return [to, staged = std::make_shared<std::vector<char>>(p, p + bytes)] {
    memcpy(to, staged->data(), staged->size());
  };
}

void copy(const char* what, void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
          cudaStream_t stream) {
  if (bytes == 0) return;
  kind = resolved(kind, to, from);
  const bool to_device = kind & 1, from_device = kind & 2;
  check_end(what, kind, "destination", to_device, to, bytes);
  check_end(what, kind, "source", from_device, from, bytes);
  const bool staged = !from_device && !is_pinned(from, bytes);
  enqueue(stream, staged ? copy_from_pageable(to, from, bytes) : Work([=] { memmove(to, from, bytes); }));
  if (!to_device && !is_pinned(to, bytes)) wait_for(stream);
}

void set(const char* what, void* at, int value, size_t bytes, cudaStream_t stream) {
  check_device_range(sentence(what, " of ", bytes, " bytes"), at, bytes);
  enqueue(stream, [=] { memset(at, value, bytes); });
}

}  // namespace

// ---- the device
const char* cudaGetErrorString(cudaError_t error) { return named(error).sentence; }
const char* cudaGetErrorName(cudaError_t error) { return named(error).name; }
cudaError_t cudaGetLastError() { return std::exchange(last_error, cudaSuccess); }
cudaError_t cudaPeekAtLastError() { return last_error; }
cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }
cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
cudaError_t cudaSetDevice(int device) { return result(device == 0 ? cudaSuccess : cudaErrorInvalidDevice); }
cudaError_t cudaDriverGetVersion(int* version) { return *version = 13000, cudaSuccess; }
cudaError_t cudaRuntimeGetVersion(int* version) { return *version = 13000, cudaSuccess; }

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int device) {
  if (device != 0) return result(cudaErrorInvalidDevice);
  size_t free = 0, total = 0;
  cudaMemGetInfo(&free, &total);
  *p = {"stand-in GPU", total, 48 * 1024, 227 * 1024, 9, 0, 4, 1024, 32};
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  cudaDeviceProp p;
  if (const cudaError_t error = cudaGetDeviceProperties(&p, device)) return error;
  switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock: *value = p.maxThreadsPerBlock; break;
    case cudaDevAttrMaxSharedMemoryPerBlock: *value = static_cast<int>(p.sharedMemPerBlock); break;
    case cudaDevAttrMultiProcessorCount: *value = p.multiProcessorCount; break;
    case cudaDevAttrComputeCapabilityMajor: *value = p.major; break;
    case cudaDevAttrComputeCapabilityMinor: *value = p.minor; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = static_cast<int>(p.sharedMemPerBlockOptin); break;
    default: return result(cudaErrorInvalidValue);
  }
  return cudaSuccess;
}

cudaError_t cudaDeviceSynchronize() {
  const auto guard = lock();
  return wait_for_everything(), cudaSuccess;
}

// ---- memory
cudaError_t cudaMalloc(void** at, size_t bytes) {
  const auto guard = lock();
  *at = bytes ? allocate_device(bytes) : nullptr;
  return result(*at || bytes == 0 ? cudaSuccess : cudaErrorMemoryAllocation);
}
cudaError_t cudaFree(void* at) {  // waits for the whole device, as the real one does
  const auto guard = lock();
  if (!at) return cudaSuccess;
  const Work free = release_device(at);
  wait_for_everything();
  enqueue(nullptr, free);
  return wait_for_everything(), cudaSuccess;
}
cudaError_t cudaMallocAsync(void** at, size_t bytes, cudaStream_t) { return cudaMalloc(at, bytes); }
cudaError_t cudaFreeAsync(void* at, cudaStream_t stream) {
  const auto guard = lock();
  if (at) enqueue(stream, release_device(at));
  return cudaSuccess;
}
cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t* pool, int device) {
  *pool = nullptr;
  return result(device == 0 ? cudaSuccess : cudaErrorInvalidDevice);
}
cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t, cudaMemPoolAttr attribute, void*) {
  return result(attribute == cudaMemPoolAttrReleaseThreshold ? cudaSuccess : cudaErrorInvalidValue);
}
cudaError_t cudaMemPoolGetAttribute(cudaMemPool_t, cudaMemPoolAttr attribute, void* value) {
  const auto guard = lock();
  if (attribute == cudaMemPoolAttrReleaseThreshold) return result(cudaErrorInvalidValue);
  const bool reserved = attribute == cudaMemPoolAttrReservedMemCurrent;
  *static_cast<uint64_t*>(value) = reserved ? device_bytes_reserved() : device_bytes_in_use();
  return cudaSuccess;
}
cudaError_t cudaMemPoolTrimTo(cudaMemPool_t, size_t) {
  const auto guard = lock();
  return trim_reserved(), cudaSuccess;
}
cudaError_t cudaMallocHost(void** at, size_t bytes) {
  const auto guard = lock();
  return *at = allocate_pinned(bytes), cudaSuccess;
}
cudaError_t cudaHostAlloc(void** at, size_t bytes, unsigned) { return cudaMallocHost(at, bytes); }
cudaError_t cudaFreeHost(void* at) {
  const auto guard = lock();
  if (!at) return cudaSuccess;
  wait_for_everything();
  return release_pinned(at), cudaSuccess;
}
cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  const auto guard = lock();
  *total = device_capacity(), *free = *total - device_bytes_in_use();
  return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream) {
  const auto guard = lock();
  return copy("cudaMemcpyAsync", to, from, bytes, kind, stream), cudaSuccess;
}
cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
  const auto guard = lock();
  copy("cudaMemcpy", to, from, bytes, kind, nullptr);
  return wait_for(nullptr), cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* at, int value, size_t bytes, cudaStream_t stream) {
  const auto guard = lock();
  return set("cudaMemsetAsync", at, value, bytes, stream), cudaSuccess;
}
cudaError_t cudaMemset(void* at, int value, size_t bytes) {
  const auto guard = lock();
  return set("cudaMemset", at, value, bytes, nullptr), cudaSuccess;
}

// ---- streams and events
cudaError_t cudaStreamCreate(cudaStream_t* stream) {
  return cudaStreamCreateWithFlags(stream, cudaStreamDefault);
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
  const auto guard = lock();
  return *stream = new_stream(flags != cudaStreamNonBlocking), cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  const auto guard = lock();
  if (!stream) return result(cudaErrorInvalidResourceHandle);
  return delete_stream(stream), cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  const auto guard = lock();
  return wait_for(stream), cudaSuccess;
}
cudaError_t cudaStreamQuery(cudaStream_t stream) {
  const auto guard = lock();
  if (now(stream).passed()) return cudaSuccess;
  return progress(), cudaErrorNotReady;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  const auto guard = lock();
  return enqueue_after(stream, {event->point}, {}), cudaSuccess;
}
cudaError_t cudaLaunchHostFunc(cudaStream_t stream, void (*run)(void*), void* argument) {
  const auto guard = lock();
  return enqueue(stream, [=] { run(argument); }), cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t* event) { return cudaEventCreateWithFlags(event, cudaEventDefault); }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  return *event = new CUevent_st{{}, std::make_shared<std::chrono::steady_clock::time_point>()}, cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) { return delete event, cudaSuccess; }
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  const auto guard = lock();
  enqueue(stream, [time = event->time] { *time = std::chrono::steady_clock::now(); });
  return event->point = now(stream), cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  const auto guard = lock();
  return wait_until(event->point), cudaSuccess;
}
cudaError_t cudaEventQuery(cudaEvent_t event) {
  const auto guard = lock();
  if (event->point.passed()) return cudaSuccess;
  return progress(), cudaErrorNotReady;
}
cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t begin, cudaEvent_t end) {
  const auto guard = lock();
  if (!begin->point.passed() || !end->point.passed()) return result(cudaErrorNotReady);
  *ms = std::chrono::duration<float, std::milli>(*end->time - *begin->time).count();
  return cudaSuccess;
}
