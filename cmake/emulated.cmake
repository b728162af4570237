# tensor/cuda/*.cu by the C++ compiler, on the stand-in GPU of test/cuda_on_cpu: what the tests link, and a second set of
# the programs, in emulated/apps, for tests of their --device cuda.
file(GLOB STAND_IN CONFIGURE_DEPENDS test/cuda_on_cpu/*.cpp)
list(FILTER STAND_IN EXCLUDE REGEX "/test_[^/]*$")
set_source_files_properties(${CUDA_SOURCES} PROPERTIES LANGUAGE CXX COMPILE_OPTIONS "-xc++;-Wno-unknown-pragmas")
llatte_variant(llatte_emulated ${CUDA_SOURCES} ${STAND_IN})
target_include_directories(llatte_emulated PRIVATE test/cuda_on_cpu/include)
target_link_libraries(llatte_emulated PRIVATE Boost::context)

function(llatte_emulated_app app)
  add_executable(emulated_${app} $<TARGET_OBJECTS:main_${app}>)
  set_target_properties(emulated_${app} PROPERTIES OUTPUT_NAME ${app} RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/emulated/apps)
  target_link_libraries(emulated_${app} PRIVATE llatte_emulated llatte_new)
endfunction()

file(GLOB STAND_IN_TESTS CONFIGURE_DEPENDS test/cuda_on_cpu/test_*.cpp)
set_source_files_properties(${STAND_IN_TESTS} PROPERTIES INCLUDE_DIRECTORIES ${PROJECT_SOURCE_DIR}/test/cuda_on_cpu/include)
