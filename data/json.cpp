#include "data/json.h"
#include <unordered_set>
#include <vector>
#include "data/files.h"
#include "tensor/check.h"

namespace llatte {
namespace {

using nlohmann::json;

// Watches the parser: one set of keys per open object (an empty one per open array).
class Guard {
 public:
  explicit Guard(const std::string& where) : where_(where) {}

  bool operator()(json::parse_event_t event, const json& parsed) {
    using Event = json::parse_event_t;
    if (event == Event::object_start || event == Event::array_start) open();
    if (event == Event::object_end || event == Event::array_end) keys_.pop_back();
    if (event == Event::key) add(parsed.get_ref<const std::string&>());
    return true;
  }

 private:
  void open() {
    LLATTE_CHECK(keys_.size() < static_cast<size_t>(kMaxJsonDepth), where_, ": JSON is nested deeper than ",
                 kMaxJsonDepth, " levels");
    keys_.emplace_back();
  }
  void add(const std::string& key) {
    LLATTE_CHECK(keys_.back().insert(key).second, where_, ": JSON has the key \"", printable(key),
                 "\" twice in one object");
  }
  const std::string& where_;
  std::vector<std::unordered_set<std::string>> keys_;
};

}  // namespace

std::string printable(std::string text) {
  constexpr size_t kLimit = 200;
  for (char& c : text)
    if (c < 0x20 || c > 0x7e) c = '?';
  if (text.size() > kLimit)
    text = text.substr(0, kLimit / 2) + " ... " + text.substr(text.size() - kLimit / 2);
  return text;
}

json parse_json(std::string_view text, const std::string& where) {
  // nlohmann-json would take a NUL byte for the end of the text, and never look at what follows.
  const size_t nul = text.find('\0');
  LLATTE_CHECK(nul == text.npos, where, ": not valid JSON: byte ", nul, " is NUL");
  Guard guard(where);
  try {
    return json::parse(text.begin(), text.end(),
                       [&](int, json::parse_event_t event, json& parsed) { return guard(event, parsed); });
  } catch (const json::exception& e) {
    const std::string what = e.what();  // "[json.exception.parse_error.101] parse error at line ..."
    const size_t after = what.find("] ");
    LLATTE_FAIL(where, ": not valid JSON: ", printable(after == what.npos ? what : what.substr(after + 2)));
  }
}

json read_json(const std::filesystem::path& file) { return parse_json(read_file(file), file.string()); }

}  // namespace llatte
