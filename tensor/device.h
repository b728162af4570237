// Where numbers live. A process works on at most one GPU; which one is chosen at start (--device cuda:N).
#pragma once

#ifdef __CUDACC__
#define LLATTE_HOST_DEVICE __host__ __device__
#else
#define LLATTE_HOST_DEVICE
#endif

namespace llatte {

enum class Device { cpu, cuda };
inline const char* name(Device d) { return d == Device::cpu ? "cpu" : "cuda"; }

}  // namespace llatte
