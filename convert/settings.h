// How a conversion is asked for: `key.path=value` words. To MLA, with MHA2MLA's names where it has one:
//   RoPE.*                    as in PartialRope, models/llama.h
//   SVD.method, SVD.version   0 to 7, or a word: none, average, split, ... (SvdMethod)
//   SVD.low_rank              ranks per kv head
//   SVD.metric                plain, white, output or fisher;  SVD.allocate: uniform
//   convert.{gqa2mha, from_scratch}   true or false
// To HLA, which excludes RoPE and SVD:
//   HLA.rope                  original, latent, aligned, hybrid, unified or latent_literal
//   HLA.*                     as in HlaSettings;  HLA.metric: those of SVD, and omega
// To either:
//   convert.calibration, HLA.calibration   a file from `calibrate`
//   convert.{refit_o, balance}             true or false
// docs/conversion.md says what each does.
#pragma once
#include <optional>
#include <string>
#include <vector>
#include "models/llama.h"

namespace llatte {

// What "near" means when weights are factored (low_rank.h). All but plain need a file from `calibrate`.
//   plain   as MHA2MLA: the weights themselves         white   their outputs on real inputs: S = E[x x^T]
//   output  white, and v by what o_proj makes of it    fisher  by what it does to the loss (fisher.h)
//   omega   output, and k and q by the scores they make with each other, at any distance (HLA only)
enum class Metric { plain, white, omega, output, fisher };
const char* name(Metric m);

// How the values that may be cached are dealt out (allocate.h): in every layer the same, k and v each of all
// layers together, or k and v of all layers played off against each other.
enum class Allocation { layer, global, joint };
const char* name(Allocation a);

struct HlaSettings {
  HlaRope rope = HlaRope::aligned;
  double cache = 0.5;                             // share of the 2KE values per token and layer that is kept
  std::optional<int64_t> cache_values;            // or how many, on average over the layers
  bool factor_q = true;                           // q as k, at the same share of its width
  std::optional<int64_t> rank_q, rank_k, rank_v;  // widths by hand, of a layer; planes count 2
  Allocation allocate = Allocation::layer;
  bool even = true;         // latent: every other pair's frequency; false: the first ones
  int64_t rope_pairs = 20;  // hybrid: pairs from this one on lose RoPE
  int64_t head_block = 0;   // kv heads that share planes; 0: all
};

struct ConversionSettings {
  PartialRope rope;
  LowRank svd;
  Metric metric = Metric::plain;
  std::string calibration;         // a file from `calibrate`
  bool refit_o = false;            // fit o_proj to what the converted attention puts out (refit.h)
  bool gqa2mha = false;            // first give every query head k and v of its own
  bool from_scratch = false;       // q, k, v of these shapes, but random: N(0, initializer_range), biases 0
  std::optional<bool> balance;     // low_rank.h; left out: but for MHA2MLA's own factors, which stay so
  std::optional<HlaSettings> hla;  // none: to MLA, by rope and svd
  bool balanced() const { return balance.value_or(hla || metric != Metric::plain); }
};

// An unknown key is an Error that names the nearest one. null: as if left out.
ConversionSettings parse_settings(const std::vector<std::string>& words);
// Words that parse to the same settings.
std::vector<std::string> setting_words(const ConversionSettings& s);

}  // namespace llatte
