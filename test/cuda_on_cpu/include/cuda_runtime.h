// <cuda_runtime.h> of the stand-in GPU: the words of device code and the host's side of the runtime, nothing
// more than llatte uses. ../README.md says what is watched and what is not modelled.
#pragma once
#include "cuda_on_cpu/language.h"
#include "cuda_on_cpu/math.h"
#include "cuda_on_cpu/runtime.h"
