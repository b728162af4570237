// Everything a training run is told, read from YAML in nanotron's schema (as MHA2MLA uses it) with llatte's
// additions, and checked key by key before anything is built. Errors name file, line, key and value.
//   - an unknown key is an error that names the nearest known one
//   - nanotron keys that mean nothing here are accepted and listed in `warnings`
//   - a value that can't be honoured (tp: 2) is an error, never ignored
// The schema itself is one table, in schema.cpp.
#pragma once
#include <filesystem>
#include <map>
#include <set>
#include "convert/settings.h"
#include "models/llama.h"
#include "optim/adamw.h"
#include "optim/schedule.h"
#include "tensor/kernel_args.h"  // DistillRule

namespace llatte {

struct CheckpointConfig {
  std::filesystem::path folder = "checkpoints";  // checkpoints_path: the run folder
  int64_t interval = 0;                          // 0: only at the end
  std::string start;                             // resume_checkpoint_path; empty: from init_method
  bool save_initial = false, save_final = true, load_schedule = true, load_optimizer = true;
  std::optional<int64_t> keep_last;
};

struct DataStage {
  std::string name;
  int64_t start_step = 1;  // the first step it serves, counted from 1
  std::vector<std::string> folders;
  std::vector<double> weights;
  uint64_t seed = 42;
};

struct Distill {
  std::string teacher;  // a model in any format
  DistillRule rule;
};

struct TrainConfig {
  std::string file;  // the YAML it came from
  std::string project, run = "run";
  uint64_t seed = 42;
  int64_t log_interval = 1;

  LlamaConfig model;
  std::set<std::string> model_keys;  // model_config keys that were given: start weights must agree with them
  std::vector<std::string> latent_words;  // of RoPE, SVD, HLA and convert, as given
  // What they ask for; none: ordinary attention. model.mla is set with it, or model.hla where there are no
  // start weights.
  std::optional<ConversionSettings> latent;
  DType dtype = DType::f32;
  double init_std = 0.02;
  std::string init_path;
  std::optional<int64_t> processes;  // parallelism.dp: how many ranks the config was written for
  double timeout_s = 600;            // how long a rank waits for the others before it takes them for dead
  bool recompute_layer = false, freeze_non_attn = false, freeze_embedding = false;

  CheckpointConfig checkpoints;
  std::vector<DataStage> stages;
  AdamWConfig adamw;
  Schedule schedule;
  std::string tokenizer;  // folder or file; empty: the start weights' own, or none

  int64_t micro_batch = 1, accumulation = 1, sequence_length = 0, train_steps = 0;
  int64_t val_interval = -1, val_batches = 0;  // -1: no validation; 0 batches: all
  std::string val_dataset;
  std::optional<int64_t> patience;

  // Not in the YAML: --device, and how many are running (until run_on(): as many as it was written for).
  Device device = Device::cpu;
  int64_t ranks = 1;

  std::optional<Distill> distill;  // none: the loss is the cross-entropy

  std::vector<std::string> warnings;
  std::map<std::string, std::string> settings;  // key path -> value as written, for the checkpoint's record

  std::string start_weights() const { return checkpoints.start.empty() ? init_path : checkpoints.start; }
  bool validates() const { return val_interval > 0 && !val_dataset.empty(); }
  int64_t samples_per_step() const { return micro_batch * accumulation * ranks; }  // of all ranks
  // Throws if it was written for another number: a step would hold other tokens.
  void run_on(int64_t running);
  int64_t tokens_per_step() const { return samples_per_step() * sequence_length; }
};

// Reads the file with its includes and the `key.path=value` overrides; throws one sentence for the first
// fault.
TrainConfig load_train_config(const std::filesystem::path& file,
                              const std::vector<std::string>& overrides = {});

// Every key the schema knows, lists written as `data_stages.*.name`.
std::vector<std::string> known_config_keys();

// What optimizer.freeze_non_attn leaves to train, of every kind of attention.
inline bool is_attention_or_norm(const std::string& name) {
  return name.find("self_attn") != std::string::npos || name.find("norm") != std::string::npos;
}
// Whether the run trains the parameter: freeze_non_attn and freeze_embedding may say no.
inline bool is_trained(const TrainConfig& c, const std::string& name) {
  return (!c.freeze_non_attn || is_attention_or_norm(name)) &&
         (!c.freeze_embedding || name != "model.embed_tokens.weight");
}

// Throws where a model_config key that was given differs from the start weights' config; RoPE and SVD too, if
// those have latent attention already.
void check_model_keys(const TrainConfig& c, const LlamaConfig& loaded, const std::string& path);

}  // namespace llatte
