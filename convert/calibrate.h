// What a model does on calibration text, measured for the conversions: 2-norm scores of RoPE pairs
// (convert/scores.h) and, if asked for, second moments of attention's inputs and of the gradients of keys and
// values (convert/moments.h). One window at a time; only sums are kept.
// Laws:
//   - sums are taken window by window, in order: a run that was interrupted and goes on from its partial file
//     gives the same bits as one that was not
//   - a partial file of another model, of other tokens or settings is refused
//   - over R ranks, which call all functions alike, each takes every R-th window; a partial file goes on
//     on any number of them
#pragma once
#include <filesystem>
#include <memory>
#include "convert/scores.h"
#include "models/llama.h"
#include "tensor/comm.h"

namespace llatte {

struct CalibrationSettings {
  bool covariance = false;
  int64_t gradient_windows = 40;  // the first so many are run backward, if covariance
  uint64_t seed = 0;              // of the labels that are drawn from the model's own softmax
};

class Calibration {
 public:
  // tokens i32 [N,T]: N windows. The model must outlive this, and be ordinary grouped-query attention.
  Calibration(Llama& model, const Tensor& tokens_NT, const CalibrationSettings& settings,
              Comm* comm = nullptr);
  ~Calibration();
  int64_t windows() const;
  int64_t done() const;  // by all ranks
  void add_window();     // the next one of each rank

  void save_partial(const std::filesystem::path& file) const;
  void resume(const std::filesystem::path& file);
  // tokens, scores, rank and, with covariance, what convert/moments.h lists; after the last window.
  void write(const std::filesystem::path& file, ScoreKind kind) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace llatte
