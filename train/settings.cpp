#include "train/settings.h"
#include <algorithm>
#include "data/files.h"
#include "tensor/check.h"

namespace llatte {
namespace {

constexpr int kMaxDepth = 16;            // of includes and of nesting: a file that includes itself ends here
constexpr size_t kMaxSettings = 10'000;  // aliases of aliases can make a short file endless

struct Source {
  std::string file;  // empty: the command line
  std::string at(const YAML::Node& n) const {
    return file.empty() ? "command line" : str(file, ":", n.Mark().line + 1);
  }
};

bool is_list_of_maps(const YAML::Node& n) {
  return n.IsSequence() && n.size() > 0 && std::any_of(n.begin(), n.end(), [](auto e) { return e.IsMap(); });
}

// A new value for `path` ends whatever an included file had put under it.
void erase_below(Settings& out, const std::string& path) {
  out.erase(path);
  const std::string prefix = path + ".";
  auto it = out.lower_bound(prefix);
  while (it != out.end() && it->first.compare(0, prefix.size(), prefix) == 0) it = out.erase(it);
}

// A section that was set to one value (`RoPE: null`) is a section again once a key is set in it.
void erase_above(Settings& out, const std::string& path) {
  for (size_t dot = path.find('.'); dot != std::string::npos; dot = path.find('.', dot + 1))
    out.erase(path.substr(0, dot));
}

void flatten(const YAML::Node& n, const std::string& path, const Source& from, int depth, Settings& out);

void flatten_map(const YAML::Node& n, const std::string& path, const Source& from, int depth, Settings& out) {
  std::vector<std::string> seen;
  for (const auto& entry : n) {
    LLATTE_CHECK(entry.first.IsScalar(), from.at(n), ": a key under '", path, "' is not a plain word");
    const std::string key = entry.first.Scalar();
    LLATTE_CHECK(std::find(seen.begin(), seen.end(), key) == seen.end(), from.at(entry.first), ": the key '",
                 key, "' appears twice", path.empty() ? "" : " under ", path, "; keep one of them");
    seen.push_back(key);
    if (path.empty() && key == "include") continue;
    flatten(entry.second, path.empty() ? key : path + "." + key, from, depth + 1, out);
  }
}

void flatten(const YAML::Node& n, const std::string& path, const Source& from, int depth, Settings& out) {
  LLATTE_CHECK(depth <= kMaxDepth, from.at(n), ": '", path, "' is nested more than ", kMaxDepth,
               " levels deep");
  LLATTE_CHECK(out.size() < kMaxSettings, from.at(n), ": more than ", kMaxSettings,
               " settings; is an alias repeated?");
  if (n.IsMap() && (n.size() > 0 || path.empty())) return flatten_map(n, path, from, depth, out);
  erase_below(out, path);
  erase_above(out, path);
  if (!is_list_of_maps(n)) {
    out[path] = {n, from.at(n)};
    return;
  }
  for (size_t i = 0; i < n.size(); ++i) flatten(n[i], str(path, ".", i), from, depth + 1, out);
}

YAML::Node parse(const std::string& text, const std::string& where) {
  try {
    return YAML::Load(text);
  } catch (const YAML::Exception& e) {
    if (e.mark.is_null()) LLATTE_FAIL(where, ": this is not YAML (", e.msg, ")");
    LLATTE_FAIL(where, ":", e.mark.line + 1, ": this is not YAML (", e.msg, ")");
  }
}

void read_into(Settings& out, const std::filesystem::path& file, int depth) {
  LLATTE_CHECK(depth <= kMaxDepth, file.string(), ": more than ", kMaxDepth,
               " files include one another; does one include itself?");
  const YAML::Node root = parse(read_file(file), file.string());
  if (root.IsNull()) return;
  LLATTE_CHECK(root.IsMap(), file.string(),
               ": a config is a map of sections (model:, tokens:, ...), this is not");
  if (const YAML::Node base = root["include"]) {
    LLATTE_CHECK(base.IsScalar(), file.string(), ":", base.Mark().line + 1, ": include is ", shown(base),
                 "; name one file");
    read_into(out, file.parent_path() / base.Scalar(), depth + 1);
  }
  flatten(root, "", {file.string()}, 0, out);
}

void apply_override(Settings& out, const std::string& text) {
  const size_t equals = text.find('=');
  LLATTE_CHECK(equals != std::string::npos && equals > 0, "command line: '", text,
               "' is no override; write key.path=value, for example tokens.train_steps=100");
  const std::string path = text.substr(0, equals);
  LLATTE_CHECK(path.front() != '.' && path.back() != '.', "command line: '", path, "' is no key path");
  flatten(parse(text.substr(equals + 1), "command line: " + path), path, {""}, 0, out);
}

}  // namespace

Settings read_settings(const std::filesystem::path& file, const std::vector<std::string>& overrides) {
  Settings out;
  read_into(out, file, 0);
  for (const std::string& o : overrides) apply_override(out, o);
  return out;
}

std::string shown(const YAML::Node& value) {
  if (value.IsNull()) return "null";
  if (value.Tag() == "!") return str('"', value.Scalar().substr(0, 60), '"');  // quoted: a text, not a number
  YAML::Emitter e;
  e << YAML::Flow << value;
  std::string s = e.good() ? e.c_str() : "?";
  if (s.size() > 60) s = s.substr(0, 57) + "...";
  return s;
}

}  // namespace llatte
