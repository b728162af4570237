// The export as DeepSeek-V3: its attention, computed here in double from the files alone as DeepSeek computes
// it, gives the scores and values of the model that was exported.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>
#include <nlohmann/json.hpp>
#include "data/files.h"
#include "data/safetensors.h"
#include "models/deepseek.h"
#include "models/hf.h"
#include "models/mla_layouts.h"
#include "test/near.h"
#include "test/temp_folder.h"

using namespace llatte;
using namespace llatte::test;
namespace fs = std::filesystem;

namespace {

const fs::path kFixtures = "test/fixtures/tiny-mla";

struct Matrix {
  int64_t rows, columns;
  Vec v;
  explicit Matrix(const Tensor& t) : rows(t.size(0)), columns(t.ndim() > 1 ? t.size(1) : 1), v(to_vec(t)) {}
  Vec times(const Vec& x) const {
    Vec y(static_cast<size_t>(rows));
    for (size_t i = 0; i < y.size(); ++i)
      for (size_t j = 0; j < x.size(); ++j) y[i] += v[i * static_cast<size_t>(columns) + j] * x[j];
    return y;
  }
};

// Scores of a query at position s with a key at t, and the key's values, of every query head.
struct Attended {
  Vec scores, values;
};

// (a, b) turned by `angle`, times (c, d): what two rotated pairs add to a score, angle = (s - t) frequency.
double turned(double a, double b, double c, double d, double angle) {
  return std::cos(angle) * (a * c + b * d) + std::sin(angle) * (a * d - b * c);
}

Attended ours(const Checkpoint& c, const Vec& x_s, const Vec& x_t, double distance) {
  const auto project = [&](const char* name, const Vec& x) {
    return Matrix(c.read(str("model.layers.1.self_attn.", name, ".weight"), DType::f64)).times(x);
  };
  const LlamaConfig& m = c.config;
  const auto E = static_cast<size_t>(m.head_dim), G = size_t(m.num_attention_heads / m.num_key_value_heads);
  const bool split = m.mla->svd.method == SvdMethod::split;
  const Vec q = project("q_proj", x_s), k_r = project("W_k_r", x_t);
  const Vec k_c = project("W_up_k", project("W_down_k", x_t));
  const Vec v = project("W_up_v", project(split ? "W_down_v" : "W_down_k", x_t));
  const std::vector<double> frequency = rope_frequencies(m);
  Attended a;
  for (size_t h = 0; h < static_cast<size_t>(m.num_attention_heads); ++h) {
    size_t r = 0, n = 0;  // rows of k_r and k_c before this kv head
    for (size_t k = 0; k < h / G; ++k)
      r += 2 * m.mla->kept[1][k].size(), n += E - 2 * m.mla->kept[1][k].size();
    const auto& pairs = m.mla->kept[1][h / G];
    std::vector<bool> kept(E);
    double score = 0;
    for (size_t i = 0; i < pairs.size(); ++i) {
      const auto j = static_cast<size_t>(pairs[i]);
      kept[j] = kept[j + E / 2] = true;
      score += turned(q[h * E + j], q[h * E + j + E / 2], k_r[r + i], k_r[r + pairs.size() + i],
                      -distance * frequency[j]);
    }
    for (size_t e = 0; e < E; ++e)
      if (!kept[e]) score += q[h * E + e] * k_c[n++];
    a.scores.push_back(score / std::sqrt(static_cast<double>(E)));
    for (size_t e = 0; e < E; ++e) a.values.push_back(v[h / G * E + e]);
  }
  return a;
}

Attended theirs(const fs::path& folder, const Vec& x_s, const Vec& x_t, double distance) {
  const auto j = nlohmann::json::parse(read_file(folder / "config.json"));
  const auto file = SafetensorsFile::open(folder / "model.safetensors");
  const auto matrix = [&](const char* name) {
    return Matrix(file.read(str("model.layers.1.self_attn.", name), DType::f64));
  };
  const size_t H = j["num_attention_heads"], nope = j["qk_nope_head_dim"], rope = j["qk_rope_head_dim"];
  const size_t E = j["v_head_dim"], n = j["kv_lora_rank"];
  Vec a = matrix("kv_a_proj_with_mqa.weight").times(x_t);
  const Vec bias = matrix("kv_a_proj_with_mqa.bias").v, norm = matrix("kv_a_layernorm.weight").v;
  for (size_t i = 0; i < a.size(); ++i) a[i] += bias[i];
  double mean = 0;
  for (size_t i = 0; i < n; ++i) mean += a[i] * a[i] / static_cast<double>(n);
  Vec latent(n);
  for (size_t i = 0; i < n; ++i) latent[i] = norm[i] * a[i] / std::sqrt(mean + 1e-6);
  const Vec kv = matrix("kv_b_proj.weight").times(latent), q = matrix("q_proj.weight").times(x_s);
  Attended out;
  for (size_t h = 0; h < H; ++h) {
    double score = 0;
    const double *qh = &q[h * (nope + rope)], *kh = &kv[h * (nope + E)], *shared = &a[n];
    for (size_t i = 0; i < nope; ++i) score += qh[i] * kh[i];
    for (size_t p = 0; p < rope / 2; ++p) {
      double f =
          std::pow(j["rope_theta"].get<double>(), -2.0 * static_cast<double>(p) / static_cast<double>(rope));
      if (!j["rope_scaling"].is_null()) f /= j["rope_scaling"]["short_factor"][p].get<double>();
      score +=
          turned(qh[nope + 2 * p], qh[nope + 2 * p + 1], shared[2 * p], shared[2 * p + 1], -distance * f);
    }
    out.scores.push_back(score / std::sqrt(static_cast<double>(nope + rope)));
    out.values.insert(out.values.end(), kh + nope, kh + nope + E);
  }
  return out;
}

// Tolerances: the files are f32, and q_proj is rounded once more when the softmax scale goes into it: 6e-8 of
// each of some hundred terms of size 1; the constants hold the latent's rms to 1e-10. 1e-5 is far above both
// and far below a wrong row.
void check_same_attention(const Checkpoint& c, const fs::path& folder) {
  std::mt19937 rng(7);
  for (const double distance : {0.0, 6.0, 200.0}) {
    CAPTURE(distance);
    const Vec x_s = noise(c.config.hidden_size, rng), x_t = noise(c.config.hidden_size, rng);
    const Attended a = ours(c, x_s, x_t, distance), b = theirs(folder, x_s, x_t, distance);
    check_near("scores", b.scores, a.scores, 1e-5);
    check_near("values", b.values, a.values, 1e-5);
  }
}

}  // namespace

TEST_CASE("heads with pairs of their own share one rotated key, at frequencies given one by one") {
  for (const char* name : {"nanotron-era/hf_v4_m7", "nanotron-era/hf_v2_m2"}) {
    CAPTURE(name);
    const Checkpoint c = open_hf(kFixtures / name);
    const TempFolder t;
    save_deepseek(t.path, c, DType::f32);
    check_same_attention(c, t.path);
  }
}

TEST_CASE("one kv head with pairs on a grid needs nothing that DeepSeek's own RoPE has not") {
  // hf_v2_m2 cut down to its first kv head, with other pairs.
  Checkpoint c = open_hf(kFixtures / "nanotron-era/hf_v2_m2");
  const Checkpoint two = c;
  c.config.num_attention_heads = 2, c.config.num_key_value_heads = 1;
  c.config.mla->rope.uniform_start_point = 0;
  c.config.mla->kept.assign(2, {{0, 4}});
  c.config.mla->svd.low_rank = 12;
  c.read = [two](const std::string& name, DType t) {
    const Tensor w = two.read(name, t);
    const bool half =
        name.find("q_proj") != name.npos || name.find("W_k_r") != name.npos || name.find("W_up") != name.npos;
    if (name.find("o_proj") != name.npos) return w.slice(1, 0, w.size(1) / 2).contiguous();
    return half ? w.slice(0, 0, w.size(0) / 2).contiguous() : w;
  };
  const TempFolder t;
  save_deepseek(t.path, c, DType::f32);
  const auto j = nlohmann::json::parse(read_file(t / "config.json"));
  CHECK(j["rope_scaling"].is_null());
  CHECK(j["qk_rope_head_dim"] == 4);  // pairs 0 and 4 of 8: theta^(-2i/4) are their frequencies
  check_same_attention(c, t.path);
}

TEST_CASE("the constants hold the rms of a latent of any width") {
  for (int64_t rank = 1; rank <= 24; ++rank) {
    CAPTURE(rank);
    Checkpoint c = open_hf(kFixtures / "nanotron-era/hf_v2_m2");
    const auto read = c.read;
    c.config.mla->svd.low_rank = rank;
    c.config.mla->svd.method = SvdMethod::joint;
    c.read = [read, &c](const std::string& name, DType t) {  // zeros where the rank decides the shape
      for (const auto& [n, shape] : param_shapes(c.config))
        if (n == name && (n.find("W_up") != n.npos || n.find("W_down") != n.npos))
          return Tensor::zeros(shape, t);
      return read(name, t);
    };
    const TempFolder t;
    save_deepseek(t.path, c, DType::bf16);
    const auto file = SafetensorsFile::open(t / "model.safetensors");
    const Vec bias = to_vec(file.read("model.layers.0.self_attn.kv_a_proj_with_mqa.bias", DType::f64));
    const Vec norm = to_vec(file.read("model.layers.0.self_attn.kv_a_layernorm.weight", DType::f64));
    double sum = 0;
    for (size_t i = 0; i < norm.size(); ++i) sum += bias[i] * bias[i];
    CHECK(std::sqrt(sum / static_cast<double>(norm.size())) == norm[0]);
  }
}

TEST_CASE("what DeepSeek-V3 has no place for is refused") {
  const TempFolder t;
  const auto refusal = [&](const fs::path& model) {
    return error_of([&] { save_checkpoint(t / "x", open_checkpoint(model), "deepseek", "f32"); });
  };
  CHECK(has(refusal(kFixtures / "base"), "is for latent attention, which this model has not"));
  CHECK(has(refusal(kFixtures / "current/hf_qwen2_high_joint"), "has no bias on q_proj"));
  CHECK(!fs::exists(t / "x"));
}
