// What a conversion will do, decided before any weight is changed: settings in, one plan out, which
// everything else follows. It can be printed, saved and read back.
#pragma once
#include <filesystem>
#include <string>
#include "convert/settings.h"
#include "models/checkpoint.h"

namespace llatte {

struct ConversionPlan {
  ConversionSettings settings;
  LlamaConfig config;  // of the result: its mla or hla says what every layer is made of
};

// An Error where the settings ask for what cannot be done to this model.
ConversionPlan make_plan(const Checkpoint& source, const ConversionSettings& settings);

std::string plan_table(const ConversionPlan& plan);
void save_plan(const std::filesystem::path& file, const ConversionPlan& plan);
// For a model of the shape it was made for.
ConversionPlan load_plan(const std::filesystem::path& file, const Checkpoint& source);

}  // namespace llatte
