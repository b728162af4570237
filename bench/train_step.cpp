// A whole training step on random tokens, timed by its phases: forward, backward, clip + AdamW. Prints one
// JSON line. The forward phase includes lm_head's gradients, which are made while the logits exist. Not here:
// reading data, checkpoints, schedules (train/). bench/torch_train.py is the same step in PyTorch.
// Under mpirun each rank takes a batch, and rank 0 prints the steps as it saw them, beside the time that the
// same gradients take to be summed while nothing is computed. bench/scaling.py asks for what is to be
// compared.
#include <sys/resource.h>
#include <chrono>
#include <random>
#include "apps/common.h"
#include "bench/wait.h"
#include "models/llama.h"
#include "optim/adamw.h"
#include "tensor/alloc.h"

namespace llatte {
namespace {

struct Options {
  std::string preset = "clm-60m", dtype = "f32";
  int64_t batch = 2, seq = 512, steps = 8, warmup = 2;
  double lr = 3e-4;
  bool recompute = false, alone = false;
  int64_t bucket_mib = 25;
  int zero_stage = 0;
  Device device = Device::cpu;
};

struct Phases {
  std::vector<double> fwd, bwd, opt, step;  // seconds
};

struct Sample {
  Tensor tokens, targets;
};

class RandomTokens {
 public:
  RandomTokens(int64_t batch, int64_t seq, int64_t vocab) : batch_(batch), seq_(seq), vocab_(vocab) {}
  Sample next() {
    std::vector<int32_t> tokens, targets;
    for (int64_t b = 0; b < batch_; ++b) {
      int32_t id = draw();
      for (int64_t t = 0; t < seq_; ++t) {
        tokens.push_back(id);
        targets.push_back(id = draw());
      }
    }
    return {Tensor::from(tokens, {batch_, seq_}), Tensor::from(targets, {batch_, seq_})};
  }

 private:
  int32_t draw() { return static_cast<int32_t>(engine_() % static_cast<uint64_t>(vocab_)); }
  int64_t batch_, seq_, vocab_;
  std::mt19937_64 engine_{1};
};

double seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

double median(std::vector<double> x) {
  std::sort(x.begin(), x.end());
  const size_t n = x.size();
  return n % 2 ? x[n / 2] : (x[n / 2 - 1] + x[n / 2]) / 2;
}

double timed_step(Llama& model, AdamW& optimizer, const Sample& batch, double lr, Phases& phases) {
  const double start = seconds();
  const Var loss = model.loss(batch.tokens, batch.targets);
  wait(loss.value.device());
  const double after_fwd = seconds();
  optimizer.expect_last_backward();
  backward(loss);
  wait(loss.value.device());
  const double after_bwd = seconds();
  optimizer.step(lr);
  wait(loss.value.device());
  const double end = seconds();
  phases.fwd.push_back(after_fwd - start);
  phases.bwd.push_back(after_bwd - after_fwd);
  phases.opt.push_back(end - after_bwd);
  phases.step.push_back(end - start);
  return loss.value.item();
}

double mib(int64_t bytes) { return static_cast<double>(bytes) / (1 << 20); }

double peak_rss_mib() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<double>(usage.ru_maxrss) / 1024;
}

// Gradients of f32, sent in buckets, the way optim/ddp.h does it.
double seconds_to_sum(int64_t params, int64_t bucket_bytes, Comm& comm) {
  if (comm.size() == 1) return 0;
  std::vector<Tensor> buckets;
  for (int64_t left = params; left > 0; left -= bucket_bytes / 4)
    buckets.push_back(Tensor::zeros({std::min(left, bucket_bytes / 4)}, DType::f32));
  std::vector<double> times;
  for (int i = 0; i < 3; ++i) {
    comm.barrier();
    const double start = seconds();
    std::vector<std::future<void>> sums;
    for (const Tensor& b : buckets) sums.push_back(comm.start_all_reduce_sum(b));
    for (auto& s : sums) s.get();
    times.push_back(seconds() - start);
  }
  return median(times);
}

nlohmann::ordered_json report(const Options& o, Llama& model, const Phases& p, double first, double last,
                              Comm& comm) {
  const auto [least, most] = std::minmax_element(p.step.begin(), p.step.end());
  const double tokens = static_cast<double>(o.batch * o.seq * comm.size()), med = median(p.step);
  return {{"prog", "llatte"},
          {"model", o.preset},
          {"params", param_count(model)},
          {"batch", o.batch},
          {"seq", o.seq},
          {"dtype", o.dtype},
          {"recompute", o.recompute},
          {"ranks", comm.size()},
          {"threads", omp_get_max_threads()},
          {"zero_stage", o.zero_stage},
          {"bucket_mib", o.bucket_mib},
          {"steps", o.steps},
          {"tok_s", {{"min", tokens / *most}, {"med", tokens / med}, {"max", tokens / *least}}},
          {"step_s", {{"min", *least}, {"med", med}, {"max", *most}}},
          {"phase_med_s", {{"fwd", median(p.fwd)}, {"bwd", median(p.bwd)}, {"opt", median(p.opt)}}},
          {"sum_alone_s", seconds_to_sum(param_count(model), o.bucket_mib << 20, comm)},
          {"peak_rss_mib", peak_rss_mib()},
          {"tensors_peak_mib", mib(alloc_stats(o.device).peak_bytes)},
          {"tensors_reserved_mib", mib(alloc_stats(o.device).reserved_bytes)},
          {"loss", {{"first", first}, {"last", last}}}};
}

nlohmann::ordered_json measure(const Options& o, Comm& comm) {
  Llama model(preset(o.preset), o.dtype == "bf16" ? DType::bf16 : DType::f32);
  model.init(1, 0.02);
  model.to(o.device);
  model.set_recompute(o.recompute);
  AdamWConfig c;
  c.weight_decay = 0.1, c.zero_stage = o.zero_stage, c.bucket_bytes = o.bucket_mib << 20;
  AdamW optimizer(model, c, nullptr, o.alone ? nullptr : &comm);
  RandomTokens tokens(o.batch, o.seq, model.config().vocab_size);
  Phases phases;
  double first = 0, last = 0;
  for (int64_t i = 0; i < o.warmup + o.steps; ++i) {
    if (i == o.warmup) phases = {}, comm.barrier();
    last = timed_step(model, optimizer, tokens.next(), o.lr, phases);
    if (i == 0) first = last;
  }
  return report(o, model, phases, first, last, comm);
}

}  // namespace
}  // namespace llatte

int main(int argc, char** argv) {
  llatte::Options o;
  llatte::App app("train_step", "Times the training step on random tokens; prints one JSON line.",
                  "build/bench/train_step --preset clm-60m --batch 2 --seq 512 --dtype bf16 --threads 2");
  app.cli.add_option("--preset", o.preset, "which model")->capture_default_str();
  app.cli.add_option("--dtype", o.dtype)->check(CLI::IsMember({"f32", "bf16"}))->capture_default_str();
  app.cli.add_option("--batch", o.batch)->check(CLI::Range(1, 4096))->capture_default_str();
  app.cli.add_option("--seq", o.seq)->check(CLI::Range(1, 1 << 20))->capture_default_str();
  app.cli.add_option("--steps", o.steps, "timed steps")->check(CLI::Range(1, 1 << 20))->capture_default_str();
  app.cli.add_option("--warmup", o.warmup, "steps before")->check(CLI::Range(0, 1000))->capture_default_str();
  app.cli.add_option("--lr", o.lr)->capture_default_str();
  app.cli.add_option("--zero-stage", o.zero_stage)->check(CLI::Range(0, 1))->capture_default_str();
  app.cli.add_option("--bucket-mib", o.bucket_mib)->check(CLI::Range(1, 1 << 20))->capture_default_str();
  app.cli.add_flag("--alone", o.alone, "ranks compute side by side and sum nothing");
  app.cli.add_flag("--recompute", o.recompute, "recompute each layer in backward");
  app.over_ranks();
  return app.run(argc, argv, [&] {
    o.device = app.device;
    app.print_json(llatte::measure(o, app.comm()));
  });
}
