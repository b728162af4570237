// The schema of a training config. A row is a key, how its value is read and checked, and where it goes;
// reading the rows top to bottom is reading the reference. Kinds of value:
//   whole(field, min)  real(field, min)  flag(field)  text(field)  word(field, {choices})
//   or_null(rule)      null leaves the default        accepted(rule)  checked for type, without effect here
#include "train/schema.h"
#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>

namespace llatte {

void KeyValue::refuse(const std::string& what) const {
  LLATTE_FAIL(setting.where, ": ", path, " is ", shown(setting.value), "; ", what);
}

namespace {

using Read = std::function<void(TrainConfig&, const KeyValue&)>;
template <class T>
using Field = std::function<T&(TrainConfig&)>;

bool is_quoted(const YAML::Node& n) { return n.Tag() == "!"; }

// ---- values
int64_t whole_value(const KeyValue& kv, int64_t min) {
  const std::string s = kv.setting.value.IsScalar() ? kv.setting.value.Scalar() : "";
  int64_t v = 0;
  const auto [end, error] = std::from_chars(s.data(), s.data() + s.size(), v);
  if (s.empty() || is_quoted(kv.setting.value) || error != std::errc() || end != s.data() + s.size())
    kv.refuse("a whole number is needed");
  if (v < min) kv.refuse(str("it must be at least ", min));
  return v;
}

double real_value(const YAML::Node& n, const KeyValue& kv, double min) {
  const std::string s = n.IsScalar() ? n.Scalar() : "";
  double v = 0;
  const auto [end, error] = std::from_chars(s.data(), s.data() + s.size(), v);
  if (s.empty() || is_quoted(n) || error != std::errc() || end != s.data() + s.size() || !std::isfinite(v))
    kv.refuse("a number is needed");
  if (v < min) kv.refuse(str("it must be at least ", min));
  return v;
}

bool flag_value(const KeyValue& kv) {
  const std::string s = kv.setting.value.IsScalar() ? kv.setting.value.Scalar() : "";
  if (!is_quoted(kv.setting.value) && (s == "true" || s == "True")) return true;
  if (is_quoted(kv.setting.value) || (s != "false" && s != "False")) kv.refuse("write true or false");
  return false;
}

std::string text_value(const YAML::Node& n, const KeyValue& kv) {
  if (!n.IsScalar() || n.Scalar().empty()) kv.refuse("a text is needed");
  return n.Scalar();
}

// One value, or a list of them.
std::vector<YAML::Node> items(const KeyValue& kv) {
  if (!kv.setting.value.IsSequence()) return {kv.setting.value};
  std::vector<YAML::Node> out;
  for (const auto& n : kv.setting.value) out.push_back(n);
  return out;
}

// ---- rules
template <class T>
Read whole(const Field<T>& field, int64_t min = 0) {
  return [=](TrainConfig& c, const KeyValue& kv) { field(c) = static_cast<T>(whole_value(kv, min)); };
}

template <class T>
Read real(const Field<T>& field, double min = 0) {
  return [=](TrainConfig& c, const KeyValue& kv) { field(c) = real_value(kv.setting.value, kv, min); };
}

Read flag(const Field<bool>& field) {
  return [=](TrainConfig& c, const KeyValue& kv) { field(c) = flag_value(kv); };
}

template <class T>
Read text(const Field<T>& field) {
  return [=](TrainConfig& c, const KeyValue& kv) { field(c) = text_value(kv.setting.value, kv); };
}

std::string joined(const std::vector<std::string>& words) {
  std::string out;
  for (size_t i = 0; i < words.size(); ++i)
    out += (i == 0 ? "" : i + 1 == words.size() ? " or " : ", ") + words[i];
  return out;
}

Read word(const Field<std::string>& field, const std::vector<std::string>& choices) {
  return [=](TrainConfig& c, const KeyValue& kv) {
    const std::string s = kv.setting.value.IsScalar() ? kv.setting.value.Scalar() : "";
    if (std::find(choices.begin(), choices.end(), s) == choices.end()) kv.refuse("choose " + joined(choices));
    field(c) = s;
  };
}

Read or_null(const Read& rule) {
  return [=](TrainConfig& c, const KeyValue& kv) {
    if (!kv.setting.value.IsNull()) rule(c, kv);
  };
}

// A key of the model's shape: remembered as given, so that start weights can be checked against it.
Read shape(const Read& rule) {
  return [=](TrainConfig& c, const KeyValue& kv) {
    rule(c, kv);
    if (!kv.setting.value.IsNull()) c.model_keys.insert(kv.path.substr(kv.path.rfind('.') + 1));
  };
}

// Only `want` can be honoured.
Read only(int64_t want, const std::string& otherwise) {
  return [=](TrainConfig&, const KeyValue& kv) {
    if (whole_value(kv, 0) != want) kv.refuse(otherwise);
  };
}

Read refused(const std::string& reason) {
  return or_null([=](TrainConfig&, const KeyValue& kv) { kv.refuse(reason); });
}

Read ignore(const std::function<void(const KeyValue&)>& check) {
  return or_null([=](TrainConfig&, const KeyValue& kv) { check(kv); });
}
const Read any_whole =
    ignore([](const KeyValue& kv) { whole_value(kv, std::numeric_limits<int64_t>::min()); });
const Read any_flag = ignore([](const KeyValue& kv) { flag_value(kv); });
const Read any_text = ignore([](const KeyValue& kv) { text_value(kv.setting.value, kv); });
const Read anything = ignore([](const KeyValue&) {});

// ---- fields
#define CFG(member) \
  [](TrainConfig & c) -> auto& { return c.member; }
#define INT(member) Field<int64_t>(CFG(member))
#define OPT_INT(member) Field<std::optional<int64_t>>(CFG(member))
#define REAL(member) Field<double>(CFG(member))
#define FLAG(member) Field<bool>(CFG(member))
#define TEXT(member) Field<std::string>(CFG(member))

void add(std::vector<KeyRule>& t, const std::string& path, const Read& read) {
  t.push_back({path, read, true});
}
void accept(std::vector<KeyRule>& t, const std::string& path, const Read& check) {
  t.push_back({path, check, false});
}

// ---- checkpoints, data, general, logging
void checkpoint_rules(std::vector<KeyRule>& t) {
  const std::string at = "checkpoints.";
  add(t, at + "checkpoint_interval", whole(INT(checkpoints.interval), 1));
  add(t, at + "checkpoints_path", text(Field<std::filesystem::path>(CFG(checkpoints.folder))));
  accept(t, at + "checkpoints_path_is_shared_file_system", any_flag);
  add(t, at + "resume_checkpoint_path", or_null([](TrainConfig& c, const KeyValue& kv) {
        c.checkpoints.start = text_value(kv.setting.value, kv);
      }));
  add(t, at + "save_final_state", flag(FLAG(checkpoints.save_final)));
  add(t, at + "save_initial_state", flag(FLAG(checkpoints.save_initial)));
  add(t, at + "load_lr_scheduler", flag(FLAG(checkpoints.load_schedule)));
  add(t, at + "load_optimizer", flag(FLAG(checkpoints.load_optimizer)));
  add(t, at + "keep_last", or_null(whole(OPT_INT(checkpoints.keep_last), 1)));
  add(t, at + "format", [](TrainConfig&, const KeyValue& kv) {
    const std::string s = text_value(kv.setting.value, kv);
    if (s == "nanotron") kv.refuse("writing nanotron checkpoints is not built yet; use hf");
    if (s != "hf") kv.refuse("choose hf or nanotron");
  });
}

DataStage& stage_of(TrainConfig& c, const KeyValue& kv) {
  const size_t from = kv.path.find('.') + 1, i = std::stoul(kv.path.substr(from));
  if (i > 999) kv.refuse("a run can have up to 1000 data stages");
  if (c.stages.size() <= i) c.stages.resize(i + 1);
  return c.stages[i];
}

void data_rules(std::vector<KeyRule>& t) {
  const std::string at = "data_stages.*.";
  add(t, at + "name",
      [](TrainConfig& c, const KeyValue& kv) { stage_of(c, kv).name = text_value(kv.setting.value, kv); });
  add(t, at + "start_training_step",
      [](TrainConfig& c, const KeyValue& kv) { stage_of(c, kv).start_step = whole_value(kv, 1); });
  add(t, at + "data.dataset.dataset_folder", [](TrainConfig& c, const KeyValue& kv) {
    stage_of(c, kv).folders.clear();
    for (const auto& n : items(kv)) stage_of(c, kv).folders.push_back(text_value(n, kv));
    if (stage_of(c, kv).folders.empty()) kv.refuse("name at least one folder or file");
  });
  add(t, at + "data.dataset.dataset_weights", or_null([](TrainConfig& c, const KeyValue& kv) {
        for (const auto& n : items(kv)) stage_of(c, kv).weights.push_back(real_value(n, kv, 0));
      }));
  accept(t, at + "data.num_loading_workers", any_whole);
  add(t, at + "data.seed",
      [](TrainConfig& c, const KeyValue& kv) { stage_of(c, kv).seed = uint64_t(whole_value(kv, 0)); });
}

void general_rules(std::vector<KeyRule>& t) {
  add(t, "general.project", or_null(text(TEXT(project))));
  add(t, "general.run", or_null(text(TEXT(run))));
  add(t, "general.seed", whole(Field<uint64_t>(CFG(seed))));
  accept(t, "general.step", any_whole);
  accept(t, "general.consumed_train_samples", any_whole);
  accept(t, "general.benchmark_csv_path", any_text);
  accept(t, "general.ignore_sanity_checks", any_flag);
  add(t, "logging.iteration_step_info_interval", whole(INT(log_interval), 1));
  accept(t, "logging.log_level", any_text);
  accept(t, "logging.log_level_replica", any_text);
  for (const char* section : {"profiler", "lighteval", "s3_upload"}) accept(t, section, anything);
}

// ---- model
void read_rope_scaling(TrainConfig& c, const KeyValue& kv) {
  if (!c.model.rope_scaling) c.model.rope_scaling = RopeScaling();
  RopeScaling& r = *c.model.rope_scaling;
  const std::string key = kv.path.substr(kv.path.rfind('.') + 1);
  if (key == "original_max_position_embeddings") r.original_max_position_embeddings = whole_value(kv, 1);
  if (key == "factor") r.factor = real_value(kv.setting.value, kv, 1);
  if (key == "low_freq_factor") r.low_freq_factor = real_value(kv.setting.value, kv, 0);
  if (key == "high_freq_factor") r.high_freq_factor = real_value(kv.setting.value, kv, 0);
  if ((key == "type" || key == "rope_type") && text_value(kv.setting.value, kv) != "llama3")
    kv.refuse("only llama3's rope_scaling is supported");
}

// A word for the conversion to latent attention (convert/settings.h), whose keys these are.
Read latent_word(const std::string& key) {
  return or_null([=](TrainConfig& c, const KeyValue& kv) {
    const std::string word = key + "=" + text_value(kv.setting.value, kv);
    try {
      parse_settings({word});
    } catch (const Error& e) {
      LLATTE_FAIL(kv.setting.where, ": ", e.what());
    }
    c.latent_words.push_back(word);
  });
}

void latent_rules(std::vector<KeyRule>& t, const std::string& at) {
  for (const char* section : {"RoPE", "SVD", "HLA"})
    add(t, at + section, refused("set the keys below it, or null"));
  for (const char* k : {"partial_rope_version", "top_k_rope_dim", "last_k_rope_dim", "uniform_start_point",
                        "uniform_step", "qk_tensor_path", "n_gqa_group"})
    add(t, at + "RoPE." + k, latent_word(str("RoPE.", k)));
  for (const char* k : {"method", "version", "low_rank", "metric", "allocate"})
    add(t, at + "SVD." + k, latent_word(str("SVD.", k)));
  for (const char* k : {"calibration", "refit_o", "gqa2mha", "from_scratch", "balance"})
    add(t, str("convert.", k), latent_word(str("convert.", k)));
  for (const char* k : {"rope", "cache", "cache_values", "factor_q", "rank_q", "rank_k", "rank_v", "metric",
                        "allocate", "frequencies", "rope_pairs", "head_block", "calibration"})
    add(t, at + "HLA." + k, latent_word(str("HLA.", k)));
}

void model_config_rules(std::vector<KeyRule>& t) {
  const std::string at = "model.model_config.";
  for (const char* k : {"bos", "eos", "pad"})
    add(t, at + k + "_token_id", or_null([key = std::string(k)](TrainConfig& c, const KeyValue& kv) {
          (key == "bos"   ? c.model.bos_token_id
           : key == "eos" ? c.model.eos_token_id
                          : c.model.pad_token_id) = whole_value(kv, 0);
        }));
  add(t, at + "hidden_act", [](TrainConfig&, const KeyValue& kv) {
    if (text_value(kv.setting.value, kv) != "silu") kv.refuse("silu is the only activation here");
  });
  add(t, at + "hidden_size", shape(whole(INT(model.hidden_size), 1)));
  add(t, at + "head_dim", shape(or_null(whole(INT(model.head_dim), 1))));
  add(t, at + "initializer_range", real(REAL(model.initializer_range)));
  add(t, at + "intermediate_size", shape(whole(INT(model.intermediate_size), 1)));
  add(t, at + "is_llama_config", [](TrainConfig&, const KeyValue& kv) {
    if (!flag_value(kv)) kv.refuse("only Llama models can be trained");
  });
  add(t, at + "max_position_embeddings", whole(INT(model.max_position_embeddings), 1));
  add(t, at + "num_attention_heads", shape(whole(INT(model.num_attention_heads), 1)));
  add(t, at + "num_hidden_layers", shape(whole(INT(model.num_hidden_layers), 1)));
  add(t, at + "num_key_value_heads", shape(whole(INT(model.num_key_value_heads), 1)));
  accept(t, at + "pretraining_tp", any_whole);
  add(t, at + "rms_norm_eps", shape(real(REAL(model.rms_norm_eps))));
  add(t, at + "rope_scaling",
      refused("give llama3's keys (rope_type, factor, low_freq_factor, ...) or null"));
  for (const char* k : {"type", "rope_type", "factor", "low_freq_factor", "high_freq_factor",
                        "original_max_position_embeddings"})
    add(t, at + "rope_scaling." + k, read_rope_scaling);
  add(t, at + "rope_theta", shape(real(REAL(model.rope_theta), 1)));
  add(t, at + "tie_word_embeddings", shape(flag(FLAG(model.tie_word_embeddings))));
  accept(t, at + "use_cache", any_flag);
  add(t, at + "vocab_size", shape(whole(INT(model.vocab_size), 1)));
  latent_rules(t, at);
}

void read_preset(TrainConfig& c, const KeyValue& kv) {
  const std::string wanted = text_value(kv.setting.value, kv);
  const std::vector<std::string> names = preset_names();
  if (std::find(names.begin(), names.end(), wanted) == names.end()) kv.refuse("choose " + joined(names));
  c.model = preset(wanted);
  c.model_keys = {"hidden_size",         "intermediate_size", "num_attention_heads", "num_hidden_layers",
                  "num_key_value_heads", "head_dim",          "tie_word_embeddings", "vocab_size"};
}

void model_rules(std::vector<KeyRule>& t) {
  add(t, "model.preset", or_null(read_preset));  // rules run in this order, so explicit keys win
  add(t, "model.dtype", [](TrainConfig& c, const KeyValue& kv) {
    const std::string s = text_value(kv.setting.value, kv);
    if (s != "float32" && s != "bfloat16") kv.refuse("choose float32 or bfloat16");
    c.dtype = s == "float32" ? DType::f32 : DType::bf16;
  });
  add(t, "model.init_method.std", real(REAL(init_std)));
  add(t, "model.init_method.path", or_null(text(TEXT(init_path))));
  add(t, "model.ddp_bucket_cap_mb", [](TrainConfig& c, const KeyValue& kv) {
    const int64_t mib = whole_value(kv, 1);
    if (mib > 1 << 20) kv.refuse("it is in MiB; 25 is usual");
    c.adamw.bucket_bytes = mib << 20;
  });
  add(t, "model.make_vocab_size_divisible_by", only(1, "set vocab_size itself; padding it is not supported"));
  model_config_rules(t);
}

// ---- optimizer, parallelism, tokens, validation
void schedule_rules(std::vector<KeyRule>& t) {
  const std::string at = "optimizer.learning_rate_scheduler.";
  add(t, at + "learning_rate", real(REAL(schedule.learning_rate)));
  add(t, at + "lr_warmup_steps", whole(INT(schedule.warmup_steps)));
  add(t, at + "lr_warmup_style", or_null(word(TEXT(schedule.warmup_style), {"linear", "constant"})));
  add(t, at + "lr_decay_starting_step", or_null(whole(OPT_INT(schedule.decay_starting_step))));
  add(t, at + "lr_decay_steps", or_null(whole(OPT_INT(schedule.decay_steps))));
  add(t, at + "lr_decay_style", or_null(word(TEXT(schedule.decay_style), {"linear", "cosine", "1-sqrt"})));
  add(t, at + "min_decay_lr", or_null(real(REAL(schedule.min_decay_lr))));
}

void optimizer_rules(std::vector<KeyRule>& t) {
  accept(t, "optimizer.accumulate_grad_in_fp32", any_flag);
  add(t, "optimizer.clip_grad", [](TrainConfig& c, const KeyValue& kv) {
    c.adamw.clip_grad = kv.setting.value.IsNull() ? 0 : real_value(kv.setting.value, kv, 0);
  });
  schedule_rules(t);
  const std::string factory = "optimizer.optimizer_factory.";
  add(t, factory + "name", [](TrainConfig&, const KeyValue& kv) {
    const std::string s = text_value(kv.setting.value, kv);
    if (s != "adamW" && s != "adamw") kv.refuse("adamW is the only optimizer here");
  });
  add(t, factory + "adam_beta1", real(REAL(adamw.beta1)));
  add(t, factory + "adam_beta2", real(REAL(adamw.beta2)));
  add(t, factory + "adam_eps", real(REAL(adamw.eps)));
  accept(t, factory + "torch_adam_is_fused", any_flag);
  add(t, "optimizer.weight_decay", real(REAL(adamw.weight_decay)));
  add(t, "optimizer.zero_stage", [](TrainConfig& c, const KeyValue& kv) {
    const int64_t stage = whole_value(kv, 0);
    if (stage > 1) kv.refuse("choose 0 or 1");
    c.adamw.zero_stage = static_cast<int>(stage);
  });
  add(t, "optimizer.freeze_non_attn", flag(FLAG(freeze_non_attn)));
  add(t, "optimizer.freeze_embedding", flag(FLAG(freeze_embedding)));
}

void parallelism_rules(std::vector<KeyRule>& t) {
  const std::string at = "parallelism.";
  add(t, at + "dp", or_null(whole(OPT_INT(processes), 1)));
  add(t, at + "timeout_s", real(REAL(timeout_s), 1));
  for (const char* k : {"tp", "pp", "expert_parallel_size"})
    add(t, at + k, or_null(only(1, "a model is not split over processes here; use 1")));
  add(t, at + "recompute_layer", flag(FLAG(recompute_layer)));
  for (const char* k : {"pp_engine", "tp_mode"}) accept(t, at + k, any_text);
  for (const char* k : {"tp_linear_async_communication", "tp_recompute_allgather"})
    accept(t, at + k, any_flag);
}

void tokens_rules(std::vector<KeyRule>& t) {
  add(t, "tokenizer.tokenizer_name_or_path", or_null(text(TEXT(tokenizer))));
  accept(t, "tokenizer.tokenizer_max_length", any_whole);
  accept(t, "tokenizer.tokenizer_revision", any_text);
  add(t, "tokens.micro_batch_size", whole(INT(micro_batch), 1));
  add(t, "tokens.batch_accumulation_per_replica", whole(INT(accumulation), 1));
  add(t, "tokens.sequence_length", whole(INT(sequence_length), 1));
  add(t, "tokens.train_steps", whole(INT(train_steps), 1));
  add(t, "tokens.val_check_interval", or_null(whole(INT(val_interval), -1)));
  add(t, "tokens.limit_val_batches", or_null(whole(INT(val_batches))));
  accept(t, "tokens.limit_test_batches", any_whole);
  add(t, "validation.dataset", or_null(text(TEXT(val_dataset))));
  add(t, "validation.patience", or_null(whole(OPT_INT(patience), 1)));
}

// ---- distill: any of its keys turns it on
Distill& distill_of(TrainConfig& c) {
  if (!c.distill) c.distill.emplace();
  return *c.distill;
}

void distill_rules(std::vector<KeyRule>& t) {
  add(t, "distill.teacher", or_null([](TrainConfig& c, const KeyValue& kv) {
        distill_of(c).teacher = text_value(kv.setting.value, kv);
      }));
  add(t, "distill.weight", or_null([](TrainConfig& c, const KeyValue& kv) {
        distill_of(c).rule.weight = real_value(kv.setting.value, kv, 0);
        if (c.distill->rule.weight > 1) kv.refuse("it must be at most 1");
      }));
  add(t, "distill.temperature", or_null([](TrainConfig& c, const KeyValue& kv) {
        distill_of(c).rule.temperature = real_value(kv.setting.value, kv, 0);
        if (c.distill->rule.temperature == 0) kv.refuse("it must be above 0");
      }));
}

std::vector<KeyRule> make_schema() {
  std::vector<KeyRule> t;
  checkpoint_rules(t);
  data_rules(t);
  general_rules(t);
  model_rules(t);
  optimizer_rules(t);
  parallelism_rules(t);
  tokens_rules(t);
  distill_rules(t);
  return t;
}

}  // namespace

const std::vector<KeyRule>& config_schema() {
  static const std::vector<KeyRule> schema = make_schema();
  return schema;
}

}  // namespace llatte
