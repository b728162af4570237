// Programs that time the device wait for it; others do so only where they read a result.
#pragma once
#include "tensor/cuda.h"
#include "tensor/device.h"

namespace llatte {

inline void wait(Device d) {
  if (d == Device::cuda) cuda::synchronize();
}

}  // namespace llatte
