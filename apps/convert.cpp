// llatte-convert: a model from one format to another. Weights pass one at a time; then source and result are
// run on the same tokens and must give the same logits.
#include "apps/common.h"
#include "convert/self_test.h"
#include "convert/summary.h"
#include "data/files.h"
#include "data/tokenizer.h"
#include "models/checkpoint.h"

namespace llatte {
namespace {

struct Options {
  std::string source, target, to, dtype, tokenizer;
  std::vector<std::string> settings;
  bool no_self_test = false;
};

std::string target_format(const Options& o) {
  if (!o.to.empty()) return o.to;
  return o.target.ends_with(".gguf") ? "gguf" : "hf";
}

Checkpoint open_source(const Options& o) {
  Checkpoint c = open_checkpoint(o.source);
  if (!o.tokenizer.empty()) c.tokenizer_json = Tokenizer::load(o.tokenizer).json();
  return c;
}

// Empty where it ran and passed; else why it did not run.
std::string self_test(const Options& o, const Checkpoint& source, const Checkpoint& result, SelfTest& t) {
  if (o.no_self_test) return "left out";
  if (is_latent(source.config)) return "left out: latent attention cannot be run yet";
  t = compare_logits(source, result);
  LLATTE_CHECK(t.passed(), "self-test failed: logits of ", o.source, " and ", o.target, " differ by up to ",
               t.max_error, " (largest logit ", t.max_logit, "); don't use ", o.target);
  return "";
}

nlohmann::ordered_json report(const Checkpoint& source, const Checkpoint& result, const SelfTest& t,
                              bool tested) {
  auto layers = nlohmann::ordered_json::array();
  for (int64_t l = 0; l < result.config.num_hidden_layers; ++l)
    layers.push_back({{"cache_values_per_token_before", cache_values_per_layer(source.config)},
                      {"cache_values_per_token_after", cache_values_per_layer(result.config)}});
  nlohmann::ordered_json j{{"parameters_before", param_count(source.config)},
                           {"parameters_after", param_count(result.config)},
                           {"bytes_before", source.bytes()},
                           {"bytes_after", result.bytes()},
                           {"cache_bytes_per_token_before", cache_bytes_per_token(source)},
                           {"cache_bytes_per_token_after", cache_bytes_per_token(result)},
                           {"self_test_max_error", nullptr},
                           {"layers", layers}};
  if (tested) j["self_test_max_error"] = t.max_error;
  return j;
}

void run(const App& app, const Options& o) {
  for (const std::string& s : o.settings)
    LLATTE_FAIL("convert: ", s, ": changing the attention (RoPE, SVD, HLA) is not built yet");
  const Checkpoint source = open_source(o);
  const std::string dtype = !o.dtype.empty() ? o.dtype : source.dtype() == DType::bf16 ? "bf16" : "f32";
  save_checkpoint(o.target, source, target_format(o), dtype);
  const Checkpoint result = open_checkpoint(o.target);
  std::ostream& out = app.json ? std::cerr : std::cout;
  out << weight_table(source, result);
  SelfTest t;
  const std::string untested = self_test(o, source, result, t);
  if (untested.empty())
    out << "self-test: logits agree, largest difference " << t.max_error << " of " << t.max_logit << '\n';
  else out << "self-test " << untested << '\n';
  if (source.tokenizer_json.empty()) out << "no tokenizer came along; name one with --tokenizer\n";
  if (app.json) app.print_json(report(source, result, t, untested.empty()));
}

void add_options(CLI::App& cli, Options& o) {
  cli.add_option("SRC", o.source, "folder (Hugging Face, nanotron, our own checkpoint) or .gguf file")
      ->required();
  cli.add_option("DST", o.target, "new folder or .gguf file")->required();
  cli.add_option("SETTINGS", o.settings, "key.path=value: how to change the attention");
  cli.add_option("--to", o.to,
                 "hf, hf-current (MLA in MHA2MLA's current layout), nanotron or gguf (default: gguf if DST "
                 "ends in .gguf, "
                 "else hf)")
      ->check(CLI::IsMember({"hf", "hf-current", "nanotron", "gguf"}));
  cli.add_option("--dtype", o.dtype,
                 "f32 or bf16, for gguf also f16 and q8_0 (default: bf16 from bf16, else f32)")
      ->check(CLI::IsMember({"f32", "bf16", "f16", "q8_0"}));
  cli.add_option("--tokenizer", o.tokenizer, "tokenizer.json or its folder, to go with the result");
  cli.add_flag("--no-self-test", o.no_self_test, "don't compare logits of source and result");
}

}  // namespace
}  // namespace llatte

int main(int argc, char** argv) {
  using namespace llatte;
  App app("convert", "Turns a model into another format: Hugging Face, nanotron or GGUF.",
          "convert model.gguf model-hf --dtype bf16");
  Options o;
  add_options(app.cli, o);
  return app.run(argc, argv, [&] { run(app, o); });
}
