// What a run tells the world: metrics.jsonl, one object a step, and one line on stderr. A terminal has its
// line redrawn; a file or pipe gets a plain line every iteration_step_info_interval steps.
#pragma once
#include <cstdio>
#include <filesystem>
#include <optional>
#include <string>

namespace llatte {

struct StepRecord {
  int64_t step = 0;  // counts from 1
  double loss = 0, lr = 0, grad_norm = 0;
  int64_t tokens = 0;  // trained on since the run began
  double tokens_per_s = 0, step_ms = 0;
  int64_t rss_bytes = 0;
  std::optional<double> val_loss, val_ppl;
  std::optional<double> kl, ce;  // with a teacher: the parts of the loss
};

int64_t resident_bytes();  // of this process, from /proc; 0 where there is none

class MetricsFile {
 public:
  // Opens for appending. Lines of steps after `last_step` are cut off: they will be made again, the same.
  MetricsFile(const std::filesystem::path& file, int64_t last_step);
  ~MetricsFile();
  MetricsFile(const MetricsFile&) = delete;
  MetricsFile& operator=(const MetricsFile&) = delete;
  void append(const StepRecord& r);  // throws if the disk is full
  void sync();                       // before a checkpoint that counts on these lines

 private:
  std::filesystem::path path_;
  std::FILE* file_ = nullptr;
};

class Progress {
 public:
  // quiet: says nothing, for all ranks but the first.
  Progress(int64_t total_steps, int64_t interval, bool quiet);
  ~Progress();
  void step(const StepRecord& r);
  void note(const std::string& sentence);  // a line of its own

 private:
  int64_t total_, interval_, seen_ = 0;
  double mean_ms_ = 0;
  bool quiet_, terminal_, line_open_ = false;
};

}  // namespace llatte
