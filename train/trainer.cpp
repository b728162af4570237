#include "train/trainer.h"
#include <chrono>
#include <cmath>
#include "models/checkpoint.h"
#include "models/hf.h"
#include "train/ranks.h"
#include "train/start_model.h"

namespace llatte {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

constexpr int64_t kCheckWeights = 100;  // steps from one look at all ranks' weights to the next

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

void check_finite(const std::string& what, double value, int64_t step, double lr) {
  LLATTE_CHECK(
      std::isfinite(value), "step ", step, ": the ", what, " is ", value, " at learning rate ", lr,
      "; nothing was updated and the last checkpoint stays: lower "
      "optimizer.learning_rate_scheduler.learning_rate, warm up longer, or look at the data of this step");
}

// Where --resume leads: a checkpoint that has trainer/, or nothing.
std::optional<fs::path> resume_point(const TrainConfig& c, const std::string& resume, Progress& progress) {
  const fs::path run = c.checkpoints.folder;
  const auto say = [&](const std::string& s) { progress.note(s); };
  if (resume == "auto") return newest_whole(run, say);
  if (resume == "never") {
    LLATTE_CHECK(
        saved_steps(run).empty() && !fs::exists(run / "metrics.jsonl"), run.string(),
        " has been trained in already; choose another checkpoints.checkpoints_path, or --resume auto");
    return std::nullopt;
  }
  if (has_trainer_state(resume)) return fs::path(resume);
  const auto newest = newest_whole(resume, say);
  LLATTE_CHECK(newest, resume,
               " is no checkpoint to resume: it has neither trainer/state.json nor step folders");
  return newest;
}

// Settings that were changed since the checkpoint was written: allowed (a longer run, another rate), but
// said.
std::string changed_settings(const std::map<std::string, std::string>& before,
                             const std::map<std::string, std::string>& now) {
  std::string out;
  for (const auto& [key, value] : now) {
    const auto it = before.find(key);
    const std::string old = it == before.end() ? "unset" : it->second;
    if (old != value) out += (out.empty() ? "" : ", ") + key + " " + old + " -> " + value;
  }
  return out;
}

}  // namespace

Trainer::Trainer(TrainConfig config, const std::string& resume, Comm& comm)
    : comm_(comm),
      config_(std::move(config)),
      progress_(config_.train_steps, config_.log_interval, comm.rank() > 0) {
  config_.run_on(comm.size());
  comm.set_timeout(config_.timeout_s);
  const fs::path run = config_.checkpoints.folder;
  if (const auto checkpoint = resume_point(config_, resume, progress_)) start_from(*checkpoint);
  else start_fresh();
  open_teacher();
  check_same_weights(*model_, comm_);
  if (comm_.rank() == 0) {
    fs::create_directories(run);
    lock_ = std::make_unique<FolderLock>(run);
    remove_temporary_folders(run);
  }
  rank_0_first(comm_, [&] { open_data(); });
  if (comm_.rank() > 0) return;
  metrics_ = std::make_unique<MetricsFile>(run / "metrics.jsonl", state_.step);
  events_ = std::make_unique<TfEventWriter>(run);
}

// ---- one step
StepRecord Trainer::step() {
  const Clock::time_point start = Clock::now();
  enter_stage();
  const double lr = config_.schedule.at(state_.step - state_.schedule_start);
  StepRecord r;
  r.lr = lr;
  std::vector<LossParts> parts;
  for (int64_t i = 0; i < config_.accumulation; ++i) parts.push_back(micro_batch(i));
  // A loss that is not finite makes a norm that is not, with which nothing is updated: so the losses may be
  // read last, and a device is waited for once.
  r.grad_norm = optimizer_->step(lr);
  add_up(parts, r);
  check_finite("gradient norm", r.grad_norm, state_.step + 1, lr);

  state_.step += 1;
  if (state_.step % kCheckWeights == 0) check_same_weights(*model_, comm_);
  state_.samples += config_.samples_per_step();
  state_.stage_samples += config_.samples_per_step();
  state_.tokens += config_.tokens_per_step();
  const double seconds = seconds_since(start);
  r.step = state_.step, r.tokens = state_.tokens;
  r.tokens_per_s = double(config_.tokens_per_step()) / seconds;
  r.step_ms = seconds * 1000, r.rss_bytes = resident_bytes();
  return r;
}

// Forward and backward of micro-batch `index` of this step. The loss is a mean over its tokens, the gradients
// a mean over the micro-batches of all ranks: hence the cotangent. Ranks take micro-batches in turn.
Trainer::LossParts Trainer::micro_batch(int64_t index) {
  const int64_t B = config_.micro_batch, stride = B * config_.ranks;
  const int64_t first = state_.stage_samples + index * stride + comm_.rank() * B;
  const Batch batch = stages_[static_cast<size_t>(state_.stage)]->batch(first, B, stride);
  const DistillLoss d = loss_of(batch);
  if (index == config_.accumulation - 1) optimizer_->expect_last_backward();
  backward(d.loss, Tensor::full({}, share(), d.loss.value.dtype(), d.loss.value.device()));
  return {d.loss.value, d.kl, d.ce};
}

// Cross-entropy, which has no parts, or what distill says.
DistillLoss Trainer::loss_of(const Batch& batch) {
  if (!teacher_) return {model_->loss(batch.tokens, batch.targets), {}, {}};
  return distill_loss(*model_, *teacher_, batch.tokens, batch.targets, config_.distill->rule);
}

// The loss of the step, and where there is a teacher its parts, from the micro-batches of all ranks.
void Trainer::add_up(const std::vector<LossParts>& parts, StepRecord& r) const {
  double loss = 0, kl = 0, ce = 0;
  for (const LossParts& p : parts) {
    loss += p.loss.item() * share();
    if (p.kl.defined()) kl += p.kl.item() * share(), ce += p.ce.item() * share();
  }
  if (teacher_) r.kl = 0, r.ce = 0;
  const auto all = of_all_ranks({loss, kl, ce}, comm_);
  for (size_t rank = 0; rank < all.size(); ++rank) {
    check_finite(all.size() > 1 ? str("loss of rank ", rank) : "loss", all[rank][0], state_.step + 1, r.lr);
    r.loss += all[rank][0];
    if (teacher_) *r.kl += all[rank][1], *r.ce += all[rank][2];
  }
}

// A stage serves the steps from its start_training_step (counted from 1) on, beginning with its first sample.
void Trainer::enter_stage() {
  int64_t stage = 0;
  for (size_t i = 0; i < config_.stages.size(); ++i)
    if (state_.step + 1 >= config_.stages[i].start_step) stage = static_cast<int64_t>(i);
  if (stage == state_.stage) return;
  state_.stage = stage;
  state_.stage_samples = 0;
}

// ---- the run
TrainSummary Trainer::run(const std::atomic<bool>& stop) {
  const Clock::time_point start = Clock::now();
  std::optional<StepRecord> last;
  if (state_.step == 0 && config_.checkpoints.save_initial && checkpoint_.empty()) save();
  bool stopping = false;  // agreed upon: a signal reaches ranks at different times
  while (state_.step < config_.train_steps && !out_of_patience() && !(stopping = any_rank(stop, comm_))) {
    last = step();
    record_validation(*last);
    record(*last);
    if (config_.checkpoints.interval > 0 && state_.step % config_.checkpoints.interval == 0) save();
  }
  const bool finished = state_.step >= config_.train_steps;
  const std::string here = (config_.checkpoints.folder / std::to_string(state_.step)).string();
  const bool wanted = config_.checkpoints.save_final || (stopping && !finished);
  if (last && wanted && checkpoint_ != here) save();
  TrainSummary s{state_.step,
                 state_.tokens,
                 finished   ? "finished"
                 : stopping ? "stopped"
                            : "no improvement",
                 {},
                 {},
                 {},
                 seconds_since(start),
                 checkpoint_};
  if (last) s.loss = last->loss, s.val_loss = last->val_loss;
  if (std::isfinite(state_.best_val_loss)) s.best_val_loss = state_.best_val_loss;
  return s;
}

// metrics.jsonl is the record; TensorBoard's file is drawn from the same numbers.
void Trainer::record(const StepRecord& r) {
  if (comm_.rank() > 0) return;
  metrics_->append(r);
  const std::pair<const char*, double> scalars[] = {
      {"loss", r.loss}, {"lr", r.lr}, {"grad_norm", r.grad_norm}, {"tokens_per_s", r.tokens_per_s}};
  for (const auto& [tag, value] : scalars) events_->scalar(tag, r.step, static_cast<float>(value));
  if (r.kl) events_->scalar("kl", r.step, static_cast<float>(*r.kl));
  if (r.ce) events_->scalar("ce", r.step, static_cast<float>(*r.ce));
  if (r.val_loss) events_->scalar("val_loss", r.step, static_cast<float>(*r.val_loss));
  progress_.step(r);
}

void Trainer::save() {
  const fs::path& run = config_.checkpoints.folder;
  checkpoint_ = (run / std::to_string(state_.step)).string();
  if (comm_.rank() > 0) {  // gives what it keeps of the optimizer's state
    for (const OptimizerTensor& t : optimizer_->state()) t.get();
    return;
  }
  metrics_->sync();  // a checkpoint counts on the lines of its steps
  save_checkpoint(run, *model_, *optimizer_, state_, tokenizer_.json);
  if (config_.checkpoints.keep_last) remove_old_checkpoints(run, *config_.checkpoints.keep_last);
}

// ---- validation
void Trainer::record_validation(StepRecord& r) {
  const bool due =
      config_.validates() && (r.step % config_.val_interval == 0 || r.step == config_.train_steps);
  if (!due) return;
  r.val_loss = validate();
  r.val_ppl = std::exp(*r.val_loss);
  state_.validations_since_best += 1;
  if (!(*r.val_loss < state_.best_val_loss)) return;
  state_.best_val_loss = *r.val_loss;
  state_.validations_since_best = 0;
  if (comm_.rank() == 0) save_best(config_.checkpoints.folder, *model_, tokenizer_.json);
}

// Whole, non-overlapping windows of sequence_length tokens, each predicting all but its first: what
// `eval ppl --window` measures. Ranks take batches in turn.
double Trainer::validate() {
  const NoGrad off;
  const int64_t T = config_.sequence_length;
  double sum = 0;
  int64_t windows = 0, batches = 0;
  for (const TokenFile& file : validation_)
    for (int64_t w = 0; w < file.size() / T && (config_.val_batches == 0 || batches < config_.val_batches);
         ++batches) {
      const int64_t B = std::min(config_.micro_batch, file.size() / T - w);
      const int64_t first = w;
      windows += B, w += B;
      if (batches % comm_.size() != comm_.rank()) continue;
      Tensor tokens = Tensor::empty({B, T}, DType::i32), targets = Tensor::full({B, T}, -100, DType::i32);
      for (int64_t b = 0; b < B; ++b) {
        file.copy((first + b) * T, T, tokens.data<int32_t>() + b * T);
        file.copy((first + b) * T + 1, T - 1, targets.data<int32_t>() + b * T);
      }
      sum += model_->loss(tokens, targets).value.item() * double(B);
    }
  double all = 0;
  for (const std::vector<double>& of_rank : of_all_ranks({sum}, comm_)) all += of_rank[0];
  return all / double(windows);
}

bool Trainer::out_of_patience() const {
  return config_.patience && state_.validations_since_best >= *config_.patience;
}

// ---- beginnings
void Trainer::start_from(const fs::path& checkpoint) {
  state_ = read_state(checkpoint);
  const std::string changed = changed_settings(state_.settings, config_.settings);
  if (!changed.empty()) progress_.note("resuming with other settings than the checkpoint's: " + changed);
  model_ = load_hf(checkpoint, config_.dtype);
  LLATTE_CHECK(!converts(config_, model_->config()), checkpoint.string(), " has no latent attention, but ",
               config_.file,
               " asks for it with RoPE, SVD or HLA; name it in model.init_method.path and train into another "
               "checkpoints.checkpoints_path");
  if (config_.latent && config_.latent->gqa2mha)
    config_.model_keys.erase("num_key_value_heads");  // was changed
  check_model_keys(config_, model_->config(), checkpoint.string());
  make_optimizer();
  load_optimizer(checkpoint, *optimizer_);
  state_.settings = config_.settings;
  const bool own = config_.tokenizer.empty() && fs::exists(checkpoint / "tokenizer.json");
  tokenizer_ = read_tokenizer(own ? checkpoint.string() : config_.tokenizer);
  checkpoint_ = checkpoint.string();
  progress_.note(str("resuming ", checkpoint.string(), " at step ", state_.step));
}

void Trainer::start_fresh() {
  state_.settings = config_.settings;
  tokenizer_ = read_tokenizer(config_.tokenizer);
  if (config_.start_weights().empty()) {
    model_ = new_model(config_);
    return make_optimizer();
  }
  const fs::path start =
      start_folder(config_.start_weights(), [&](const std::string& s) { progress_.note(s); });
  const Checkpoint checkpoint = open_checkpoint(start);
  check_model_keys(config_, checkpoint.config, start.string());
  const bool converted = converts(config_, checkpoint.config);
  model_ = start_model(config_, checkpoint);
  if (converted)
    progress_.note(str("converted the attention of ", start.string(), ": ",
                       mean_cache_values(checkpoint.config), " cached values per token and layer before, ",
                       mean_cache_values(model_->config()), " after"));
  if (tokenizer_.json.empty()) tokenizer_ = {checkpoint.tokenizer_json, start.string()};
  make_optimizer();
  if (converted || config_.checkpoints.start.empty() || !has_trainer_state(start)) return;
  state_ = read_state(start);
  state_.settings = config_.settings;
  if (config_.checkpoints.load_optimizer) load_optimizer(start, *optimizer_);
  if (!config_.checkpoints.load_schedule) state_.schedule_start = state_.step;
  progress_.note(str("continuing ", start.string(), " at step ", state_.step));
}

void Trainer::open_teacher() {
  if (!config_.distill) return;
  const Checkpoint checkpoint =
      llatte::open_teacher(*config_.distill, [&](const std::string& s) { progress_.note(s); });
  check_teacher(model_->config(), checkpoint.config, config_.sequence_length, checkpoint.path.string());
  teacher_ = load_model(checkpoint, config_.dtype);
  teacher_->to(config_.device);
}

void Trainer::make_optimizer() {
  model_->to(config_.device);
  model_->set_recompute(config_.recompute_layer);
  share_weights(*model_, comm_);  // before AdamW copies them
  const auto trains = [&](const std::string& name) { return is_trained(config_, name); };
  optimizer_ = std::make_unique<AdamW>(*model_, config_.adamw, trains, &comm_);
}

void Trainer::open_data() {
  LLATTE_CHECK(config_.sequence_length <= model_->config().max_position_embeddings, config_.file,
               ": tokens.sequence_length is ", config_.sequence_length, " but the model has only ",
               model_->config().max_position_embeddings, " positions; shorten the sequences");
  DataSources data(config_.checkpoints.folder / "cache", tokenizer_, model_->config().vocab_size);
  for (const DataStage& s : config_.stages) stages_.push_back(data.loader(s, config_.sequence_length));
  LLATTE_CHECK(state_.stage < static_cast<int64_t>(stages_.size()), "the checkpoint is in data stage ",
               state_.stage + 1, ", but ", config_.file, " has only ", stages_.size(),
               "; keep the stages that were trained on");
  if (!config_.validates()) return;
  validation_ = data.open(config_.val_dataset);
  int64_t windows = 0;
  for (const TokenFile& f : validation_) windows += f.size() / config_.sequence_length;
  LLATTE_CHECK(windows > 0 && config_.sequence_length > 1, config_.val_dataset, " has no whole window of ",
               config_.sequence_length,
               " tokens to validate on; shorten tokens.sequence_length or name more data");
}

}  // namespace llatte
