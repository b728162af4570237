// train CONFIG.yaml [key.path=value ...]: one page around train/trainer.h.
#include <csignal>
#include "apps/common.h"
#include "models/checkpoint.h"
#include "train/distill.h"
#include "train/plan.h"
#include "train/start_model.h"
#include "train/trainer.h"

namespace {

std::atomic<bool> stop_requested{false};

// The first signal ends the run after the step in hand; a second one ends the process at once.
void on_signal(int signal) {
  stop_requested = true;
  std::signal(signal, SIG_DFL);
}

void say(const std::string& sentence) { std::cerr << sentence << std::endl; }

llatte::LlamaConfig planned_model(const llatte::TrainConfig& c) {
  if (c.start_weights().empty()) return c.model;
  const llatte::Checkpoint start = llatte::open_checkpoint(llatte::start_folder(c.start_weights(), say));
  llatte::check_model_keys(c, start.config, start.path.string());
  return llatte::trained_config(c, start.config);
}

void print_plan(const llatte::App& app, const llatte::TrainConfig& c) {
  const llatte::LlamaConfig model = planned_model(c);
  std::optional<llatte::LlamaConfig> teacher;
  if (c.distill) teacher = llatte::open_teacher(*c.distill, say).config;
  const llatte::LlamaConfig* teaches = teacher ? &*teacher : nullptr;
  const llatte::TrainPlan p = llatte::make_plan(c, model, teaches);
  (app.json ? std::cerr : std::cout) << llatte::describe_plan(c, model, teaches);
  if (app.json)
    app.print_json({{"parameters", p.parameters},
                    {"trained_parameters", p.trained_parameters},
                    {"tokens_per_step", p.tokens_per_step},
                    {"total_tokens", p.total_tokens},
                    {"weight_bytes", p.weight_bytes},
                    {"gradient_bytes", p.gradient_bytes},
                    {"optimizer_bytes", p.optimizer_bytes},
                    {"activation_bytes", p.activation_bytes},
                    {"teacher_bytes", p.teacher_bytes}});
}

nlohmann::ordered_json to_json(const llatte::TrainSummary& s) {
  const auto or_null = [](const std::optional<double>& v) {
    return v ? nlohmann::ordered_json(*v) : nlohmann::ordered_json(nullptr);
  };
  return {{"step", s.step},
          {"tokens", s.tokens},
          {"why", s.why},
          {"loss", or_null(s.loss)},
          {"val_loss", or_null(s.val_loss)},
          {"best_val_loss", or_null(s.best_val_loss)},
          {"seconds", s.seconds},
          {"checkpoint", s.checkpoint}};
}

}  // namespace

int main(int argc, char** argv) {
  llatte::App app(
      "train", "Trains a Llama as a YAML config says.",
      "train configs/clm-60m.yaml tokens.train_steps=100 checkpoints.checkpoints_path=runs/first\n"
      "  mpirun -np 4 train configs/clm-60m.yaml optimizer.zero_stage=1      data parallel, on 4 ranks\n\n"
      "SIGINT, SIGTERM or SIGUSR1 finishes the step in hand, saves a checkpoint and exits 0.\n"
      "The run folder gets <step>/ checkpoints (Hugging Face folders), latest.txt, best/, metrics.jsonl.");
  app.over_ranks();
  std::string config, resume = "auto";
  std::vector<std::string> overrides;
  bool dry_run = false;
  app.cli.add_option("config", config, "YAML config; see configs/")->required();
  app.cli.add_option("overrides", overrides, "key.path=value, on top of the config; the value is YAML");
  app.cli
      .add_option("--resume", resume,
                  "auto: continue the newest whole checkpoint of the run folder, or start if there is none; "
                  "never: start, and refuse a run folder that has been trained in; "
                  "DIR: continue from this checkpoint or run folder")
      ->capture_default_str();
  app.cli.add_flag("--dry-run", dry_run, "print parameters, tokens, memory and schedule, and train nothing");
  return app.run(argc, argv, [&] {
    for (const std::string& o : overrides)
      if (o.find('=') == std::string::npos)
        throw llatte::UsageError("'" + o + "' is no key.path=value override");
    llatte::TrainConfig c = llatte::load_train_config(config, overrides);
    c.device = app.device;
    const bool speaks = app.comm().rank() == 0;
    for (const std::string& w : c.warnings)
      if (speaks) say(w);
    if (dry_run) return speaks ? print_plan(app, c) : void();
    std::signal(SIGXFSZ, SIG_IGN);  // a file size limit is an error to report, like a full disk
    std::signal(SIGINT, on_signal);
    std::signal(SIGTERM, on_signal);
    std::signal(SIGUSR1, on_signal);  // what schedulers and mpirun pass on to all ranks
    llatte::Trainer trainer(c, resume, app.comm());
    const llatte::TrainSummary s = trainer.run(stop_requested);
    if (!speaks) return;
    std::cerr << "step " << s.step << ": " << s.why << (s.checkpoint.empty() ? "" : ", saved in ")
              << s.checkpoint << std::endl;
    if (app.json) app.print_json(to_json(s));
  });
}
