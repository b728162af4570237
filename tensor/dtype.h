// Element types, and the one place where a runtime DType becomes a C++ type.
//   f32  the default          bf16  storage and matrix-product inputs; every sum over it is taken in f32
//   f64  for proofs           i32   token ids, positions, indices
#pragma once
#include <bit>
#include <utility>
#include "tensor/check.h"

namespace llatte {

enum class DType { f32, bf16, f64, i32 };

inline size_t size_of(DType t) { return t == DType::bf16 ? 2 : t == DType::f64 ? 8 : 4; }
inline const char* name(DType t) {
  switch (t) {
    case DType::f32: return "f32";
    case DType::bf16: return "bf16";
    case DType::f64: return "f64";
    case DType::i32: break;
  }
  return "i32";
}
inline bool is_float(DType t) { return t != DType::i32; }
// The type in which sums over `t` are taken and gradients of parameters are kept.
inline DType acc_dtype(DType t) { return t == DType::bf16 ? DType::f32 : t; }

// The upper half of a float. Conversion rounds to nearest even; NaN stays NaN. Branch-free, so loops
// vectorise; constexpr, so that device code may call it.
struct bf16 {
  uint16_t bits = 0;
  constexpr bf16() = default;
  constexpr bf16(float f) {
    const uint32_t u = std::bit_cast<uint32_t>(f);
    const uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16, quiet = (u >> 16) | 0x40u;
    bits = static_cast<uint16_t>((u & 0x7fffffffu) > 0x7f800000u ? quiet : rounded);
  }
  constexpr operator float() const { return std::bit_cast<float>(uint32_t(bits) << 16); }
};

template <class T>
struct Accumulator {
  using type = float;
};
template <>
struct Accumulator<double> {
  using type = double;
};
template <class T>
using acc_t = typename Accumulator<T>::type;

template <class T>
constexpr DType dtype_of();
template <>
constexpr DType dtype_of<float>() {
  return DType::f32;
}
template <>
constexpr DType dtype_of<bf16>() {
  return DType::bf16;
}
template <>
constexpr DType dtype_of<double>() {
  return DType::f64;
}
template <>
constexpr DType dtype_of<int32_t>() {
  return DType::i32;
}

// dispatch_float(y.dtype(), "rms_norm", [&]<class T>() { run<T>(...); });
template <class F>
void dispatch_float(DType t, const char* op, F&& f) {
  switch (t) {
    case DType::f32: return f.template operator()<float>();
    case DType::bf16: return f.template operator()<bf16>();
    case DType::f64: return f.template operator()<double>();
    case DType::i32: break;
  }
  LLATTE_FAIL(op, ": works on f32, bf16 and f64, not on ", name(t));
}

// The same with i32 among the types: for copies and casts.
template <class F>
void dispatch_any(DType t, const char* op, F&& f) {
  if (t == DType::i32) return f.template operator()<int32_t>();
  dispatch_float(t, op, std::forward<F>(f));
}

}  // namespace llatte
