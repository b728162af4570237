// Second moments for latent attention: of what goes into attention, and of how much the loss feels errors in
// keys and values (the empirical Fisher information, with labels drawn from the model itself).
//   S   = E[x x^T], x = attention input after RMSNorm, over all windows
//   Ck  = sum |g_k|^2 x x^T / sum |g_k|^2, Cv likewise with g_v, over the windows that are run backward
//   Gp, Gmix = E_{t>=1}[Z Z^T], Z = [g_k; g_2; g_v] of all kv heads (convert/head_gradients.h): with the
//         attention probabilities themselves, and with their mean with a uniform attention in g_k and g_2.
//         Position 0 is left out: it sees itself alone.
//   Gq  = E_{t>=1}[g_q g_q^T], all query heads
//   means = E[x], and the means of x weighted as in Ck and Cv: what S, Ck and Cv of [x; 1] need more
//   L layers  D model width  n = K E  A = H E
#pragma once
#include <functional>
#include <string>
#include <vector>
#include "convert/head_gradients.h"
#include "tensor/tensor.h"

namespace llatte {

// Row t of x (N,n) times weights[t], rounded to x's type first.
Tensor weighted_rows(const Tensor& x_Nn, const std::vector<double>& weights);

class MomentSums {
 public:
  MomentSums(int64_t L, int64_t D, int64_t n, int64_t A, DType acc, Device d);  // d: where the model runs
  void add_inputs(int64_t layer, const Tensor& x_TD);
  // One window's gradients.
  void add_gradients(int64_t layer, const Tensor& x_TD, const HeadGradients& g);

  // Every sum by its name: for the partial file.
  void each(const std::function<void(const std::string&, Tensor&)>& f);
  // One result, f32, of the windows that were counted. Not finite or no gradient at all: an Error.
  Tensor result(const std::string& name, int64_t tokens, int64_t gradient_rows) const;
  static const std::vector<std::string>& results();  // their names
  Shape shape(const std::string& name) const;

 private:
  const Tensor& sum(const std::string& name) const;
  int64_t n_;
  Tensor S_LDD_, Ck_LDD_, Cv_LDD_, Gp_LZZ_, Gmix_LZZ_, Gq_LAA_;  // Z = 3n
  Tensor means_L3D_;
  Tensor norms_L2_;  // f64, on the host: sum |g_k|^2, sum |g_v|^2
};

}  // namespace llatte
