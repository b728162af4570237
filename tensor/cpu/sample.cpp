// Draws one id per row of logits. With w_i = exp((z_i - max z) / temperature), in double:
//   top_k   the k largest w stay (of equal ones, the lowest ids)
//   top_p   the shortest prefix of them, by falling w, whose sum reaches top_p of what is left
//   min_p   those with w >= min_p * max w
// and the id is the first, in ascending order, whose running sum exceeds u times the total.
// Before that, repetition_penalty makes tokens that have been seen less likely (arXiv 1909.05858,
// section 4.1, with negative logits multiplied, as transformers does: dividing those would make the token
// more likely).
#include <algorithm>
#include <cmath>
#include <numeric>
#include "tensor/kernels.h"

namespace llatte::cpu {
namespace {

struct Candidate {
  double weight;
  int32_t id;
};
using Candidates = std::vector<Candidate>;

bool better(const Candidate& a, const Candidate& b) {
  return a.weight > b.weight || (a.weight == b.weight && a.id < b.id);
}
bool worse(const Candidate& a, const Candidate& b) { return better(b, a); }

double total(const Candidates& c) {
  return std::accumulate(c.begin(), c.end(), 0.0, [](double s, const Candidate& x) { return s + x.weight; });
}

void check_rule(const SampleRule& r) {
  LLATTE_CHECK(r.temperature >= 0 && std::isfinite(r.temperature), "sample: temperature ", r.temperature,
               " must be 0 (the most likely id) or positive");
  LLATTE_CHECK(r.top_k >= 0, "sample: top_k ", r.top_k, " must be 0 (all ids) or positive");
  LLATTE_CHECK(r.top_p > 0 && r.top_p <= 1, "sample: top_p ", r.top_p, " must be in (0,1]");
  LLATTE_CHECK(r.min_p >= 0 && r.min_p <= 1, "sample: min_p ", r.min_p, " must be in [0,1]");
}

// Index of the largest logit, the first of equal ones. NaN and +inf are refused; so is a row of -inf alone.
template <class A>
int64_t argmax(const A* z, int64_t V, int64_t row) {
  LLATTE_CHECK(V > 0, "sample: row ", row, " has no logits");
  int64_t best = 0;
  for (int64_t i = 0; i < V; ++i) {
    LLATTE_CHECK(z[i] < INFINITY, "sample: logit of id ", i, " in row ", row, " is ", z[i],
                 "; the model has diverged or its weights are damaged");
    if (z[i] > z[best]) best = i;
  }
  LLATTE_CHECK(z[best] > -INFINITY, "sample: every logit of row ", row, " is -inf");
  return best;
}

void keep_top_k(Candidates& c, int64_t k) {
  if (k == 0 || k >= static_cast<int64_t>(c.size())) return;
  std::nth_element(c.begin(), c.begin() + k, c.end(), better);
  c.resize(static_cast<size_t>(k));
}

// A heap gives the largest ones in order without sorting the rest.
void keep_top_p(Candidates& c, double top_p) {
  if (top_p >= 1) return;
  const double enough = top_p * total(c);
  std::make_heap(c.begin(), c.end(), worse);
  double sum = 0;
  auto rest = c.end();  // [rest, end) is what was taken
  while (rest != c.begin() && sum < enough) {
    std::pop_heap(c.begin(), rest, worse);
    sum += (--rest)->weight;
  }
  c.erase(c.begin(), rest);
}

void keep_min_p(Candidates& c, double min_p) {
  const double least = min_p * std::max_element(c.begin(), c.end(), worse)->weight;
  std::erase_if(c, [=](const Candidate& x) { return x.weight < least; });
}

int32_t pick(Candidates& c, double u) {
  std::sort(c.begin(), c.end(), [](const Candidate& a, const Candidate& b) { return a.id < b.id; });
  const double target = u * total(c);
  double sum = 0;
  int32_t last = c.front().id;  // of those with any weight: the answer if rounding leaves sum at target
  for (const Candidate& x : c) {
    if (x.weight > 0) last = x.id;
    if ((sum += x.weight) > target) break;
  }
  return last;
}

template <class A>
int32_t sample_row(const A* z, int64_t V, int64_t row, double u, const SampleRule& rule, Candidates& c) {
  const int64_t best = argmax(z, V, row);
  if (rule.temperature == 0) return static_cast<int32_t>(best);
  c.resize(static_cast<size_t>(V));
  for (int64_t i = 0; i < V; ++i)
    c[static_cast<size_t>(i)] = {std::exp((double(z[i]) - double(z[best])) / rule.temperature), int32_t(i)};
  keep_top_k(c, rule.top_k);
  keep_top_p(c, rule.top_p);
  keep_min_p(c, rule.min_p);
  return pick(c, u);
}

}  // namespace

void sample(const Tensor& logits, const Tensor& u, const SampleRule& rule, Tensor& ids) {
  check_rule(rule);
  const int64_t V = logits.size(-1), N = ids.numel();
  LLATTE_CHECK(logits.dtype() != DType::bf16, "sample: logits are bf16; give them as f32 or f64");
  dispatch_float(logits.dtype(), "sample", [&]<class T>() {
    const T *z = logits.data<T>(), *pu = u.data<T>();
    int32_t* out = ids.data<int32_t>();
    Candidates candidates;
    for (int64_t n = 0; n < N; ++n) out[n] = sample_row<T>(z + n * V, V, n, double(pu[n]), rule, candidates);
  });
}

void repetition_penalty(const Tensor& ids, double penalty, Tensor& logits) {
  LLATTE_CHECK(penalty > 0 && std::isfinite(penalty), "repetition_penalty: ", penalty, " must be positive");
  const int64_t V = logits.numel(), N = ids.numel();
  const int32_t* id = ids.data<int32_t>();
  dispatch_float(logits.dtype(), "repetition_penalty", [&]<class T>() {
    T* z = logits.data<T>();
    for (int64_t n = 0; n < N; ++n) {
      LLATTE_CHECK(0 <= id[n] && id[n] < V, "repetition_penalty: id ", id[n], " is not in [0,", V, ")");
      const double old = static_cast<double>(z[id[n]]);
      z[id[n]] = static_cast<T>(old > 0 ? old / penalty : old * penalty);
    }
  });
}

}  // namespace llatte::cpu
