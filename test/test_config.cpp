// The config schema: every key of the reference is known, every refusal is one sentence with file, line, key,
// value.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>
#include <yaml-cpp/yaml.h>
#include <algorithm>
#include <filesystem>
#include <fstream>
#include "test/near.h"
#include "train/config.h"
#include "train/plan.h"

using namespace llatte;
namespace fs = std::filesystem;

namespace {

struct Folder {
  fs::path path = fs::temp_directory_path() / ("llatte-config-" + std::to_string(::getpid()));
  Folder() { fs::create_directories(path); }
  ~Folder() { fs::remove_all(path); }
  std::string write(const std::string& name, const std::string& text) const {
    std::ofstream(path / name) << text;
    return (path / name).string();
  }
};

const std::string kSmall =
    "model: {preset: clm-60m}\n"
    "tokens: {train_steps: 10, sequence_length: 64}\n"
    "data_stages: [{name: a, start_training_step: 1, data: {dataset: {dataset_folder: x.ds}}}]\n";

// The sentence with which this config is refused; "" if it is not.
std::string refusal(const std::string& more, const std::vector<std::string>& overrides = {}) {
  const Folder f;
  const std::string file = f.write("c.yaml", kSmall + more);
  try {
    load_train_config(file, overrides);
    return "";
  } catch (const Error& e) {
    std::string s = e.what();
    if (const size_t at = s.find(file); at != std::string::npos) s.replace(at, file.size(), "c.yaml");
    return s;
  }
}

TrainConfig load(const std::string& more, const std::vector<std::string>& overrides = {}) {
  const Folder f;
  return load_train_config(f.write("c.yaml", kSmall + more), overrides);
}

void list_keys(const YAML::Node& n, const std::string& at, std::vector<std::string>& out) {
  if (n.IsMap())
    for (const auto& e : n)
      list_keys(e.second, at.empty() ? e.first.Scalar() : at + "." + e.first.Scalar(), out);
  else if (n.IsSequence() && n[0].IsMap()) list_keys(n[0], at + ".*", out);
  else out.push_back(at);
}

}  // namespace

TEST_CASE("every key of the reference is known") {
  std::vector<std::string> keys;
  const std::vector<std::string> known = known_config_keys();
  list_keys(YAML::LoadFile("test/fixtures/config/reference.yaml"), "", keys);
  CHECK(keys.size() > 100);
  for (const std::string& key : keys) {
    INFO(key);
    CHECK((key == "include" || std::find(known.begin(), known.end(), key) != known.end()));
  }
}

TEST_CASE("the reference loads once what comes later is left out") {
  const Folder f;
  f.write("base.yaml", "general: {seed: 7}\n");
  fs::copy_file("test/fixtures/config/reference.yaml", f.path / "reference.yaml");
  const TrainConfig c =
      load_train_config(f.path / "reference.yaml", {"model.model_config.HLA=null", "parallelism.dp=1"});
  CHECK(c.seed == 42);
  CHECK(c.checkpoints.interval == 1800);
  CHECK(c.stages.at(0).folders == std::vector<std::string>{"folderA", "folderB"});
  CHECK(c.stages[0].weights == std::vector<double>{0.7, 0.3});
  CHECK(c.dtype == DType::bf16);
  CHECK(c.init_std == 0.0416);
  REQUIRE(c.latent);  // 4 pairs of 32 keep RoPE, joint, rank 16 for each of 2 kv heads
  const int64_t D = 384, k_and_v = 2 * 128 * D, mla = 16 * D + 32 * D + (128 - 16) * 32 + 128 * 32;
  CHECK(param_count(c.model) == 82101120 - 22 * (k_and_v - mla));
  CHECK(c.schedule.decay_starting_step == 16200);
  CHECK(c.schedule.decay_style == "1-sqrt");
  CHECK(c.schedule.total_steps == 18000);
  CHECK(c.adamw.weight_decay == 0.01);
  CHECK(c.tokens_per_step() == 8 * 2 * 2048);
  CHECK(c.tokenizer == "assets/tokenizer");
  REQUIRE(c.warnings.size() == 2);  // distill, too, has nothing to do: no teacher, no start weights
  CHECK(c.warnings[1].find("distill is without effect") != std::string::npos);
  for (const char* key : {"checkpoints.checkpoints_path_is_shared_file_system",
                          "data_stages.0.data.num_loading_workers", "profiler", "tokens.limit_test_batches"})
    CHECK(c.warnings[0].find(key) != std::string::npos);
}

TEST_CASE("the configs that come with the project load") {
  CHECK(param_count(load_train_config("configs/clm-60m.yaml").model) == 82101120);
  CHECK(param_count(load_train_config("configs/smollm-135m.yaml").model) == 134515008);
  CHECK(load_train_config("configs/smollm-135m.yaml").checkpoints.folder == "runs/smollm-135m");
  CHECK(load_train_config("configs/tiny.yaml").train_steps == 20);
}

TEST_CASE("parameters are counted as the model has them") {
  for (const char* file : {"configs/tiny.yaml", "configs/clm-60m.yaml"}) {
    LlamaConfig c = load_train_config(file).model;
    c.vocab_size = 100;
    for (const bool tied : {false, true}) {
      c.tie_word_embeddings = tied;
      Llama model(c, DType::bf16);
      CHECK(param_count(model) == param_count(c));
    }
  }
}

TEST_CASE("unknown keys name the nearest known one, with file and line") {
  CHECK(refusal("optimizer:\n  weight_decai: 0.1\n") ==
        "c.yaml:5: unknown key optimizer.weight_decai; did you mean optimizer.weight_decay?");
  CHECK(refusal("optimiser: {clip_grad: 1}\n") ==
        "c.yaml:4: unknown key optimiser.clip_grad; did you mean optimizer.clip_grad?");
  CHECK(refusal("", {"tokens.learning_rate=1"}) ==
        "command line: unknown key tokens.learning_rate; did you mean "
        "optimizer.learning_rate_scheduler.learning_rate?");
  CHECK(refusal("", {"tokens.micro_batchsize=4"}) ==
        "command line: unknown key tokens.micro_batchsize; did you mean tokens.micro_batch_size?");
}

TEST_CASE("wrong types and values") {
  CHECK(refusal("general: {seed: many}\n") == "c.yaml:4: general.seed is many; a whole number is needed");
  CHECK(refusal("general: {seed: 1.5}\n") == "c.yaml:4: general.seed is 1.5; a whole number is needed");
  CHECK(refusal("", {"tokens.train_steps=0"}) ==
        "command line: tokens.train_steps is 0; it must be at least 1");
  CHECK(refusal("", {"tokens.train_steps='5'"}) ==
        "command line: tokens.train_steps is \"5\"; a whole number is needed");
  CHECK(refusal("", {"optimizer.clip_grad=-1"}) ==
        "command line: optimizer.clip_grad is -1; it must be at least 0");
  CHECK(refusal("", {"optimizer.weight_decay=.nan"}) ==
        "command line: optimizer.weight_decay is .nan; a number is needed");
  CHECK(refusal("", {"model.dtype=float16"}) ==
        "command line: model.dtype is float16; choose float32 or bfloat16");
  CHECK(refusal("", {"checkpoints.save_final_state=maybe"}) ==
        "command line: checkpoints.save_final_state is maybe; write true or false");
  CHECK(refusal("", {"optimizer.learning_rate_scheduler.lr_decay_style=step"}) ==
        "command line: optimizer.learning_rate_scheduler.lr_decay_style is step; choose linear, cosine or "
        "1-sqrt");
  CHECK(refusal("logging: 3\n") == "c.yaml:4: logging is 3; it is a section with keys below it");
  CHECK(
      refusal("", {"model.preset=clm-61m"}).find("command line: model.preset is clm-61m; choose clm-60m, ") ==
      0);
  CHECK(refusal("", {"tokens.sequence_length=[1, 2]"}) ==
        "command line: tokens.sequence_length is [1, 2]; a whole number is needed");
}

TEST_CASE("what can't be honoured is an error") {
  const std::string one = "; a model is not split over processes here; use 1";
  CHECK(refusal("", {"parallelism.tp=2"}) == "command line: parallelism.tp is 2" + one);
  CHECK(refusal("", {"parallelism.pp=2"}) == "command line: parallelism.pp is 2" + one);
  CHECK(refusal("", {"parallelism.expert_parallel_size=2"}) ==
        "command line: parallelism.expert_parallel_size is 2" + one);
  CHECK(refusal("", {"model.model_config.hidden_act=gelu"}) ==
        "command line: model.model_config.hidden_act is gelu; silu is the only activation here");
  CHECK(refusal("", {"optimizer.optimizer_factory.name=sgd"}) ==
        "command line: optimizer.optimizer_factory.name is sgd; adamW is the only optimizer here");
  CHECK(refusal("", {"model.model_config.rope_scaling.rope_type=yarn"}) ==
        "command line: model.model_config.rope_scaling.rope_type is yarn; only llama3's rope_scaling is "
        "supported");
}

TEST_CASE("what is not built is refused") {
  CHECK(refusal("", {"checkpoints.format=nanotron"}).find("not built yet") != std::string::npos);
  CHECK(refusal("", {"optimizer.zero_stage=2"}) == "command line: optimizer.zero_stage is 2; choose 0 or 1");
}

TEST_CASE("RoPE and SVD ask for latent attention, except on all pairs and without SVD: MHA2MLA's baseline") {
  const std::string rope = "model.model_config.RoPE.", svd = "model.model_config.SVD.";
  const TrainConfig baseline =
      load("", {rope + "partial_rope_version=0", svd + "method=0", svd + "low_rank=8"});
  CHECK(!baseline.latent);
  CHECK(!baseline.model.mla);

  for (const char* method : {"method=7", "version=7", "method=joint"}) {
    const TrainConfig c =
        load("", {rope + "partial_rope_version=3", rope + "top_k_rope_dim=2", rope + "last_k_rope_dim=1",
                  rope + "n_gqa_group=3", svd + method, svd + "low_rank=16"});
    REQUIRE(c.latent);
    CHECK(c.model.mla->rope.top_k_rope_dim == 2);
    CHECK(c.model.mla->svd.method == SvdMethod::joint);
    CHECK(c.model.mla->svd.low_rank == 16);
    CHECK(cache_values(c.model, 0) == 2 * (3 * 2 + 16));
  }
  CHECK(load("", {rope + "partial_rope_version=1", rope + "top_k_rope_dim=2"}).model.mla->svd.method ==
        SvdMethod::none);

  CHECK(refusal("", {svd + "method=9"}) ==
        "command line: SVD.method is '9', expected 0 to 7, none, split, joint, only_key or only_value");
  CHECK(refusal("", {svd + "low_rank=many"}) ==
        "command line: SVD.low_rank is 'many', expected a whole number");
  CHECK(refusal("", {rope + "partial_rope_version=1", rope + "top_k_rope_dim=33"})
            .find("RoPE.top_k_rope_dim is 33, expected 0 to 32") != std::string::npos);
  CHECK(refusal("", {rope + "partial_rope_version=1", rope + "top_k_rope_dim=2", rope + "n_gqa_group=2"})
            .find("RoPE.n_gqa_group is 2, this model has 3 query heads") != std::string::npos);
  CHECK(refusal("", {"convert.refit_o=true"}).find("neither model.model_config.RoPE, SVD nor HLA") !=
        std::string::npos);
  CHECK(refusal("", {rope + "partial_rope_version=1", rope + "top_k_rope_dim=2", svd + "metric=white"})
            .find("SVD.metric=white says how to convert weights, but there are no start weights") !=
        std::string::npos);
}

TEST_CASE("HLA shapes a new model, or says how to convert the start weights") {
  const std::string hla = "model.model_config.HLA.";
  const TrainConfig c = load("", {hla + "rope=aligned", hla + "rank_k=60", hla + "rank_v=70"});
  REQUIRE(c.latent);
  REQUIRE(c.model.hla);
  CHECK(c.model.hla->layers.front().k.count() == 30);
  CHECK(cache_values(c.model, 0) == 130);
  const TrainConfig converts =
      load("", {hla + "rope=original", hla + "metric=white", hla + "calibration=file", "convert.refit_o=true",
                "model.init_method.path=start"});
  CHECK(converts.latent->hla->rope == HlaRope::original);
  CHECK(converts.latent->metric == Metric::white);
  CHECK(converts.latent->calibration == "file");
  CHECK(!converts.model.hla);

  CHECK(refusal("", {hla + "rope=sideways"}).find("HLA.rope is 'sideways', expected original, latent") !=
        std::string::npos);
  CHECK(refusal("", {hla + "rope=aligned", "model.model_config.SVD.method=7"}).find("keep one of the two") !=
        std::string::npos);
  CHECK(refusal("", {hla + "metric=white"})
            .find("HLA.metric=white says how to convert weights, but there are no start weights") !=
        std::string::npos);
  CHECK(refusal("", {hla + "allocate=global"}).find("use layer") != std::string::npos);
}

TEST_CASE("a config in MHA2MLA's own words loads unchanged; it runs on as many processes as it says") {
  const TrainConfig c = load_train_config("test/fixtures/config/mha2mla.yaml");
  test::check_rejects([&] { TrainConfig(c).run_on(1); },
                      "parallelism.dp is 8, but 1 process is running; start 8, or set parallelism.dp=1");
  CHECK(c.ranks == 8);
  TrainConfig(c).run_on(8);
  CHECK(c.checkpoints.start == "checkpoints/smollm1_135m");
  CHECK(c.model.mla->rope.partial_rope_version == 4);
  CHECK(c.model.mla->svd.method == SvdMethod::split);
  CHECK(c.schedule.decay_style == "1-sqrt");
  REQUIRE(c.warnings.size() == 1);
}

TEST_CASE("every config of MHA2MLA's recipe that comes with the project loads") {
  int n = 0;
  for (const auto& e : fs::recursive_directory_iterator("configs/mla")) {
    if (!e.is_regular_file()) continue;
    INFO(e.path());
    const TrainConfig c = load_train_config(e.path());
    CHECK(c.schedule.learning_rate == 1e-4);
    CHECK(c.adamw.weight_decay == 0);
    CHECK(!c.start_weights().empty());
    CHECK(c.checkpoints.folder.filename() == e.path().stem());
    CHECK(c.run == e.path().stem());
    CHECK((e.path().stem() == "baseline") == !c.latent);
    ++n;
  }
  CHECK(n == 26);
}

TEST_CASE("every config of the experiments with RoPE inside the latents loads") {
  int n = 0;
  for (const auto& e : fs::recursive_directory_iterator("configs/hla")) {
    if (!e.is_regular_file()) continue;
    INFO(e.path());
    const TrainConfig c = load_train_config(e.path());
    const std::string mode = e.path().stem();
    CHECK(c.latent.has_value() == (mode != "baseline"));
    if (c.latent) CHECK(mode == name(c.latent->hla->rope));
    CHECK(!c.start_weights().empty());
    ++n;
  }
  CHECK(n == 8);
}

TEST_CASE("distill: the teacher that is named, or the start weights") {
  const TrainConfig named = load("", {"distill.teacher=folder", "distill.temperature=2"});
  REQUIRE(named.distill);
  CHECK(named.distill->teacher == "folder");
  CHECK(named.distill->rule.weight == 1);
  CHECK(named.distill->rule.temperature == 2);
  const TrainConfig own = load("", {"distill.weight=0.5", "checkpoints.resume_checkpoint_path=start"});
  REQUIRE(own.distill);
  CHECK(own.distill->teacher == "start");
  CHECK(own.distill->rule.weight == 0.5);
  CHECK(!load("", {"distill.teacher=null", "checkpoints.resume_checkpoint_path=start"}).distill);
  const TrainConfig none = load("", {"distill.weight=0.5"});
  CHECK(!none.distill);
  REQUIRE(none.warnings.size() == 1);
  CHECK(none.warnings[0].find("no start weights to learn from; name distill.teacher") != std::string::npos);
  CHECK(refusal("", {"distill.weight=1.5"}) == "command line: distill.weight is 1.5; it must be at most 1");
  CHECK(refusal("", {"distill.temperature=0"}) ==
        "command line: distill.temperature is 0; it must be above 0");
}

TEST_CASE("settings that do not fit together") {
  CHECK(refusal("", {"tokens.val_check_interval=5"}).find("validation.dataset is missing") !=
        std::string::npos);
  CHECK(refusal("validation: {dataset: a, patience: 2}\n")
            .find("validation.patience is 2 but nothing is validated") != std::string::npos);
  CHECK(refusal("", {"tokens.sequence_length=4096"}).find("max_position_embeddings 2048") !=
        std::string::npos);
  CHECK(refusal("", {"data_stages.0.start_training_step=5"}).find("the first data stage starts at step 5") !=
        std::string::npos);
  CHECK(refusal("", {"data_stages.0.data.dataset.dataset_weights=[0.5, 0.5]"})
            .find("1 dataset folders but 2 dataset_weights") != std::string::npos);
  CHECK(refusal("", {"data_stages=[]"}).find("data_stages is missing") != std::string::npos);
  CHECK(refusal("", {"model.preset=null"}).find("model.model_config.hidden_size is missing") !=
        std::string::npos);
  CHECK(refusal("", {"model.init_method.path=a", "checkpoints.resume_checkpoint_path=b"}).find("keep one") !=
        std::string::npos);
}

TEST_CASE("broken files and overrides are sentences") {
  CHECK(refusal("general: {seed: 1}\ngeneral: {seed: 2}\n") ==
        "c.yaml:5: the key 'general' appears twice; keep one of them");
  CHECK(refusal("tokens2: [\n").find("this is not YAML") != std::string::npos);
  CHECK(refusal("", {"tokens.train_steps"}).find("is no override; write key.path=value") !=
        std::string::npos);
  CHECK(refusal("", {"=3"}).find("is no override") != std::string::npos);
  CHECK(refusal("", {"tokens.train_steps=[1"}).find("this is not YAML") != std::string::npos);
  CHECK(refusal("include: c.yaml\n").find("does one include itself?") != std::string::npos);
  CHECK(refusal("include: nowhere.yaml\n").find("nowhere.yaml") != std::string::npos);
  CHECK(refusal("general: &a {run: *a}\n").find("") == 0);  // refused or read, never a crash
  CHECK_THROWS_AS(load_train_config("no/such/file.yaml"), Error);
  const Folder f;
  CHECK_THROWS_WITH_AS(load_train_config(f.write("l.yaml", "- a\n- b\n")),
                       doctest::Contains("a config is a map of sections"), Error);
}

TEST_CASE("includes and overrides: the later word wins, key by key") {
  const Folder f;
  f.write("base.yaml", kSmall + "general: {seed: 1, run: base}\nmodel: {dtype: bfloat16, preset: clm-60m}\n");
  f.write("base.yaml",
          "general: {seed: 1, run: base}\n" + kSmall + "optimizer: {clip_grad: 3, weight_decay: 0.5}\n");
  const std::string top = f.write("top.yaml",
                                  "include: base.yaml\ngeneral: {seed: 2}\noptimizer: {clip_grad: null}\n"
                                  "model: {model_config: {vocab_size: 1000}}\n");
  const TrainConfig c = load_train_config(
      top, {"general.run=mine", "data_stages.0.data.seed=9", "optimizer={weight_decay: 0.25}"});
  CHECK(c.seed == 2);
  CHECK(c.run == "mine");
  CHECK(c.adamw.clip_grad == 0);
  CHECK(c.adamw.weight_decay == 0.25);
  CHECK(c.stages.at(0).seed == 9);
  CHECK(c.stages[0].name == "a");
  CHECK(c.model.vocab_size == 1000);  // explicit keys win over the preset
  CHECK(c.model.hidden_size == 384);
  CHECK(c.settings.at("general.run") == "mine");
}

TEST_CASE("nanotron's defaults") {
  const TrainConfig c = load("", {"optimizer.learning_rate_scheduler.learning_rate=0.5"});
  CHECK(c.schedule.min_decay_lr == 0.5);  // no floor given: no decay
  CHECK(c.init_std == c.model.initializer_range);
  CHECK(c.dtype == DType::f32);
}
