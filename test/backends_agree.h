// Results of the device under test against the CPU backend's. The two differ by the order of sums alone, so
// this is a finer comparison than the one with a reference in double.
#pragma once
#include <algorithm>
#include "test/near.h"

namespace llatte::test {

inline double largest_of(const Vec& v) {
  double largest = 0;
  for (const double e : v) largest = std::max(largest, std::abs(e));
  return largest;
}

inline void check_backends_agree(const std::string& what, const Vec& got, const Vec& cpu, double tol,
                                 double largest) {
  REQUIRE_MESSAGE(got.size() == cpu.size(), what);
  size_t i = 0;
  while (i < cpu.size() && std::abs(got[i] - cpu[i]) <= tol * largest) ++i;
  if (i < cpu.size())
    FAIL_CHECK(str(what, "[", i, "]: the device says ", got[i], ", the CPU ", cpu[i], ", the largest is ",
                   largest, ", tolerance ", tol));
}

}  // namespace llatte::test
