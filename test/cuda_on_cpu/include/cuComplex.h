// Complex numbers as cuSOLVER has them.
#pragma once

struct alignas(16) cuDoubleComplex {
  double x, y;
};
inline cuDoubleComplex make_cuDoubleComplex(double re, double im) { return {re, im}; }
