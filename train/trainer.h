// The training loop: one Trainer is one run. Read step() first: everything else prepares for it or keeps what
// it made. Laws:
//   - a run is a pure function of config, data and thread count: k steps, kill -9 and a resume give the same
//     weights, moments and metrics, bit for bit, as a run that was never disturbed
//   - a loss or gradient norm that is not finite stops the run before anything is updated
//   - over R ranks (tensor/comm.h) a step takes what one rank would in R times as many micro-batches; all
//     hold the same weights and decide alike; rank 0 alone speaks and writes
#pragma once
#include <atomic>
#include <memory>
#include "data/files.h"
#include "data/tfevents.h"
#include "tensor/comm.h"
#include "train/checkpoint.h"
#include "train/config.h"
#include "train/data_sources.h"
#include "train/distill.h"
#include "train/progress.h"

namespace llatte {

struct TrainSummary {
  int64_t step = 0, tokens = 0;
  std::string why;  // "finished", "stopped" (signal), "no improvement" (early stopping)
  std::optional<double> loss, val_loss, best_val_loss;
  double seconds = 0;
  std::string checkpoint;  // the last one written or resumed from; empty: none
};

class Trainer {
 public:
  // resume: "auto" continues the newest whole checkpoint of the run folder, if there is one; "never" refuses
  // a run folder that has been trained in; anything else is the checkpoint (or run) folder to continue from.
  Trainer(TrainConfig config, const std::string& resume, Comm& comm);
  // Trains until the config's train_steps, until `stop` becomes true on any rank (the step in hand is
  // finished and saved), or until validation has not improved for `patience` times.
  TrainSummary run(const std::atomic<bool>& stop);

  StepRecord step();  // one optimizer step
  double validate();  // mean loss over the validation windows
  Llama& model() { return *model_; }
  AdamW& optimizer() { return *optimizer_; }
  const TrainState& state() const { return state_; }

 private:
  void start_from(const std::filesystem::path& checkpoint);
  void start_fresh();
  void make_optimizer();
  void open_data();
  void enter_stage();
  void open_teacher();
  // Of a micro-batch of this rank, on the device; kl and ce of distillation alone.
  struct LossParts {
    Tensor loss, kl, ce;
  };
  LossParts micro_batch(int64_t index);
  DistillLoss loss_of(const Batch& batch);
  void add_up(const std::vector<LossParts>& parts, StepRecord& r) const;
  double share() const { return 1.0 / double(config_.accumulation * config_.ranks); }  // of a micro-batch
  void record_validation(StepRecord& r);
  void record(const StepRecord& r);
  bool out_of_patience() const;
  void save();

  Comm& comm_;
  TrainConfig config_;
  TrainState state_;
  std::unique_ptr<FolderLock> lock_;  // of the run folder; rank 0 has it, and what writes there
  Progress progress_;
  TokenizerText tokenizer_;
  std::string checkpoint_;
  std::unique_ptr<Llama> model_, teacher_;  // teacher_ null: none
  std::unique_ptr<AdamW> optimizer_;
  std::vector<std::unique_ptr<Loader>> stages_;
  std::vector<TokenFile> validation_;
  std::unique_ptr<MetricsFile> metrics_;
  std::unique_ptr<TfEventWriter> events_;
};

}  // namespace llatte
