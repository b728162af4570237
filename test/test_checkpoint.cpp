// Checkpoints: what is written comes back bit for bit, damage is found and named, a failed save leaves
// nothing.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>
#include <unistd.h>
#include <fstream>
#include "data/files.h"
#include "models/hf.h"
#include "test/on_device.h"
#include "train/checkpoint.h"
#include "train/progress.h"

using namespace llatte;
using namespace llatte::test;
namespace fs = std::filesystem;

namespace {

struct Folder {
  fs::path path = fs::temp_directory_path() / ("llatte-checkpoint-" + std::to_string(::getpid()));
  Folder() { fs::remove_all(path), fs::create_directories(path); }
  ~Folder() { fs::remove_all(path); }
};

LlamaConfig tiny() {
  LlamaConfig c;
  c.hidden_size = 8;
  c.num_hidden_layers = 1;
  c.num_attention_heads = c.num_key_value_heads = 2;
  c.head_dim = 4;
  c.intermediate_size = 16;
  c.vocab_size = 32;
  return c;
}

struct Run {
  Llama model;
  AdamW optimizer;
  explicit Run(DType t, Device device = test_device()) : model(tiny(), t), optimizer(model, {}) {
    model.init(1, 0.1);
    model.to(device);
    optimizer = AdamW(model, {});  // masters of the weights as they are now
  }
  void step() {
    const Tensor tokens = Tensor::from(std::vector<int32_t>{1, 2, 3, 4, 5, 6}, {1, 6});
    backward(model.loss(tokens, tokens));
    optimizer.step(0.01);
  }
};

TrainState state_at(int64_t step) {
  TrainState s;
  s.step = step;
  s.samples = 3 * step;
  s.tokens = 18 * step;
  s.stage_samples = 2;
  s.best_val_loss = 0.1 + 0.2;  // not a short decimal
  s.validations_since_best = 4;
  s.settings = {{"tokens.train_steps", "9"}};
  return s;
}

std::vector<float> flat(const Tensor& t) { return t.to(DType::f32).to_vector<float>(); }

void damage(const fs::path& file) {
  std::string bytes = read_file(file);
  bytes[bytes.size() / 2] ^= 1;
  std::ofstream(file, std::ios::binary) << bytes;
}

std::string why(const fs::path& checkpoint) {
  try {
    read_state(checkpoint);
    return "";
  } catch (const Error& e) {
    return e.what();
  }
}

const auto silent = [](const std::string&) {};

}  // namespace

TEST_CASE("weights, moments, masters and counters come back bit for bit") {
  for (const DType t : {DType::f32, DType::bf16}) {
    const Folder f;
    Run a(t);
    a.step(), a.step();
    save_checkpoint(f.path, a.model, a.optimizer, state_at(2), "{\"tokenizer\": 1}");
    const fs::path saved = f.path / "2";
    CHECK(read_file(f.path / "latest.txt") == "2");
    CHECK(read_file(saved / "tokenizer.json") == "{\"tokenizer\": 1}");
    CHECK(has_trainer_state(saved));

    const TrainState s = read_state(saved);
    CHECK(s.step == 2);
    CHECK(s.samples == 6);
    CHECK(s.tokens == 36);
    CHECK(s.stage_samples == 2);
    CHECK(s.best_val_loss == 0.1 + 0.2);
    CHECK(s.validations_since_best == 4);
    CHECK(s.settings.at("tokens.train_steps") == "9");

    const auto model = here(load_hf(saved, t));
    AdamW optimizer(*model, {});
    load_optimizer(saved, optimizer);
    CHECK(optimizer.steps() == 2);
    const auto want = a.optimizer.state(), got = optimizer.state();
    REQUIRE(got.size() == want.size());
    for (size_t i = 0; i < got.size(); ++i) {
      CHECK(got[i].name == want[i].name);
      CHECK(flat(got[i].get()) == flat(want[i].get()));
    }
    std::map<std::string, std::vector<float>> weights;
    a.model.params("", [&](const std::string& name, Var& p) { weights[name] = flat(p.value); });
    model->params("", [&](const std::string& name, Var& p) { CHECK(flat(p.value) == weights.at(name)); });
  }
}

TEST_CASE("either device writes the same files") {
  for (const DType t : {DType::f32, DType::bf16}) {
    const Folder f;
    Run there(t, Device::cpu);
    there.step();
    save_checkpoint(f.path, there.model, there.optimizer, state_at(1), "");
    const auto model = here(load_hf(f.path / "1", t));
    AdamW optimizer(*model, {});
    load_optimizer(f.path / "1", optimizer);
    save_checkpoint(f.path, *model, optimizer, state_at(2), "");
    for (const char* file : {"model.safetensors", "config.json", "trainer/optimizer.safetensors"})
      CHECK(read_file(f.path / "1" / file) == read_file(f.path / "2" / file));
  }
}

TEST_CASE("a run that has not validated yet has no best loss") {
  const Folder f;
  Run a(DType::f32);
  save_checkpoint(f.path, a.model, a.optimizer, TrainState(), "");
  CHECK(std::isinf(read_state(f.path / "0").best_val_loss));
  CHECK_FALSE(fs::exists(f.path / "0/tokenizer.json"));
}

TEST_CASE("damage is found and named, and the checkpoint before is used") {
  const Folder f;
  Run a(DType::f32);
  for (const int64_t step : {10, 9, 2}) save_checkpoint(f.path, a.model, a.optimizer, state_at(step), "");
  CHECK(saved_steps(f.path) == std::vector<int64_t>{2, 9, 10});
  CHECK(newest_whole(f.path, silent) == f.path / "10");  // by number, not by name

  damage(f.path / "10/model.safetensors");
  CHECK(why(f.path / "10").find("10/model.safetensors has changed since it was written") !=
        std::string::npos);
  fs::resize_file(f.path / "9/trainer/optimizer.safetensors", 100);
  CHECK(why(f.path / "9").find("9/trainer/optimizer.safetensors has 100 bytes, but was written with ") !=
        std::string::npos);
  std::vector<std::string> said;
  CHECK(newest_whole(f.path, [&](const std::string& s) { said.push_back(s); }) == f.path / "2");
  REQUIRE(said.size() == 2);
  CHECK(said[0].find("10 is damaged and passed over: ") != std::string::npos);

  fs::remove(f.path / "2/config.json");
  CHECK(why(f.path / "2").find("2/config.json is missing") != std::string::npos);
  CHECK_THROWS_WITH_AS(newest_whole(f.path, silent), doctest::Contains("none of its 3 checkpoints is whole"),
                       Error);
  CHECK(newest_whole(f.path / "elsewhere", silent) == std::nullopt);
}

TEST_CASE("a broken state file is a sentence, whatever is in it") {
  const Folder f;
  Run a(DType::f32);
  save_checkpoint(f.path, a.model, a.optimizer, state_at(1), "");
  const fs::path file = f.path / "1/trainer/state.json";
  for (const std::string text :
       {"", "{", "[]", "{}", "{\"files\": 3}", "{\"files\": {\"model.safetensors\": 1}}", "{\"files\": {}}",
        "{\"files\": {}, \"step\": -1}", "{\"files\": {}, \"step\": \"1\"}"}) {
    std::ofstream(file) << text;
    INFO(text);
    CHECK(why(f.path / "1").find("state.json") != std::string::npos);
  }
}

TEST_CASE("optimizer state of other parameters is refused with the cure") {
  const Folder f;
  Run a(DType::f32);
  AdamW frozen(a.model, {}, [](const std::string& n) { return n.find("norm") != std::string::npos; });
  save_checkpoint(f.path, a.model, frozen, state_at(1), "");
  Run b(DType::f32);
  CHECK_THROWS_WITH_AS(load_optimizer(f.path / "1", b.optimizer),
                       doctest::Contains("checkpoints.load_optimizer=false"), Error);
}

TEST_CASE("a checkpoint can be written again; old and unfinished ones go") {
  const Folder f;
  Run a(DType::f32);
  for (int64_t step = 1; step <= 4; ++step) save_checkpoint(f.path, a.model, a.optimizer, state_at(step), "");
  damage(f.path / "4/model.safetensors");
  save_checkpoint(f.path, a.model, a.optimizer, state_at(4), "");
  CHECK(why(f.path / "4").empty());
  remove_old_checkpoints(f.path, 3);
  CHECK(saved_steps(f.path) == std::vector<int64_t>{2, 3, 4});
  fs::create_directories(f.path / ".writing-5/trainer");
  CHECK(saved_steps(f.path).size() == 3);
  remove_temporary_folders(f.path);
  CHECK_FALSE(fs::exists(f.path / ".writing-5"));
  save_best(f.path, a.model, "{}");
  save_best(f.path, a.model, "{ }");
  CHECK(read_file(f.path / "best/tokenizer.json") == "{ }");
  for (const auto& e : fs::directory_iterator(f.path)) CHECK(e.path().filename().string()[0] != '.');
}

TEST_CASE("a save that fails leaves the run as it was") {
  const Folder f;
  Run a(DType::f32);
  save_checkpoint(f.path, a.model, a.optimizer, state_at(1), "");
  AdamW broken(a.model, {});
  fs::create_directories(f.path / "2");  // and a file where the state should be published cannot be written:
  std::ofstream(f.path / "2/keep") << "x";
  fs::remove(f.path / "latest.txt");
  fs::create_directories(f.path / "latest.txt/occupied");
  CHECK_THROWS_AS(save_checkpoint(f.path, a.model, broken, state_at(3), ""), Error);
  CHECK(why(f.path / "1").empty());
  for (const auto& e : fs::directory_iterator(f.path))
    CHECK_FALSE(e.path().filename().string().starts_with(".writing"));
}

TEST_CASE("metrics are cut back to the step that is resumed") {
  const Folder f;
  const fs::path file = f.path / "metrics.jsonl";
  StepRecord r;
  {
    MetricsFile m(file, 0);
    for (r.step = 1; r.step <= 5; ++r.step) r.loss = 0.1 * double(r.step), m.append(r);
  }
  const std::string whole = read_file(file);
  std::ofstream(file, std::ios::app) << "{\"step\": 6, \"lo";  // torn by a kill
  { MetricsFile m(file, 9); }
  CHECK(read_file(file) == whole);
  {
    MetricsFile m(file, 3);
    for (r.step = 4; r.step <= 5; ++r.step) r.loss = 0.1 * double(r.step), m.append(r);
  }
  CHECK(read_file(file) == whole);
  { MetricsFile m(file, 0); }
  CHECK(read_file(file).empty());
}
