# tensor/cuda/*.cu by nvcc, linked with cuBLAS, cuSOLVER and (where it is found) NCCL.
# CMake 3.25 knows of C++20 for older compilers only, and of two -std nvcc takes the last: 17 is asked for, and 20 put in
# its place.
set(CMAKE_CUDA_STANDARD 17)
if(NOT CMAKE_CUDA_ARCHITECTURES)
  set(CMAKE_CUDA_ARCHITECTURES "80-real;90")  # sm_80, sm_90, and PTX for what comes after
endif()
enable_language(CUDA)
set(CMAKE_CUDA17_STANDARD_COMPILE_OPTION -std=c++20)
set(CMAKE_CUDA17_EXTENSION_COMPILE_OPTION -std=c++20)
find_package(CUDAToolkit REQUIRED)

function(llatte_use_cuda target)
  target_compile_options(${target} PRIVATE
    "$<$<COMPILE_LANGUAGE:CUDA>:--expt-relaxed-constexpr;-Werror=all-warnings;-Xptxas=-v,--warn-on-spills>")
  target_link_libraries(${target} PUBLIC CUDA::cudart CUDA::cublas CUDA::cublasLt CUDA::cusolver)
endfunction()
