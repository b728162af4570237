// Which positions hold each key, in ascending order: what a sum over "all n with key[n] == c" needs to have a
// fixed order without atomics. A position's place among the sorted ones is counted,
//   place(n) = #{m : key[m] < key[n]} + #{m < n : key[m] = key[n]},
// by comparing all pairs: N^2 comparisons of numbers in shared memory, 0.1 ms for 32,768 keys on a GPU with
// 30 T of them a second, and nothing to tune. Private to tensor/cuda.
#pragma once
#include "tensor/cuda/error.h"
#include "tensor/cuda/pack.h"

namespace llatte::cuda {

struct Order {
  Tensor order;   // i32 [N]: positions, sorted by key, then by position
  Tensor starts;  // i32 [C+1]: key c is at order[starts[c], starts[c+1])
};

// Keys lie in [low, C), low 0 or -1; those below 0 come first and belong to no c. Others are reported (key,
// position, C) and left out too.
Order order_of(const Tensor& keys, int64_t low, int64_t C, const Report& outside);

}  // namespace llatte::cuda
