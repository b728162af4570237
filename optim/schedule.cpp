// nanotron's learning rate rules, in the order they apply to a step t counted from 0 (W warm-up steps, S the
// step decay starts at, N its length):
//   t <= W          linear: lr t / max(W, 1), so the very first step has rate 0 even for W = 0; constant: lr
//   t < S           lr
//   t < S + N       from lr to the floor: linear, cosine or 1-sqrt in f = (t - S) / N
//   afterwards      the floor
// An empty style means that the phase has no shape: no warm-up at all, or a jump to the floor at S.
// Two surprises of upstream's code are not repeated: without warm-up and decay it returned lr as a multiplier
// of itself (lr^2; here: lr), and with N left out but S given it took W from N a second time, so that the
// floor came early (here: N reaches to the end).
#include "optim/schedule.h"
#include <algorithm>
#include <cmath>
#include <numbers>
#include "tensor/check.h"

namespace llatte {
namespace {

// Share of (lr - floor) that is left after fraction f of the decay.
double decayed(const std::string& style, double f) {
  if (style == "linear") return 1 - f;
  if (style == "cosine") return (1 + std::cos(std::numbers::pi * f)) / 2;
  if (style == "1-sqrt") return 1 - std::sqrt(f);
  return 0;
}

void check_count(const char* key, int64_t n) {
  LLATTE_CHECK(n >= 0, "schedule: ", key, " is ", n, "; a number of steps can't be negative");
}

}  // namespace

double Schedule::at(int64_t step) const {
  const int64_t start = decay_starting_step.value_or(warmup_steps);
  const int64_t length = decay_steps.value_or(std::max<int64_t>(total_steps - start, 0));
  if (warmup_steps == 0 && length == 0) return learning_rate;
  if (step <= warmup_steps && warmup_style == "constant") return learning_rate;
  if (step <= warmup_steps && warmup_style == "linear")
    return learning_rate * double(step) / double(std::max<int64_t>(warmup_steps, 1));
  if (step < start) return learning_rate;
  if (step >= start + length) return min_decay_lr;
  const double f = double(step - start) / double(length);
  return min_decay_lr + (learning_rate - min_decay_lr) * decayed(decay_style, f);
}

void Schedule::check() const {
  LLATTE_CHECK(warmup_style.empty() || warmup_style == "linear" || warmup_style == "constant",
               "schedule: lr_warmup_style is '", warmup_style, "'; choose linear or constant");
  LLATTE_CHECK(
      decay_style.empty() || decay_style == "linear" || decay_style == "cosine" || decay_style == "1-sqrt",
      "schedule: lr_decay_style is '", decay_style, "'; choose linear, cosine or 1-sqrt");
  check_count("lr_warmup_steps", warmup_steps);
  check_count("lr_decay_starting_step", decay_starting_step.value_or(0));
  check_count("lr_decay_steps", decay_steps.value_or(0));
  LLATTE_CHECK(learning_rate >= 0 && std::isfinite(learning_rate), "schedule: learning_rate is ",
               learning_rate, "; it must be a finite number of at least 0");
  LLATTE_CHECK(min_decay_lr >= 0 && std::isfinite(min_decay_lr), "schedule: min_decay_lr is ", min_decay_lr,
               "; it must be a finite number of at least 0");
}

}  // namespace llatte
