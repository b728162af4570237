# tensor/cuda/*.cu by nvcc, linked with cuBLAS, cuSOLVER and (where it is found) NCCL.
# CMake 3.25 knows CUDA standards up to 20 for older compilers only, so -std=c++20 is passed by hand.
set(CMAKE_CUDA_STANDARD 17)
if(NOT CMAKE_CUDA_ARCHITECTURES)
  set(CMAKE_CUDA_ARCHITECTURES "80-real;90")  # sm_80, sm_90, and PTX for what comes after
endif()
enable_language(CUDA)
find_package(CUDAToolkit REQUIRED)

function(llatte_use_cuda target)
  target_compile_options(${target} PRIVATE
    "$<$<COMPILE_LANGUAGE:CUDA>:-std=c++20;--expt-relaxed-constexpr;-Werror=all-warnings;-Xptxas=-v,--warn-on-spills>")
  target_link_libraries(${target} PUBLIC CUDA::cudart CUDA::cublas CUDA::cublasLt CUDA::cusolver)
endfunction()
