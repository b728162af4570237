// Levenshtein's distance, row by row.
#include "data/nearest_key.h"
#include <algorithm>
#include <cstdint>
#include <numeric>

namespace llatte {
namespace {

size_t edit_distance(const std::string& a, const std::string& b) {
  std::vector<size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), size_t{0});
  for (size_t i = 0; i < a.size(); ++i) {
    size_t diagonal = row[0]++;
    for (size_t j = 0; j < b.size(); ++j) {
      const size_t substituted = diagonal + (a[i] != b[j]);
      diagonal = row[j + 1];
      row[j + 1] = std::min({substituted, row[j] + 1, row[j + 1] + 1});
    }
  }
  return row.back();
}

std::string last_part(const std::string& path) { return path.substr(path.rfind('.') + 1); }

}  // namespace

std::string nearest_key(const std::string& name, const std::vector<std::string>& names) {
  const std::string wanted = last_part(name.substr(0, 200));
  size_t best = SIZE_MAX;
  std::string found;
  for (const std::string& candidate : names) {
    const size_t whole = edit_distance(name.substr(0, 200), candidate);
    const size_t last = edit_distance(wanted, last_part(candidate)) + 2;  // another section costs two edits
    if (std::min(whole, last) < best) best = std::min(whole, last), found = candidate;
  }
  return found;
}

}  // namespace llatte
