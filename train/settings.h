// YAML in, a flat list of settings out: `tokens.micro_batch_size` -> value, with the file and line it came
// from, so that every complaint can say where to look. Knows nothing of what the keys mean: that is
// schema.cpp.
//   include: other.yaml   is read first (path relative to the including file), then overridden key by key
//   key.path=value        from the command line overrides both; the value is YAML
// A list of maps is flattened with numbers (`data_stages.0.name`); any other list is one setting.
#pragma once
#include <yaml-cpp/yaml.h>
#include <filesystem>
#include <map>
#include <string>
#include <vector>
#include "data/nearest_key.h"

namespace llatte {

struct Setting {
  YAML::Node value;   // a scalar, null, or a list of scalars; an empty map for `section: {}`
  std::string where;  // "configs/a.yaml:12" or "command line"
};

using Settings = std::map<std::string, Setting>;

Settings read_settings(const std::filesystem::path& file, const std::vector<std::string>& overrides);

// The value as its author wrote it, shortened for an error sentence.
std::string shown(const YAML::Node& value);

}  // namespace llatte
