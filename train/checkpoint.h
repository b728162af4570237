// Checkpoints and the run folder that holds them.
//
//   <run>/<step>/   config.json, model.safetensors (weights, model dtype), tokenizer.json: a Hugging Face
//   folder
//                   trainer/optimizer.safetensors   exp_avg.*, exp_avg_sq.*, master.* (bf16 models)
//                   trainer/state.json              TrainState, and size and checksum of every other file
//   <run>/latest.txt   the step last saved        <run>/best/   weights of the best validation, no trainer/
//
// Laws: a folder is written under a temporary name, synced and published by one rename, so that a step folder
// is whole or absent; an older checkpoint is never touched by a newer one that fails; what a power cut or a
// bad disk did to a folder afterwards is found out by its checksums, and the one before it is used.
#pragma once
#include <filesystem>
#include <limits>
#include <map>
#include <optional>
#include <string>
#include <vector>
#include "models/llama.h"
#include "optim/adamw.h"

namespace llatte {

// Where a run stands: everything that is not a tensor.
struct TrainState {
  int64_t step = 0;            // optimizer steps done
  int64_t samples = 0;         // sequences consumed
  int64_t tokens = 0;          // tokens trained on
  int64_t stage = 0;           // index of the data stage in use
  int64_t stage_samples = 0;   // sequences taken from it: the data position
  int64_t schedule_start = 0;  // the step at which the learning rate schedule began
  double best_val_loss = std::numeric_limits<double>::infinity();
  int64_t validations_since_best = 0;
  std::map<std::string, std::string> settings;  // the config it was trained with, key path -> value
};

// Writes (or replaces) run/<step>/ and then latest.txt. On any failure the temporary folder is removed and
// the Error passed on.
void save_checkpoint(const std::filesystem::path& run, Llama& model, const AdamW& optimizer,
                     const TrainState& state, const std::string& tokenizer_json);
// The same without trainer/, as run/best/.
void save_best(const std::filesystem::path& run, Llama& model, const std::string& tokenizer_json);

bool has_trainer_state(const std::filesystem::path& checkpoint);
// Throws one sentence if a file is missing, has another size or another checksum.
TrainState read_state(const std::filesystem::path& checkpoint);
void load_optimizer(const std::filesystem::path& checkpoint, AdamW& optimizer);

// Steps of the run's checkpoint folders, ascending.
std::vector<int64_t> saved_steps(const std::filesystem::path& run);
// The newest checkpoint that read_state() accepts; every damaged one passed over is reported to `say`.
// nullopt if the run has no checkpoint; throws if it has some but none is whole.
std::optional<std::filesystem::path> newest_whole(const std::filesystem::path& run,
                                                  const std::function<void(const std::string&)>& say);
// Where start weights are: `path` itself if it is a file, a Hugging Face folder or a nanotron checkpoint,
// else its newest whole checkpoint; where it has none, `path`, of which open_checkpoint will say what is
// wrong.
std::filesystem::path start_folder(const std::filesystem::path& path,
                                   const std::function<void(const std::string&)>& say);
// Deletes all but the newest `keep` step folders, and what a killed process left half-written.
void remove_old_checkpoints(const std::filesystem::path& run, int64_t keep);
void remove_temporary_folders(const std::filesystem::path& run);

}  // namespace llatte
