// What the tests of the stand-in GPU share: numbers to work on, and what it says of a fault.
#pragma once
#include <cuda_runtime.h>
#include <doctest/doctest.h>
#include <numeric>
#include <string>
#include <vector>

inline std::vector<float> counting(size_t n, float from = 1) {
  std::vector<float> v(n);
  std::iota(v.begin(), v.end(), from);
  return v;
}

// The sentence of the fault that `action` ends in, at the call or at the next wait.
template <class Action>
std::string fault_of(Action&& action) {
  try {
    action();
    cudaDeviceSynchronize();
  } catch (const cuda_on_cpu::Fault& f) {
    return f.what();
  }
  return "no fault";
}

inline bool contains(const std::string& text, const std::string& part) {
  const bool found = text.find(part) != std::string::npos;
  if (!found) MESSAGE("\"" << text << "\" lacks \"" << part << "\"");
  return found;
}
