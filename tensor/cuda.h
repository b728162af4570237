// The GPU beyond its kernels: whether there is one, its memory, and the way of bytes to it and back.
//   1. One GPU per process, one stream: work is done in the order in which it was asked for, and the host
//      waits only where it reads a result (copies to the host, synchronize).
//   2. A build without CUDA has these functions too (no_cuda.cpp): available() is false, the others throw.
//   3. What a kernel finds wrong in its input (a token id outside the vocabulary) is thrown at the next wait.
#pragma once
#include <cstddef>
#include <string>
#include "tensor/alloc.h"

namespace llatte::cuda {

bool available();               // a build with CUDA, a driver, and a device it can use
std::string why_unavailable();  // one sentence with the cure
std::string device_name();

// Stream-ordered, from a caching allocator. A block released is handed out again at once: whatever still uses
// it comes earlier in the stream.
void* allocate(size_t bytes);
void release(void* block, size_t bytes) noexcept;
AllocStats alloc_stats();
void reset_alloc_stats();
void release_cached_blocks();

// Of contiguous bytes. upload returns when `from` may be changed again, download when `to` is there.
void upload(void* to, const void* from, size_t bytes);
void download(void* to, const void* from, size_t bytes);
void synchronize();  // waits for all that was asked for
int64_t waits();     // how often the host has waited so far, for the device to finish or for room to upload

}  // namespace llatte::cuda
