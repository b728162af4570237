#include "convert/scores.h"
#include <cmath>

namespace llatte {
namespace {

// One head: T rows of E numbers, `step` apart.
template <class T>
void add_head(const T* x, int64_t tokens, int64_t step, int64_t P, double* sum) {
  for (int64_t t = 0; t < tokens; ++t, x += step)
    for (int64_t j = 0; j < P; ++j) {
      const double re = x[j], im = x[j + P];
      sum[j] += std::sqrt(re * re + im * im);
    }
}

double combined(ScoreKind kind, double q, double k) { return kind == ScoreKind::product ? q * k : q + k; }

}  // namespace

void add_pair_norms(const Tensor& x_BTHE, Tensor& sum_HP) {
  const Tensor x = x_BTHE.to(Device::cpu).contiguous();
  const int64_t tokens = x.size(0) * x.size(1), H = x.size(2), E = x.size(3), P = E / 2;
  LLATTE_SHAPE(sum_HP, H, P);
  double* sum = sum_HP.data<double>();
  dispatch_float(x.dtype(), "add_pair_norms", [&]<class T>() {
    const T* p = x.data<T>();
#pragma omp parallel for schedule(static)
    for (int64_t h = 0; h < H; ++h) {
      std::vector<double> own(sum + h * P, sum + (h + 1) * P);  // no two threads write to one cache line
      add_head(p + h * E, tokens, H * E, P, own.data());
      std::copy(own.begin(), own.end(), sum + h * P);
    }
  });
}

Tensor two_norm_scores(const Tensor& q_LHP, const Tensor& k_LKP, int64_t tokens, ScoreKind kind) {
  const int64_t L = q_LHP.size(0), H = q_LHP.size(1), K = k_LKP.size(1), P = q_LHP.size(2), G = H / K;
  LLATTE_SHAPE(k_LKP, L, K, P);
  const double *q = q_LHP.data<double>(), *k = k_LKP.data<double>(), n = static_cast<double>(tokens);
  Tensor scores = Tensor::empty({L, K, P});
  float* out = scores.data<float>();
  for (int64_t row = 0; row < L * K; ++row)
    for (int64_t j = 0; j < P; ++j) {
      double sum = 0;
      for (int64_t g = 0; g < G; ++g) sum += combined(kind, q[(row * G + g) * P + j] / n, k[row * P + j] / n);
      LLATTE_CHECK(std::isfinite(sum), "calibrate: a 2-norm score of layer ", row / K, " is ", sum,
                   "; the model's weights or activations are not finite");
      out[row * P + j] = static_cast<float>(sum);
    }
  return scores;
}

std::string descending_ranks(const Tensor& scores_LKP) {
  const int64_t P = scores_LKP.size(-1), rows = scores_LKP.numel() / P;
  LLATTE_CHECK(P <= 256, "calibrate: ranks of ", P, " pairs do not fit a byte");
  const float* s = scores_LKP.data<float>();
  std::string rank(static_cast<size_t>(rows * P), '\0');
  for (int64_t i = 0; i < rows * P; ++i) {
    const int64_t begin = i / P * P;
    int64_t above = 0;
    for (int64_t o = begin; o < begin + P; ++o) above += s[o] > s[i] || (s[o] == s[i] && o < i);
    rank[static_cast<size_t>(i)] = static_cast<char>(above);
  }
  return rank;
}

}  // namespace llatte
