// For the sentence "unknown key; did you mean ...?".
#pragma once
#include <string>
#include <vector>

namespace llatte {

// Of `names`, the one with the fewest edits to `name`; a match of the last component (after the last dot)
// alone counts as well.
std::string nearest_key(const std::string& name, const std::vector<std::string>& names);

}  // namespace llatte
