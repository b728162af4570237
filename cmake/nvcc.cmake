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

# Collectives of tensors on the GPU. Without it one process works on one GPU.
find_path(NCCL_INCLUDE_DIR nccl.h HINTS ${CUDAToolkit_INCLUDE_DIRS})
find_library(NCCL_LIBRARY nccl HINTS ${CUDAToolkit_LIBRARY_DIR} ${CUDAToolkit_LIBRARY_DIR}/../lib)
if(NCCL_INCLUDE_DIR AND NCCL_LIBRARY)
  message(STATUS "llatte: NCCL: ${NCCL_LIBRARY}")
else()
  message(STATUS "llatte: NCCL: missing (libnccl-dev); ranks cannot share tensors on GPUs")
  list(FILTER CUDA_SOURCES EXCLUDE REGEX "/nccl.cu$")
  list(APPEND CUDA_SOURCES tensor/no_nccl.cpp)
endif()

function(llatte_use_cuda target)
  target_compile_options(${target} PRIVATE
    "$<$<COMPILE_LANGUAGE:CUDA>:--expt-relaxed-constexpr;-Werror=all-warnings;-Xptxas=-v,--warn-on-spills>")
  target_link_libraries(${target} PUBLIC CUDA::cudart CUDA::cublas CUDA::cublasLt CUDA::cusolver)
  if(NCCL_INCLUDE_DIR AND NCCL_LIBRARY)
    target_include_directories(${target} PRIVATE ${NCCL_INCLUDE_DIR})
    target_link_libraries(${target} PUBLIC ${NCCL_LIBRARY})
  endif()
endfunction()
