// Element types as cuBLAS and cuSOLVER name them.
#pragma once

enum cudaDataType_t { CUDA_R_32F = 0, CUDA_R_64F = 1, CUDA_C_64F = 5, CUDA_R_16BF = 14 };
using cudaDataType = cudaDataType_t;
