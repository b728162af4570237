// The learning rate of every step of every case in test/fixtures/schedules (made with upstream's scheduler
// code).
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include "optim/schedule.h"
#include "tensor/check.h"

using namespace llatte;
using nlohmann::json;

namespace {

json fixture() {
  std::ifstream in("test/fixtures/schedules/schedules.json");
  REQUIRE(in.good());
  return json::parse(in);
}

std::string style(const json& j) { return j.is_null() ? "" : j.get<std::string>(); }
std::optional<int64_t> steps(const json& j) {
  return j.is_null() ? std::nullopt : std::optional<int64_t>(j.get<int64_t>());
}

Schedule schedule_of(const json& c) {
  Schedule s;
  s.learning_rate = c["learning_rate"];
  s.min_decay_lr = c["min_decay_lr"];
  s.warmup_steps = c["lr_warmup_steps"];
  s.total_steps = c["total"];
  s.warmup_style = style(c["lr_warmup_style"]);
  s.decay_style = style(c["lr_decay_style"]);
  s.decay_starting_step = steps(c["lr_decay_starting_step"]);
  s.decay_steps = steps(c["lr_decay_steps"]);
  return s;
}

// The one quirk that upstream's numbers keep and ours do not, beside the case that brings its own `lr_sane`.
bool takes_warmup_twice(const json& c) {
  return c["lr_decay_steps"].is_null() && !c["lr_decay_starting_step"].is_null();
}

// Both sides evaluate the same short formula in f64 in another order: a few of 2^-52, and cancellation in
// 1 - sqrt(f) near f = 1 costs up to 1/(1 - sqrt(1 - 1/60)) = 120 times that. 1e-12 is far above and still
// exact.
bool near(double got, double want, double scale) {
  return std::abs(got - want) <= 1e-12 * std::max(std::abs(want), scale * 1e-3);
}

}  // namespace

TEST_CASE("every fixture case, every step") {
  const json cases = fixture()["cases"];
  REQUIRE(cases.size() > 20);
  for (const json& c : cases) {
    if (takes_warmup_twice(c["config"])) continue;
    const Schedule s = schedule_of(c["config"]);
    const json& want = c.contains("lr_sane") ? c["lr_sane"] : c["lr"];
    for (size_t t = 0; t < want.size(); ++t) {
      INFO(c["config"].dump(), " step ", t, ": ", s.at(int64_t(t)), " for ", want[t].get<double>());
      CHECK(near(s.at(int64_t(t)), want[t], s.learning_rate));
    }
  }
}

TEST_CASE("a decay length left out reaches to the end, not to the end less the warm-up") {
  int found = 0;
  const json cases = fixture()["cases"];
  for (const json& c : cases) {
    if (!takes_warmup_twice(c["config"])) continue;
    ++found;
    Schedule s = schedule_of(c["config"]);
    Schedule spelled_out = s;
    spelled_out.decay_steps = s.total_steps - *s.decay_starting_step;
    for (int64_t t = 0; t < s.total_steps + 5; ++t) CHECK(s.at(t) == spelled_out.at(t));
    CHECK(s.at(s.total_steps - 1) > 0);
    CHECK(s.at(s.total_steps) == s.min_decay_lr);
  }
  CHECK(found == 1);
}

TEST_CASE("impossible schedules are refused") {
  Schedule s;
  s.decay_style = "step";
  CHECK_THROWS_WITH_AS(s.check(), "schedule: lr_decay_style is 'step'; choose linear, cosine or 1-sqrt",
                       Error);
  s = Schedule();
  s.warmup_style = "exp";
  CHECK_THROWS_WITH_AS(s.check(), "schedule: lr_warmup_style is 'exp'; choose linear or constant", Error);
  s = Schedule();
  s.warmup_steps = -3;
  CHECK_THROWS_WITH_AS(s.check(), "schedule: lr_warmup_steps is -3; a number of steps can't be negative",
                       Error);
}
