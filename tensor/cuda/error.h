// What only the device can see to be wrong, a token id outside the vocabulary: the kernel files a report and
// goes on without the bad value; the host throws it as an Error where it next waits (memory.cu).
//   1. The first report stands, later ones are dropped: one wrong id is told by name, not a thousand.
//   2. The sentence is host memory that the kernel only carries: a literal, each {} for one of the values.
// Private to tensor/cuda.
#pragma once
#include "tensor/cuda/launch.h"

namespace llatte::cuda {

constexpr int kReportValues = 4;

struct ErrorRecord {
  int taken;  // 0: nothing is wrong
  int count;
  const char* sentence;
  double values[kReportValues];
};

// Made by report("..."), passed to a kernel, called there with as many numbers as the sentence has {}.
struct Report {
  ErrorRecord* record;
  const char* sentence;

  template <class... Values>
  __device__ void operator()(Values... values) const {
    static_assert(sizeof...(Values) <= kReportValues);
    if (atomicCAS(&record->taken, 0, 1) != 0) return;
    const double all[] = {static_cast<double>(values)...};
    record->count = sizeof...(Values);
    record->sentence = sentence;
    for (int i = 0; i < int(sizeof...(Values)); ++i) record->values[i] = all[i];
  }
};

Report report(const char* sentence);

}  // namespace llatte::cuda
