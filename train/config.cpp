#include "train/config.h"
#include <algorithm>
#include <numeric>
#include <sstream>
#include "convert/hla.h"
#include "train/schema.h"

namespace llatte {
namespace {

// data_stages.0.name -> data_stages.*.name
std::string pattern_of(const std::string& path) {
  std::string out, part;
  std::istringstream parts(path);
  while (std::getline(parts, part, '.')) {
    const bool number = !part.empty() &&
                        std::all_of(part.begin(), part.end(), [](char ch) { return ch >= '0' && ch <= '9'; });
    LLATTE_CHECK(!number || part.size() <= 3, path, ": a list can have up to 1000 entries");
    if (!out.empty()) out += '.';
    out += number ? "*" : part;
  }
  return out;
}

bool is_section(const std::string& pattern) {
  return std::any_of(config_schema().begin(), config_schema().end(),
                     [&](const KeyRule& r) { return r.path.starts_with(pattern + "."); });
}

bool is_known(const std::string& pattern) {
  return std::any_of(config_schema().begin(), config_schema().end(),
                     [&](const KeyRule& r) { return r.path == pattern; });
}

// `section: null` and `section: {}` say nothing; any other single value in place of a section is a mistake.
void check_section(const std::string& path, const Setting& s) {
  const bool empty = s.value.IsNull() || ((s.value.IsMap() || s.value.IsSequence()) && s.value.size() == 0);
  LLATTE_CHECK(empty, s.where, ": ", path, " is ", shown(s.value), "; it is a section with keys below it");
}

std::map<std::string, std::vector<std::string>> by_pattern(const Settings& settings) {
  std::map<std::string, std::vector<std::string>> out;
  for (const auto& [path, setting] : settings) {
    const std::string pattern = pattern_of(path);
    if (is_known(pattern)) out[pattern].push_back(path);
    else if (is_section(pattern)) check_section(path, setting);
    else
      LLATTE_FAIL(setting.where, ": unknown key ", path, "; did you mean ",
                  nearest_key(pattern, known_config_keys()), "?");
  }
  return out;
}

void apply(const Settings& settings, TrainConfig& c) {
  const auto given = by_pattern(settings);
  std::string idle;
  for (const KeyRule& rule : config_schema()) {
    const auto it = given.find(rule.path);
    if (it == given.end()) continue;
    for (const std::string& path : it->second) {
      rule.read(c, {path, settings.at(path)});
      if (!rule.has_effect) idle += (idle.empty() ? "" : ", ") + path;
    }
  }
  if (!idle.empty()) c.warnings.push_back(c.file + ": accepted, but without effect here: " + idle);
}

bool is_set(const Settings& s, const std::string& path) {
  const auto it = s.find(path);
  return it != s.end() && !it->second.value.IsNull();
}

// nanotron's defaults that depend on other keys.
void fill_defaults(const Settings& s, TrainConfig& c) {
  c.schedule.total_steps = c.train_steps;
  if (!is_set(s, "optimizer.learning_rate_scheduler.min_decay_lr"))
    c.schedule.min_decay_lr = c.schedule.learning_rate;
  if (!is_set(s, "model.init_method.std")) c.init_std = c.model.initializer_range;
  const bool reshaped =
      is_set(s, "model.model_config.hidden_size") || is_set(s, "model.model_config.num_attention_heads");
  const bool divides =
      c.model.num_attention_heads > 0 && c.model.hidden_size % c.model.num_attention_heads == 0;
  if (!is_set(s, "model.model_config.head_dim") && (reshaped || c.model.head_dim == 0) && divides)
    c.model.head_dim = c.model.hidden_size / c.model.num_attention_heads;
  if (!is_set(s, "model.model_config.num_key_value_heads") && c.model.num_key_value_heads == 0)
    c.model.num_key_value_heads = c.model.num_attention_heads;
}

// RoPE on all pairs and no SVD is the plain model: MHA2MLA's baseline.
void read_latent(TrainConfig& c) {
  const ConversionSettings s = parse_settings(c.latent_words);
  if (!s.hla && s.rope.partial_rope_version == 0 && s.svd.method == SvdMethod::none) {
    for (const std::string& word : c.latent_words)
      LLATTE_CHECK(
          !word.starts_with("convert."), c.file, ": ", word,
          " says how to convert, but neither model.model_config.RoPE, SVD nor HLA asks for a conversion");
    return;
  }
  c.latent = s;
  if (!s.hla) c.model.mla = MlaConfig{s.rope, s.svd, {}, {}};
}

// Latent attention from nothing: there are no weights to convert.
void check_new_latent(TrainConfig& c) {
  const ConversionSettings& s = *c.latent;
  const int64_t group = c.model.num_attention_heads / c.model.num_key_value_heads;
  LLATTE_CHECK(s.rope.n_gqa_group.value_or(group) == group, c.file,
               ": model.model_config.RoPE.n_gqa_group is ", s.rope.n_gqa_group.value_or(0),
               ", this model has ", group, " query heads to a kv head");
  for (const std::string& word : c.latent_words) {
    const bool metric = word.starts_with("SVD.metric") || word.starts_with("HLA.metric");
    const bool converts = word.starts_with("convert.") || word.starts_with("HLA.calibration");
    LLATTE_CHECK(!converts && (!metric || s.metric == Metric::plain), c.file, ": ", word,
                 " says how to convert weights, but there are no start weights; name them in ",
                 "model.init_method.path");
  }
  if (s.hla) c.model.hla = new_hla_config(c.model, s);
}

void check_model(TrainConfig& c) {
  if (!c.start_weights().empty()) return;  // their config.json has it all
  const std::pair<const char*, int64_t> needed[] = {{"hidden_size", c.model.hidden_size},
                                                    {"num_hidden_layers", c.model.num_hidden_layers},
                                                    {"num_attention_heads", c.model.num_attention_heads},
                                                    {"intermediate_size", c.model.intermediate_size},
                                                    {"vocab_size", c.model.vocab_size}};
  for (const auto& [key, value] : needed)
    LLATTE_CHECK(
        value > 0, c.file, ": model.model_config.", key,
        " is missing; set it, or model.preset, or start weights in checkpoints.resume_checkpoint_path");
  c.model.check();
  if (c.latent) check_new_latent(c);
  LLATTE_CHECK(c.sequence_length <= c.model.max_position_embeddings, c.file, ": tokens.sequence_length is ",
               c.sequence_length, " but the model has model.model_config.max_position_embeddings ",
               c.model.max_position_embeddings, "; raise that or shorten the sequences");
}

// The teacher left out is the start weights. A model that begins at random has neither.
void check_distill(TrainConfig& c) {
  if (!c.distill || !c.distill->teacher.empty()) return;
  c.distill->teacher = c.start_weights();
  if (!c.distill->teacher.empty()) return;
  c.distill.reset();
  c.warnings.push_back(c.file +
                       ": distill is without effect: there are no start weights to learn from; name " +
                       "distill.teacher, or leave the section out");
}

void check_stages(TrainConfig& c) {
  LLATTE_CHECK(!c.stages.empty(), c.file,
               ": data_stages is missing; name at least one stage with a dataset_folder");
  for (size_t i = 0; i < c.stages.size(); ++i) {
    const DataStage& s = c.stages[i];
    LLATTE_CHECK(!s.folders.empty(), c.file, ": data_stages.", i, ".data.dataset.dataset_folder is missing");
    LLATTE_CHECK(s.weights.empty() || s.weights.size() == s.folders.size(), c.file, ": data_stages.", i,
                 " has ", s.folders.size(), " dataset folders but ", s.weights.size(),
                 " dataset_weights; give one each");
    const double sum = std::accumulate(s.weights.begin(), s.weights.end(), 0.0);
    LLATTE_CHECK(s.weights.empty() || sum > 0, c.file, ": data_stages.", i,
                 " has dataset_weights that are all 0");
  }
  std::stable_sort(c.stages.begin(), c.stages.end(),
                   [](const DataStage& a, const DataStage& b) { return a.start_step < b.start_step; });
  LLATTE_CHECK(c.stages[0].start_step == 1, c.file, ": the first data stage starts at step ",
               c.stages[0].start_step, "; one must have start_training_step 1");
  for (size_t i = 1; i < c.stages.size(); ++i)
    LLATTE_CHECK(c.stages[i].start_step > c.stages[i - 1].start_step, c.file,
                 ": two data stages start at step ", c.stages[i].start_step,
                 "; their start_training_step must differ");
}

void check_run(const TrainConfig& c) {
  LLATTE_CHECK(c.train_steps > 0, c.file, ": tokens.train_steps is missing; say how long to train");
  LLATTE_CHECK(c.sequence_length > 0, c.file, ": tokens.sequence_length is missing");
  LLATTE_CHECK(
      c.init_path.empty() || c.checkpoints.start.empty(), c.file,
      ": both model.init_method.path and checkpoints.resume_checkpoint_path name start weights; keep one");
  LLATTE_CHECK(c.val_interval != 0, c.file, ": tokens.val_check_interval is 0; write -1 for no validation");
  LLATTE_CHECK(c.val_interval < 0 || !c.val_dataset.empty(), c.file, ": tokens.val_check_interval is ",
               c.val_interval,
               " but validation.dataset is missing; name a token or text file, or set the interval to -1");
  LLATTE_CHECK(!c.patience || c.validates(), c.file, ": validation.patience is ", c.patience.value_or(0),
               " but nothing is validated; set tokens.val_check_interval and validation.dataset");
  LLATTE_CHECK(c.adamw.beta1 < 1 && c.adamw.beta2 < 1, c.file,
               ": optimizer.optimizer_factory has adam_beta1 ", c.adamw.beta1, " and adam_beta2 ",
               c.adamw.beta2, "; both must be below 1");
}

}  // namespace

TrainConfig load_train_config(const std::filesystem::path& file, const std::vector<std::string>& overrides) {
  const Settings settings = read_settings(file, overrides);
  TrainConfig c;
  c.file = file.string();
  apply(settings, c);
  c.ranks = c.processes.value_or(1);
  for (const auto& [path, s] : settings) c.settings[path] = shown(s.value);
  fill_defaults(settings, c);
  read_latent(c);
  check_run(c);
  check_stages(c);
  check_model(c);
  check_distill(c);
  c.schedule.check();
  return c;
}

std::vector<std::string> known_config_keys() {
  std::vector<std::string> out;
  for (const KeyRule& r : config_schema()) out.push_back(r.path);
  return out;
}

namespace {

void check_mla_keys(const TrainConfig& c, const MlaConfig& loaded, const std::string& path) {
  const auto same = [&](const char* key, auto want, auto got) {
    LLATTE_CHECK(want == got, c.file, ": model.model_config.", key, " is ", want,
                 " but the start weights in ", path, " were converted with ", got,
                 "; leave RoPE and SVD out or make them agree");
  };
  const PartialRope &want = c.latent->rope, &got = loaded.rope;
  same("RoPE.partial_rope_version", want.partial_rope_version, got.partial_rope_version);
  same("RoPE.top_k_rope_dim", want.top_k_rope_dim, got.top_k_rope_dim);
  same("RoPE.last_k_rope_dim", want.last_k_rope_dim, got.last_k_rope_dim);
  same("RoPE.uniform_start_point", want.uniform_start_point, got.uniform_start_point);
  same("RoPE.uniform_step", want.uniform_step, got.uniform_step);
  same("SVD.method", static_cast<int>(c.latent->svd.method), static_cast<int>(loaded.svd.method));
  if (c.latent->svd.method != SvdMethod::none)
    same("SVD.low_rank", c.latent->svd.low_rank, loaded.svd.low_rank);
}

}  // namespace

void TrainConfig::run_on(int64_t running) {
  LLATTE_CHECK(!processes || *processes == running, file, ": parallelism.dp is ", *processes, ", but ",
               running, running == 1 ? " process is" : " processes are", " running; start ", *processes,
               ", or set parallelism.dp=", running);
  ranks = running;
}

void check_model_keys(const TrainConfig& c, const LlamaConfig& loaded, const std::string& path) {
  const auto same = [&](const char* key, auto want, auto got) {
    LLATTE_CHECK(!c.model_keys.count(key) || want == got, c.file, ": model.model_config.", key, " is ", want,
                 " but the start weights in ", path, " have ", got, "; leave the key out or make it agree");
  };
  same("hidden_size", c.model.hidden_size, loaded.hidden_size);
  same("head_dim", c.model.head_dim, loaded.head_dim);
  same("intermediate_size", c.model.intermediate_size, loaded.intermediate_size);
  same("num_attention_heads", c.model.num_attention_heads, loaded.num_attention_heads);
  same("num_hidden_layers", c.model.num_hidden_layers, loaded.num_hidden_layers);
  same("num_key_value_heads", c.model.num_key_value_heads, loaded.num_key_value_heads);
  same("rms_norm_eps", c.model.rms_norm_eps, loaded.rms_norm_eps);
  same("rope_theta", c.model.rope_theta, loaded.rope_theta);
  same("tie_word_embeddings", c.model.tie_word_embeddings, loaded.tie_word_embeddings);
  same("vocab_size", c.model.vocab_size, loaded.vocab_size);
  if (!c.latent || (!loaded.mla && !loaded.hla)) return;
  LLATTE_CHECK(c.latent->hla.has_value() == loaded.hla.has_value(), c.file, ": the start weights in ", path,
               " have been converted to ", loaded.hla ? "HLA" : "MLA", ", and model.model_config asks for ",
               loaded.hla ? "RoPE and SVD" : "HLA", "; leave that out or start from other weights");
  if (loaded.mla) return check_mla_keys(c, *loaded.mla, path);
  LLATTE_CHECK(c.latent->hla->rope == loaded.hla->rope, c.file, ": model.model_config.HLA.rope is ",
               name(c.latent->hla->rope), " but the start weights in ", path, " were converted with ",
               name(loaded.hla->rope), "; leave HLA out or make them agree");
}

}  // namespace llatte