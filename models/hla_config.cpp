// HLA's object in config.json, in and out. What it asks for is checked by LlamaConfig::check.
#include "models/hla_config.h"
#include <algorithm>

namespace llatte {
namespace {

using json = nlohmann::json;
using ordered = nlohmann::ordered_json;

HlaRope read_rope(const Fields& f) {
  const std::string word = f.text("rope", "aligned");
  std::string known;
  for (size_t i = 0; i < std::size(kHlaRopes); ++i) {
    if (word == kHlaRopes[i]) return static_cast<HlaRope>(i);
    known += std::string(i ? ", " : "") + kHlaRopes[i];
  }
  LLATTE_FAIL(f.where(), ": rope is '", printable(word), "'; have ", known);
}

std::vector<int32_t> numbers(const Fields& f, const char* key) {
  if (!f.has(key)) return {};
  const json& list = f.at(key);
  const auto fits = [](const json& v) {
    return v.is_number_integer() && 0 <= v.get<int64_t>() && v.get<int64_t>() <= INT32_MAX;
  };
  LLATTE_CHECK(list.is_array() && std::all_of(list.begin(), list.end(), fits), f.where(), ": ", key, " is ",
               shown(list), ", expected a list of numbers of at least 0");
  return list.get<std::vector<int32_t>>();
}

Planes planes(const Fields& f, const char* pairs, const char* blocks) {
  Planes p{numbers(f, pairs), numbers(f, blocks)};
  if (!f.has(blocks)) p.block.assign(p.pair.size(), 0);
  return p;
}

HlaLayer read_layer(const Fields& f) {
  HlaLayer l;
  l.k = planes(f, "k_pairs", "k_blocks"), l.q = planes(f, "q_pairs", "q_blocks");
  l.rank_q = f.integer("rank_q", 0), l.rank_k = f.integer("rank_k", 0), l.rank_v = f.integer("rank_v");
  return l;
}

void add_planes(ordered& j, const char* pairs, const char* blocks, const Planes& p) {
  if (p.pair.empty()) return;
  j[pairs] = p.pair;
  if (std::any_of(p.block.begin(), p.block.end(), [](int32_t b) { return b != 0; })) j[blocks] = p.block;
}

ordered layer_json(const HlaLayer& l) {
  ordered j = ordered::object();
  add_planes(j, "k_pairs", "k_blocks", l.k);
  add_planes(j, "q_pairs", "q_blocks", l.q);
  if (l.rank_q) j["rank_q"] = l.rank_q;
  if (l.rank_k) j["rank_k"] = l.rank_k;
  j["rank_v"] = l.rank_v;
  return j;
}

}  // namespace

HlaConfig read_hla(const Fields& f, int64_t head_dim) {
  HlaConfig c;
  c.rope = read_rope(f);
  c.rope_pairs = f.integer("rope_pairs", c.rope == HlaRope::unified ? 0 : head_dim / 2);
  c.head_block = f.integer("head_block", 0);
  LLATTE_CHECK(f.has("layers") && f.at("layers").is_array(), f.where(),
               ": layers must be a list of what each layer is made of");
  const json& layers = f.at("layers");
  for (size_t l = 0; l < layers.size(); ++l)
    c.layers.push_back(read_layer(Fields(layers[l], str(f.where(), ": layers[", l, "]"))));
  return c;
}

ordered hla_json(const HlaConfig& c) {
  ordered j{{"rope", name(c.rope)}, {"rope_pairs", c.rope_pairs}, {"head_block", c.head_block}};
  j["layers"] = ordered::array();
  for (const HlaLayer& l : c.layers) j["layers"].push_back(layer_json(l));
  return j;
}

}  // namespace llatte
