// llatte-convert: a model from one format to another, and, with settings (RoPE and SVD, or HLA), its
// attention into latent attention (MLA or HLA). Weights pass one at a time; then models are run on the same
// tokens and must give the same logits: source and result, or for latent attention what convert/self_test.h
// says.
#include "apps/model_options.h"
#include "convert/attention.h"
#include "convert/best.h"
#include "convert/self_test.h"
#include "convert/summary.h"
#include "data/files.h"
#include "models/hla_config.h"

namespace llatte {
namespace {

struct Options {
  std::string source, target, to, dtype, tokenizer;
  std::string plan, save_plan, best, calibration;
  int64_t cache_values = 0;
  std::vector<std::string> settings;
  bool no_self_test = false;
  IsMla is_mla;
  bool changes_attention() const { return !settings.empty() || !plan.empty() || !best.empty(); }
};

std::string target_format(const Options& o) {
  if (!o.to.empty()) return o.to;
  return o.target.ends_with(".gguf") ? "gguf" : "hf";
}

Checkpoint open_source(const Options& o) {
  Checkpoint c = open_checkpoint(o.source);
  o.is_mla.check(o.source, c.config);
  if (!o.tokenizer.empty()) c.tokenizer_json = Tokenizer::load(o.tokenizer).json();
  return c;
}

// Empty where it ran and passed; else why it did not run.
std::string self_test(const App& app, const Options& o, const Checkpoint& source, const Checkpoint& result,
                      SelfTest& t) {
  if (o.no_self_test) return "left out";
  t = compare_logits(source, result, app.device);
  LLATTE_CHECK(t.passed(), "self-test failed: logits of ", o.source, " and ", o.target, " differ by up to ",
               t.max_error, " (largest logit ", t.max_logit, "); don't use ", o.target);
  return "";
}

nlohmann::ordered_json report(const Checkpoint& source, const Checkpoint& result) {
  auto layers = nlohmann::ordered_json::array();
  for (int64_t l = 0; l < result.config.num_hidden_layers; ++l)
    layers.push_back({{"cache_values_per_token_before", cache_values(source.config, l)},
                      {"cache_values_per_token_after", cache_values(result.config, l)}});
  return {{"parameters_before", param_count(source.config)},
          {"parameters_after", param_count(result.config)},
          {"bytes_before", source.bytes()},
          {"bytes_after", result.bytes()},
          {"cache_bytes_per_token_before", cache_bytes_per_token(source)},
          {"cache_bytes_per_token_after", cache_bytes_per_token(result)},
          {"self_test_max_error", nullptr},
          {"layers", layers}};
}

std::string target_dtype(const Options& o, const Checkpoint& source) {
  return !o.dtype.empty() ? o.dtype : source.dtype() == DType::bf16 ? "bf16" : "f32";
}

void change_format(const App& app, const Options& o, const Checkpoint& source) {
  save_checkpoint(o.target, source, target_format(o), target_dtype(o, source));
  const Checkpoint result = open_checkpoint(o.target);
  std::ostream& out = app.json ? std::cerr : std::cout;
  out << weight_table(source, result);
  SelfTest t;
  const std::string untested = self_test(app, o, source, result, t);
  if (untested.empty())
    out << "self-test: logits agree, largest difference " << t.max_error << " of " << t.max_logit << '\n';
  else out << "self-test " << untested << '\n';
  nlohmann::ordered_json j = report(source, result);
  if (untested.empty()) j["self_test_max_error"] = t.max_error;
  if (app.json) app.print_json(j);
}

// One line for a comparison; an Error that names it where it failed.
void say(std::ostream& out, const Options& o, const char* what, const SelfTest& t) {
  LLATTE_CHECK(t.passed(), "self-test failed: ", what, ": logits differ by up to ", t.max_error,
               " (largest logit ", t.max_logit, "); don't use ", o.target);
  out << "self-test: " << what << ": largest difference " << t.max_error << " of " << t.max_logit << '\n';
}

double say(std::ostream& out, const Options& o, bool hla, const ConversionTest& t) {
  say(out, o, hla ? "original at full rank is the source" : "RoPE on all pairs, no SVD, is the source",
      t.original);
  if (t.full_rank)
    say(out, o, hla ? "aligned at full rank is the source" : "full rank is partial RoPE without SVD",
        *t.full_rank);
  else out << "self-test: full rank left out: these settings have no rank at which they are exact\n";
  say(out, o, "the files are the conversion", t.written);
  return std::max({t.original.max_error, t.full_rank ? t.full_rank->max_error : 0, t.written.max_error});
}

void say_layers(std::ostream& out, const std::vector<LayerError>& errors) {
  for (size_t l = 0; l < errors.size(); ++l)
    if (errors[l].total > 0)
      out << "layer " << l << ": factoring lost " << 100 * errors[l].error / errors[l].total << " %\n";
}

nlohmann::ordered_json layer_report(const LlamaConfig& c, size_t l) {
  if (c.hla) return hla_json(*c.hla).at("layers")[l];
  const LatentWidths w = latent_widths(c);
  return {{"kept_pairs", c.mla->kept[l]},
          {"rank_k", w.rank_k},
          {"rank_v", w.rank_v},
          {"shared_latent", w.shared}};
}

void add_plan(nlohmann::ordered_json& layers, const ConversionPlan& plan,
              const std::vector<LayerError>& errors) {
  for (size_t l = 0; l < errors.size(); ++l) {
    layers[l].update(layer_report(plan.config, l));
    layers[l].update(
        {{"metric", name(plan.settings.metric)}, {"error", errors[l].error}, {"error_of", errors[l].total}});
  }
}

// What would fail once the work is done fails before it.
void check_target(const Options& o) {
  LLATTE_CHECK(!std::filesystem::exists(o.target), o.target, " exists already; remove it or name another");
  LLATTE_CHECK(target_format(o) != "gguf", o.target,
               ": GGUF has no latent attention; use --to hf, hf-current or nanotron");
}

ConversionPlan plan_of(const Options& o, const Checkpoint& source, std::ostream& out) {
  if (!o.plan.empty()) return load_plan(o.plan, source);
  if (o.best.empty()) return make_plan(source, parse_settings(o.settings));
  const BestPlan best = best_plan(source, o.best, o.cache_values, o.calibration);
  const ConversionSettings& s = best.plan.settings;
  if (s.hla) out << "best: HLA, planes that all heads share and one latent for k and v, sizes by layer";
  else
    out << "best: MLA, " << s.rope.top_k_rope_dim << " pairs of a head keep RoPE, low_rank "
        << s.svd.low_rank;
  out << "; the loss of a token is expected to rise by " << best.predicted_loss
      << " before o_proj is fitted\n";
  return best.plan;
}

void change_attention(const App& app, const Options& o, const Checkpoint& source) {
  check_target(o);
  std::ostream& out = app.json ? std::cerr : std::cout;
  const ConversionPlan plan = plan_of(o, source, out);
  out << plan_table(plan);
  if (!o.save_plan.empty()) save_plan(o.save_plan, plan);
  const auto errors = std::make_shared<std::vector<LayerError>>();
  const Checkpoint latent = convert_attention(source, plan, errors, app.device);
  save_checkpoint(o.target, latent, target_format(o), target_dtype(o, source));
  const Checkpoint result = open_checkpoint(o.target);
  say_layers(out, *errors);
  out << weight_table(latent, result);
  nlohmann::ordered_json j = report(source, result);
  out << "cached values per token and layer: " << mean_cache_values(source.config) << " before, "
      << mean_cache_values(result.config) << " after; bytes per token: " << cache_bytes_per_token(source)
      << " before, " << cache_bytes_per_token(result) << " after\n";
  add_plan(j["layers"], plan, *errors);
  if (o.no_self_test) out << "self-test left out\n";
  else
    j["self_test_max_error"] = say(out, o, plan.config.hla.has_value(),
                                   test_conversion(source, plan, latent, result, kLargeModel, app.device));
  if (app.json) app.print_json(j);
}

// Read by other programs alone, so there is nothing here to compare the result with.
void export_deepseek(const App& app, const Options& o, const Checkpoint& source) {
  if (o.changes_attention())
    throw UsageError(
        "--to deepseek takes a model that is MLA already; convert to hf first, then that to deepseek");
  save_checkpoint(o.target, source, "deepseek", target_dtype(o, source));
  (app.json ? std::cerr : std::cout) << "self-test left out: this format is written, not read\n";
  if (app.json) app.print_json(report(source, source));
}

void run(const App& app, const Options& o) {
  if (!o.plan.empty() && !o.settings.empty())
    throw UsageError("--plan holds all settings; leave " + o.settings[0] + " out");
  if (!o.best.empty() && (!o.plan.empty() || !o.settings.empty()))
    throw UsageError("--best chooses all settings; leave --plan and " +
                     (o.settings.empty() ? "others" : o.settings[0]) + " out");
  if (!o.best.empty() && (o.cache_values == 0 || o.calibration.empty()))
    throw UsageError("--best needs --cache-values N and --calibration FILE");
  const Checkpoint source = open_source(o);
  if (o.to == "deepseek") export_deepseek(app, o, source);
  else if (o.changes_attention()) change_attention(app, o, source);
  else change_format(app, o, source);
  if (source.tokenizer_json.empty())
    (app.json ? std::cerr : std::cout) << "no tokenizer came along; name one with --tokenizer\n";
}

void add_options(CLI::App& cli, Options& o) {
  cli.add_option("SRC", o.source, "folder (Hugging Face, nanotron, our own checkpoint) or .gguf file")
      ->required();
  cli.add_option("DST", o.target, "new folder or .gguf file")->required();
  cli.add_option(
      "SETTINGS", o.settings,
      "key.path=value, how to change the attention: RoPE.{partial_rope_version, top_k_rope_dim, "
      "last_k_rope_dim, uniform_start_point, uniform_step, qk_tensor_path}, SVD.{method, low_rank, metric}, "
      "or "
      "HLA.{rope, cache, cache_values, factor_q, rank_q, rank_k, rank_v, metric, allocate, frequencies, "
      "rope_pairs, head_block, calibration}, "
      "convert.{calibration, refit_o, gqa2mha, from_scratch, balance} (docs/conversion.md)");
  cli.add_option("--plan", o.plan, "a plan from --save-plan, instead of SETTINGS");
  cli.add_option("--best", o.best,
                 "our best settings for --cache-values, from --calibration: mla, hla, or any of "
                 "both, the one that the loss is expected to pay less for")
      ->check(CLI::IsMember({"mla", "hla", "any"}));
  cli.add_option("--cache-values", o.cache_values, "with --best: numbers cached per token and layer")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 30));
  cli.add_option("--calibration", o.calibration, "with --best: a file from calibrate --covariance");
  cli.add_option("--save-plan", o.save_plan, "JSON file for what was decided");
  cli.add_option(
         "--to", o.to,
         "hf, hf-current (MLA in MHA2MLA's current layout), deepseek (MLA as DeepSeek-V3), nanotron or gguf "
         "(default: gguf if DST ends in .gguf, else hf)")
      ->check(CLI::IsMember({"hf", "hf-current", "deepseek", "nanotron", "gguf"}));
  cli.add_option("--dtype", o.dtype,
                 "f32 or bf16, for gguf also f16 and q8_0 (default: bf16 from bf16, else f32)")
      ->check(CLI::IsMember({"f32", "bf16", "f16", "q8_0"}));
  cli.add_option("--tokenizer", o.tokenizer, "tokenizer.json or its folder, to go with the result");
  o.is_mla.add_to(cli, "SRC");
  cli.add_flag("--no-self-test", o.no_self_test, "don't compare logits of source and result");
}

}  // namespace
}  // namespace llatte

int main(int argc, char** argv) {
  using namespace llatte;
  App app(
      "convert",
      "Turns a model into another format (Hugging Face, nanotron, GGUF), or its attention into latent "
      "attention.",
      "convert model.gguf model-hf --dtype bf16\n  convert model-hf model-mla RoPE.partial_rope_version=4 "
      "RoPE.top_k_rope_dim=4 RoPE.qk_tensor_path=qk.safetensors SVD.method=joint SVD.low_rank=16\n"
      "  convert model-hf model-hla HLA.rope=aligned HLA.cache=0.5 HLA.metric=white "
      "HLA.calibration=calibration.safetensors");
  Options o;
  add_options(app.cli, o);
  return app.run(argc, argv, [&] { run(app, o); });
}
