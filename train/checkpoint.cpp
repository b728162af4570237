#include "train/checkpoint.h"
#include <fcntl.h>
#include <stdio.h>  // renameat2
#include <algorithm>
#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>
#include "data/files.h"
#include "data/safetensors.h"
#include "models/hf.h"
#include "models/nanotron.h"

namespace llatte {
namespace {

namespace fs = std::filesystem;
using json = nlohmann::ordered_json;
constexpr const char* kTemporary = ".writing-";  // prefix of folders that are not finished

json describe(const fs::path& file) {
  const MappedFile m = map_file(file);
  return {{"bytes", m.bytes.size()}, {"checksum", str(std::hex, checksum(m.bytes))}};
}

void verify(const fs::path& file, const json& wanted) {
  std::error_code none;
  LLATTE_CHECK(wanted.is_object() && wanted.contains("bytes") && wanted.contains("checksum"), file.string(),
               ": state.json holds neither its size nor its checksum");
  LLATTE_CHECK(fs::is_regular_file(file, none), file.string(), " is missing");
  const json found = describe(file);
  LLATTE_CHECK(found.at("bytes") == wanted.at("bytes"), file.string(), " has ", found.at("bytes"),
               " bytes, but was written with ", wanted.at("bytes"));
  LLATTE_CHECK(found == wanted, file.string(), " has changed since it was written: its checksum is ",
               found.at("checksum"), ", not ", wanted.at("checksum"));
}

// Removes what it is named after unless told that all went well.
struct Unfinished {
  fs::path folder;
  explicit Unfinished(const fs::path& f) : folder(f) {
    fs::remove_all(folder);
    fs::create_directories(folder);
  }
  ~Unfinished() {
    std::error_code ignored;
    fs::remove_all(folder, ignored);
  }
};

// Publishes `temp` as `target`. An existing target changes places with it in one step of the file system, so
// that one of the two is always there, and the old one is then removed with `temp`'s name.
void publish(const fs::path& temp, const fs::path& target) {
  if (!fs::exists(target)) return publish_folder(temp, target);
  if (renameat2(AT_FDCWD, temp.c_str(), AT_FDCWD, target.c_str(), RENAME_EXCHANGE) != 0) {
    LLATTE_CHECK(errno == EINVAL || errno == ENOSYS, target.string(),
                 ": can't be replaced: ", std::strerror(errno));
    fs::remove_all(target);  // a file system without the exchange
    return publish_folder(temp, target);
  }
  fsync_path(target.parent_path());
}

json to_json(const TrainState& s) {
  json out = {{"step", s.step},
              {"samples", s.samples},
              {"tokens", s.tokens},
              {"stage", s.stage},
              {"stage_samples", s.stage_samples},
              {"schedule_start", s.schedule_start},
              {"best_val_loss", nullptr},
              {"validations_since_best", s.validations_since_best},
              {"settings", s.settings}};
  if (std::isfinite(s.best_val_loss)) out["best_val_loss"] = s.best_val_loss;
  return out;
}

int64_t count_of(const json& j, const char* key) {
  const auto n = j.at(key).get<int64_t>();
  LLATTE_CHECK(j.at(key).is_number_integer() && n >= 0, key, " is ", j.at(key), ", no count");
  return n;
}

TrainState from_json(const json& j) {
  TrainState s;
  s.step = count_of(j, "step");
  s.samples = count_of(j, "samples");
  s.tokens = count_of(j, "tokens");
  s.stage = count_of(j, "stage");
  s.stage_samples = count_of(j, "stage_samples");
  s.schedule_start = count_of(j, "schedule_start");
  s.validations_since_best = count_of(j, "validations_since_best");
  if (!j.at("best_val_loss").is_null()) s.best_val_loss = j.at("best_val_loss").get<double>();
  s.settings = j.at("settings").get<std::map<std::string, std::string>>();
  return s;
}

json parse_state(const fs::path& file) {
  try {
    return json::parse(read_file(file));
  } catch (const json::exception& e) {
    LLATTE_FAIL(file.string(), ": not a trainer state (", e.what(), ")");
  }
}

void write_weights(const fs::path& folder, Llama& model, const std::string& tokenizer_json) {
  save_hf(folder, model);
  if (!tokenizer_json.empty()) write_file_atomic(folder / "tokenizer.json", tokenizer_json);
}

void write_trainer(const fs::path& folder, const AdamW& optimizer, const TrainState& state) {
  fs::create_directory(folder / "trainer");
  std::vector<TensorSource> tensors;
  for (const OptimizerTensor& t : optimizer.state()) tensors.push_back({t.name, t.dtype, t.shape, t.get});
  write_safetensors(folder / "trainer/optimizer.safetensors", tensors,
                    {{"steps", std::to_string(optimizer.steps())}});
  json j = to_json(state);
  for (const auto& entry : fs::recursive_directory_iterator(folder))
    if (entry.is_regular_file())
      j["files"][fs::relative(entry.path(), folder).string()] = describe(entry.path());
  write_file_atomic(folder / "trainer/state.json", j.dump(1));
  fsync_path(folder / "trainer");
}

std::optional<int64_t> step_of(const fs::path& folder) {
  const std::string name = folder.filename().string();
  const bool digits = !name.empty() && name.size() < 18 &&
                      std::all_of(name.begin(), name.end(), [](char c) { return c >= '0' && c <= '9'; });
  return digits ? std::optional<int64_t>(std::stoll(name)) : std::nullopt;
}

}  // namespace

void save_checkpoint(const fs::path& run, Llama& model, const AdamW& optimizer, const TrainState& state,
                     const std::string& tokenizer_json) {
  const Unfinished temp(run / (kTemporary + std::to_string(state.step)));
  write_weights(temp.folder, model, tokenizer_json);
  write_trainer(temp.folder, optimizer, state);
  fsync_path(temp.folder);
  publish(temp.folder, run / std::to_string(state.step));
  write_file_atomic(run / "latest.txt", std::to_string(state.step));
}

void save_best(const fs::path& run, Llama& model, const std::string& tokenizer_json) {
  const Unfinished temp(run / (kTemporary + std::string("best")));
  write_weights(temp.folder, model, tokenizer_json);
  fsync_path(temp.folder);
  publish(temp.folder, run / "best");
}

bool has_trainer_state(const fs::path& checkpoint) {
  std::error_code none;
  return fs::exists(checkpoint / "trainer/state.json", none);
}

TrainState read_state(const fs::path& checkpoint) {
  const fs::path file = checkpoint / "trainer/state.json";
  const json j = parse_state(file);
  TrainState state;
  try {
    state = from_json(j);
    LLATTE_CHECK(j.at("files").is_object() && !j.at("files").empty(), "it lists no files");
  } catch (const std::exception& e) {
    LLATTE_FAIL(file.string(), ": not a whole trainer state (", e.what(), ")");
  }
  for (const auto& [name, wanted] : j.at("files").items()) verify(checkpoint / name, wanted);
  return state;
}

void load_optimizer(const fs::path& checkpoint, AdamW& optimizer) {
  const fs::path path = checkpoint / "trainer/optimizer.safetensors";
  const SafetensorsFile file = SafetensorsFile::open(path);
  const auto steps = file.metadata().find("steps");
  LLATTE_CHECK(steps != file.metadata().end() && step_of(steps->second), path.string(),
               ": its metadata has no step count");
  optimizer.load_state(*step_of(steps->second), [&](const std::string& name, const Shape&) {
    LLATTE_CHECK(
        file.has(name), path.string(), " has no ", name,
        ": it was saved for another dtype or other trained parameters; set checkpoints.load_optimizer=false "
        "to start with fresh moments");
    return file.read(name);
  });
}

std::vector<int64_t> saved_steps(const fs::path& run) {
  std::vector<int64_t> steps;
  std::error_code none;
  for (const auto& entry : fs::directory_iterator(run, none))
    if (const auto step = step_of(entry.path()); step && entry.is_directory()) steps.push_back(*step);
  std::sort(steps.begin(), steps.end());
  return steps;
}

std::optional<fs::path> newest_whole(const fs::path& run,
                                     const std::function<void(const std::string&)>& say) {
  const std::vector<int64_t> steps = saved_steps(run);
  for (auto it = steps.rbegin(); it != steps.rend(); ++it) {
    const fs::path folder = run / std::to_string(*it);
    try {
      read_state(folder);
      return folder;
    } catch (const std::exception& e) {
      say(str("checkpoint ", folder.string(), " is damaged and passed over: ", e.what()));
    }
  }
  LLATTE_CHECK(steps.empty(), run.string(), ": none of its ", steps.size(),
               " checkpoints is whole; restore one, or train into another checkpoints.checkpoints_path");
  return std::nullopt;
}

fs::path start_folder(const fs::path& path, const std::function<void(const std::string&)>& say) {
  LLATTE_CHECK(fs::exists(path), path.string(),
               ": there are no start weights here; see checkpoints.resume_checkpoint_path");
  if (!fs::is_directory(path) || fs::exists(path / "config.json") || is_nanotron(path)) return path;
  const auto newest = newest_whole(path, say);
  return newest ? *newest : path;  // not a run of ours: open_checkpoint says what it is
}

void remove_old_checkpoints(const fs::path& run, int64_t keep) {
  const std::vector<int64_t> steps = saved_steps(run);
  for (size_t i = 0; i + static_cast<size_t>(keep) < steps.size(); ++i) {
    // Renamed first: a folder that is being deleted must not look like a checkpoint.
    const fs::path doomed = run / (kTemporary + std::string("old-") + std::to_string(steps[i]));
    fs::rename(run / std::to_string(steps[i]), doomed);
    fs::remove_all(doomed);
  }
}

void remove_temporary_folders(const fs::path& run) {
  std::error_code none;
  std::vector<fs::path> doomed;
  for (const auto& entry : fs::directory_iterator(run, none)) {
    const std::string name = entry.path().filename().string();
    if (name.starts_with(kTemporary) || name.starts_with(".latest.txt.tmp-")) doomed.push_back(entry.path());
  }
  for (const fs::path& p : doomed) fs::remove_all(p);
}

}  // namespace llatte
