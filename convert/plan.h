// What a conversion will do, decided before any weight is changed: settings in, one plan out, which
// everything else follows. It can be printed, saved and read back.
//   L layers  K kv heads  F pairs of a head
#pragma once
#include <filesystem>
#include <string>
#include <vector>
#include "convert/settings.h"
#include "models/checkpoint.h"

namespace llatte {

struct LayerPlan {
  std::vector<std::vector<int32_t>> kept;  // [K] -> pairs that keep RoPE
  SvdMethod method = SvdMethod::none;
  Metric metric = Metric::plain;
  int64_t rank_k = 0, rank_v = 0;  // widths of the latents; 0: not factored
  bool shared = false;             // k and v read the same latent
};

struct ConversionPlan {
  MlaSettings settings;
  LlamaConfig config;             // of the result: its mla is set and its pairs are known
  std::vector<LayerPlan> layers;  // [L]
};

// An Error where the settings ask for what cannot be done to this model.
ConversionPlan make_plan(const Checkpoint& source, const MlaSettings& settings);

std::string plan_table(const ConversionPlan& plan);
void save_plan(const std::filesystem::path& file, const ConversionPlan& plan);
// For a model of the shape it was made for.
ConversionPlan load_plan(const std::filesystem::path& file, const Checkpoint& source);

}  // namespace llatte
