// Learning rate as a pure function of the step, with nanotron's rules (warm-up, plateau, decay, floor).
#pragma once
#include <cstdint>
#include <optional>
#include <string>

namespace llatte {

struct Schedule {
  double learning_rate = 1e-4, min_decay_lr = 0;
  int64_t warmup_steps = 0, total_steps = 0;
  std::string warmup_style = "linear",
              decay_style = "linear";                       // linear | constant;  linear | cosine | 1-sqrt
  std::optional<int64_t> decay_starting_step, decay_steps;  // default: after warm-up; to the end
  double at(int64_t step) const;                            // step counts from 0
  void check() const;                                       // throws on an unknown style or negative count
};

}  // namespace llatte
