// The config schema as data: one rule per key, each of which checks a setting and puts it into a TrainConfig.
#pragma once
#include <functional>
#include "train/config.h"
#include "train/settings.h"

namespace llatte {

// What a rule is handed: the setting, and its key path as written (`data_stages.0.name`).
struct KeyValue {
  const std::string& path;
  const Setting& setting;
  [[noreturn]] void refuse(const std::string& what) const;  // "FILE:LINE: PATH is VALUE; " + what
};

struct KeyRule {
  std::string path;  // `data_stages.*.name`
  std::function<void(TrainConfig&, const KeyValue&)> read;
  bool has_effect = true;  // false: nanotron's, accepted here
};

const std::vector<KeyRule>& config_schema();

}  // namespace llatte
