// How a conversion to MLA is asked for: `key.path=value` words, MHA2MLA's names where it has one.
//   RoPE.*                    as in PartialRope, models/llama.h
//   SVD.method, SVD.version   0 to 7, or a word: none, average, split, ... (SvdMethod)
//   SVD.low_rank              ranks per kv head
//   SVD.metric                plain, white, output or fisher;  SVD.allocate: uniform
//   convert.calibration       a file from `calibrate`
//   convert.{refit_o, gqa2mha, from_scratch, balance}   true or false
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
enum class Metric { plain, white, output, fisher };
const char* name(Metric m);

struct MlaSettings {
  PartialRope rope;
  LowRank svd;
  Metric metric = Metric::plain;
  std::string calibration;    // a file from `calibrate`
  bool refit_o = false;       // fit o_proj to what the converted attention puts out (refit.h)
  bool gqa2mha = false;       // first give every query head k and v of its own
  bool from_scratch = false;  // q, k, v of these shapes, but random: N(0, initializer_range), biases 0
  std::optional<bool>
      balance;  // low_rank.h; left out: where the metric is ours. plain stays MHA2MLA's own factors
  bool balanced() const { return balance.value_or(metric != Metric::plain); }
};

// An unknown key is an Error that names the nearest one. null: as if left out.
MlaSettings parse_mla_settings(const std::vector<std::string>& words);
// Words that parse to the same settings.
std::vector<std::string> mla_setting_words(const MlaSettings& s);

}  // namespace llatte
