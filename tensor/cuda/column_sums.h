// Sums over the rows of something [N,D], in double and in a fixed order: a block sums kRowsPerSum rows of 32
// columns, and a second kernel adds these partial sums from top to bottom. Neither depends on the device.
// Private to tensor/cuda.
#pragma once
#include "tensor/cuda/pack.h"

namespace llatte::cuda {

constexpr int kSumRows = 8;           // rows that a block of 32 x 8 threads reads at a time
constexpr int64_t kRowsPerSum = 128;  // rows of one partial sum

struct ColumnSums {
  double at[kSumRows][kWarp];
};

// partial_BD[b, d] = sum of term(n, d) over the rows n of block b.
template <class Term>
__global__ void sum_row_blocks(Term term, int64_t N, int64_t D, double* partial) {
  auto& s = block_shared<ColumnSums>();
  const int64_t tiles = (D + kWarp - 1) / kWarp, b = blockIdx.x / tiles;
  const int64_t d = blockIdx.x % tiles * kWarp + threadIdx.x;
  const int64_t end = (b + 1) * kRowsPerSum < N ? (b + 1) * kRowsPerSum : N;
  double sum = 0;
  if (d < D)
    for (int64_t n = b * kRowsPerSum + threadIdx.y; n < end; n += kSumRows) sum += double(term(n, d));
  s.at[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y > 0 || d >= D) return;
  for (int r = 1; r < kSumRows; ++r) sum += s.at[r][threadIdx.x];
  partial[b * D + d] = sum;
}

template <class A>
__global__ void sum_partials(const double* partial, int64_t B, int64_t D, A* sum) {
  const int64_t d = global_thread();
  if (d >= D) return;
  double total = 0;
  for (int64_t b = 0; b < B; ++b) total += partial[b * D + d];
  sum[d] = static_cast<A>(total);
}

// sum_D = sum over n < N of term(n, d); Term is a struct with a __device__ operator().
template <class A, class Term>
void sum_columns(const char* op, Term term, int64_t N, int64_t D, A* sum) {
  const int64_t B = (N + kRowsPerSum - 1) / kRowsPerSum;
  Tensor partial = Tensor::empty({B, D}, DType::f64, Device::cuda);
  double* p = partial.data<double>();
  launch(op, {blocks_for(D, kWarp) * unsigned(B), dim3(kWarp, kSumRows), sizeof(ColumnSums)},
         sum_row_blocks<Term>, term, N, D, p);
  launch(op, {blocks_for(D, kThreads), unsigned(kThreads)}, sum_partials<A>, p, B, D, sum);
}

}  // namespace llatte::cuda
