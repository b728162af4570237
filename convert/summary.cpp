#include "convert/summary.h"
#include <cstdio>
#include <map>

namespace llatte {
namespace {

// model.layers.7.mlp.up_proj.weight -> model.layers.*.mlp.up_proj.weight
std::string kind_of(const std::string& name) {
  const std::string head = "model.layers.";
  if (name.compare(0, head.size(), head) != 0) return name;
  return head + "*" + name.substr(name.find('.', head.size()));
}

struct Kind {
  int64_t count = 0, bytes_in = 0, bytes_out = 0;
  Shape shape;
  std::string dtype_in, dtype_out;
};

// A kind may have several types in one file: Q4_K_M keeps some layers in Q6_K.
void add_type(std::string& list, const std::string& dtype) {
  if (("," + list + ",").find("," + dtype + ",") != std::string::npos) return;
  list += (list.empty() ? "" : ",") + dtype;
}

std::string megabytes(int64_t bytes) {
  char text[32];
  std::snprintf(text, sizeof text, "%.2f MB", static_cast<double>(bytes) / 1e6);
  return text;
}

std::string line(const std::string& name, const std::string& count, const std::string& shape,
                 const std::string& read, const std::string& written) {
  char text[256];
  std::snprintf(text, sizeof text, "%-48.80s %5.12s %-16.40s %-24.50s %.50s\n", name.c_str(), count.c_str(),
                shape.c_str(), read.c_str(), written.c_str());
  return text;
}

}  // namespace

std::string weight_table(const Checkpoint& source, const Checkpoint& result) {
  std::vector<std::string> order;
  std::map<std::string, Kind> kinds;
  for (const auto& [name, w] : source.weights) {
    Kind& k = kinds[kind_of(name)];
    if (k.count++ == 0) order.push_back(kind_of(name));
    k.shape = w.shape, k.bytes_in += w.bytes;
    add_type(k.dtype_in, w.dtype);
  }
  for (const auto& [name, w] : result.weights) {
    kinds[kind_of(name)].bytes_out += w.bytes;
    add_type(kinds[kind_of(name)].dtype_out, w.dtype);
  }
  std::string table =
      line("weights", "", "shape", "read (" + source.format + ")", "written (" + result.format + ")");
  for (const std::string& name : order) {
    const Kind& k = kinds[name];
    table += line(name, std::to_string(k.count), str(k.shape), k.dtype_in + " " + megabytes(k.bytes_in),
                  k.dtype_out + " " + megabytes(k.bytes_out));
  }
  return table + line("total", std::to_string(source.weights.size()),
                      str(param_count(source.config), " numbers"), megabytes(source.bytes()),
                      megabytes(result.bytes()));
}

int64_t cache_bytes_per_token(const Checkpoint& c) {
  return cache_values(c.config) * static_cast<int64_t>(size_of(c.dtype()));
}

}  // namespace llatte
