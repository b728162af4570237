// A model's size is a test: the published counts, the formula by hand, and the built model must agree.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>
#include "models/llama.h"
#include "test/temp_folder.h"

using namespace llatte;
using namespace llatte::test;

TEST_CASE("published parameter counts, and the others by hand") {
  CHECK(param_count(preset("clm-60m")) == 82101120);
  CHECK(param_count(preset("smollm-135m")) == 134515008);
  // V D (twice if untied) + L (2 D H E + 2 D K E + 3 D F + 2 D) + D
  CHECK(param_count(preset("clm-200m")) ==
        2LL * 49152 * 768 + 24LL * (2 * 768 * 768 + 2 * 768 * 256 + 3 * 768 * 2688 + 2 * 768) + 768);
  CHECK(param_count(preset("smollm-360m")) ==
        49152LL * 960 + 32LL * (2 * 960 * 960 + 2 * 960 * 320 + 3 * 960 * 2560 + 2 * 960) + 960);
  CHECK(param_count(preset("smollm-1.7b")) ==
        49152LL * 2048 + 24LL * (4LL * 2048 * 2048 + 3LL * 2048 * 8192 + 2 * 2048) + 2048);
  CHECK(param_count(preset("llama2-7b")) == 6738415616);  // the published number
}

TEST_CASE("every preset is possible and has the SPEC's widths") {
  CHECK(preset_names().size() == 6);
  for (const auto& name : preset_names()) CHECK_NOTHROW(preset(name).check());
  const LlamaConfig c = preset("clm-200m");
  CHECK(c.hidden_size == 768);
  CHECK(c.num_attention_heads == 12);
  CHECK(c.num_key_value_heads == 4);
  CHECK(c.intermediate_size == (2 * 4 * 768 / 3 * 13 / 10 + 127) / 128 * 128);
  CHECK_FALSE(c.tie_word_embeddings);
  CHECK(preset("smollm-360m").tie_word_embeddings);
  CHECK(has(error_of([] { preset("clm-61m"); }), "no 'clm-61m'; have clm-60m, clm-200m, smollm-135m"));
}

// The config's count against the built model's, for every option that changes it.
TEST_CASE("names, shapes and count from the config are the model's") {
  LlamaConfig c = preset("clm-60m");
  Llama clm(c, DType::bf16);
  CHECK(param_count(clm) == 82101120);
  c.hidden_size = 24, c.num_hidden_layers = 3, c.head_dim = 10, c.intermediate_size = 31, c.vocab_size = 33;
  for (const bool tied : {false, true})
    for (const bool bias : {false, true})
      for (const bool norm : {false, true}) {
        c.tie_word_embeddings = tied, c.qkv_bias = bias, c.qk_norm = norm;
        Llama model(c, DType::f32);
        CHECK(param_count(model) == param_count(c));
        std::vector<std::pair<std::string, Shape>> built;
        model.params("", [&](const std::string& name, Var& p) { built.emplace_back(name, p.shape()); });
        CHECK(built == param_shapes(c));
      }
}

TEST_CASE("impossible values are named") {
  const auto why = [](auto change) {
    LlamaConfig c = preset("clm-60m");
    change(c);
    return error_of([&] { Llama model(c, DType::f32); });
  };
  CHECK(has(why([](LlamaConfig& c) { c.hidden_size = -32; }), "hidden_size is -32"));
  CHECK(has(why([](LlamaConfig& c) { c.num_attention_heads = 0; }), "num_attention_heads is 0"));
  CHECK(has(why([](LlamaConfig& c) { c.num_key_value_heads = 4; }),
            "6 is not a multiple of num_key_value_heads 4"));
  CHECK(has(why([](LlamaConfig& c) { c.head_dim = 63; }), "head_dim is 63"));
  CHECK(has(why([](LlamaConfig& c) { c.rms_norm_eps = 0; }), "rms_norm_eps is 0"));
  CHECK(has(why([](LlamaConfig& c) { c.rope_theta = -1; }), "rope_theta is -1"));
  CHECK(has(why([](LlamaConfig& c) { c.num_hidden_layers = 1 << 20; }), "num_hidden_layers is 1048576"));
  CHECK(has(why([](LlamaConfig& c) { c.rope_scaling = RopeScaling{8, 4, 4, 64}; }), "high_freq_factor 4"));
  LlamaConfig huge = preset("clm-60m");
  huge.hidden_size = huge.vocab_size = int64_t(1) << 40;
  CHECK(has(error_of([&] { param_count(huge); }), "parameters"));
}
