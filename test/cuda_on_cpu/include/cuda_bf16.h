// Device code uses llatte::bf16, on the real device too: nothing of CUDA's own type is needed.
#pragma once
#include <cuda_runtime.h>
