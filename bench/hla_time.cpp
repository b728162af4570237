// What latent attention with RoPE in the latents costs in time: one layer of random weights, ordinary (gqa)
// beside HLA at half the cache. Three tables: rotating planes beside rotating heads, the attention of a whole
// prompt forward and backward (the training form), and decoding one token from a cache. The best of several
// rounds, in which the kinds take turns. Not here: what a conversion does to the model
// (bench/hla_quality.py).
//   bench/hla_time [--preset clm-60m] [--dtype f32|bf16] [--tokens 512,...] [--context 512,...] [--rounds 5]
//                  [--device cpu|cuda]
#include <chrono>
#include <functional>
#include <numeric>
#include "apps/common.h"
#include "autograd/ops.h"
#include "bench/wait.h"
#include "models/llama.h"
#include "tensor/kernels.h"

namespace llatte {
namespace {

struct Options {
  std::string preset = "clm-60m", dtype = "f32";
  std::vector<int64_t> tokens{512, 1024, 2048}, context{512, 2048, 8192};
  int64_t rounds = 5;
  Device device = Device::cpu;

  DType type() const { return dtype == "bf16" ? DType::bf16 : DType::f32; }
};

// P planes dealt out evenly to the pairs of a head.
Planes even_planes(int64_t P, int64_t pairs) {
  Planes planes;
  for (int64_t p = 0; p < P; ++p) planes.pair.push_back(static_cast<int32_t>(p * pairs / P));
  planes.block.assign(static_cast<size_t>(P), 0);
  return planes;
}

// Half of the 2KE values: of k and of v alike, or (unified) a seventh of them in planes, as conversions of
// SmolLM2 choose on average.
LlamaConfig with_hla(LlamaConfig c, HlaRope rope) {
  const int64_t half = c.num_key_value_heads * c.head_dim, pairs = c.head_dim / 2;
  HlaLayer layer;
  if (rope == HlaRope::original) layer.rank_k = layer.rank_v = half / 2;
  if (rope == HlaRope::aligned) layer.k = even_planes(half / 4, pairs), layer.rank_v = half / 2;
  if (rope == HlaRope::unified) {
    layer.k = even_planes(half / 7, pairs);
    layer.rank_k = layer.rank_v = half - 2 * layer.k.count();
  }
  c.hla = HlaConfig{rope, rope == HlaRope::unified ? 0 : pairs, 0, {layer}};
  return c;
}

Tensor positions_from(int64_t begin, int64_t n, Device d) {
  std::vector<int32_t> pos(static_cast<size_t>(n));
  std::iota(pos.begin(), pos.end(), static_cast<int32_t>(begin));
  return Tensor::from(pos, {n}).to(d);
}

class Layer {
 public:
  Layer(const std::string& name, const LlamaConfig& c, const Options& o, int64_t positions)
      : name(name),
        c_(c),
        t_(o.type()),
        device_(o.device),
        table_(make_rope_table(rope_frequencies(c), positions, acc_dtype(t_), device_)),
        attention_(make_attention(attention_config(c, 0, t_))) {
    uint64_t stream = 0;
    attention_->params("", [&](const std::string&, Var& w) {
      kernels::random_normal(1, ++stream, 0, c.initializer_range, w.value);
    });
    attention_->to(device_);
  }

  Var input(int64_t T) const {
    Tensor x = Tensor::empty({1, T, c_.hidden_size}, t_, device_);
    kernels::random_normal(2, 1, 0, 1, x);
    return leaf(x);
  }

  Var forward(const Var& x, int64_t begin = 0, LayerCache* cache = nullptr) {
    const Tensor at = positions_from(begin, x.size(1), device_);
    return attention_->forward(x, {table_, at, 0, cache});
  }

  // Holding n tokens, with room for one more.
  std::unique_ptr<LayerCache> filled_cache(int64_t n) {
    auto cache = attention_->make_cache(1, n + 1, cache_type(t_));
    constexpr int64_t kChunk = 1024;
    for (int64_t begin = 0; begin < n; begin += kChunk)
      forward(input(std::min(kChunk, n - begin)), begin, cache.get());
    return cache;
  }

  const std::string name;

 private:
  LlamaConfig c_;
  DType t_;
  Device device_;
  RopeTable table_;
  std::unique_ptr<Attention> attention_;
};

using Call = std::function<void()>;

// Best time of each, in milliseconds; the first round is not counted.
std::vector<double> best_of(const Options& o, const std::vector<Call>& calls) {
  std::vector<double> best(calls.size(), std::numeric_limits<double>::infinity());
  for (int64_t round = 0; round <= o.rounds; ++round)
    for (size_t i = 0; i < calls.size(); ++i) {
      const auto start = std::chrono::steady_clock::now();
      calls[i]();
      wait(o.device);
      const std::chrono::duration<double, std::milli> ms = std::chrono::steady_clock::now() - start;
      if (round > 0) best[i] = std::min(best[i], ms.count());
    }
  return best;
}

// Rows of a table for people, or of {"table": ..., cells} for programs.
class Report {
 public:
  explicit Report(bool json) : json_(json) {}
  void table(const std::string& what, const std::vector<std::string>& columns) {
    what_ = what, columns_ = columns;
    if (json_) return;
    std::cout << "\n| " << what;
    for (const auto& c : columns) std::cout << " | " << c;
    std::cout << " |\n|---|";
    for (size_t i = 0; i < columns.size(); ++i) std::cout << "---|";
    std::cout << '\n';
  }
  void row(const std::string& name, const std::vector<double>& cells) {
    nlohmann::ordered_json line{{"table", what_}, {"row", name}};
    for (size_t i = 0; i < cells.size(); ++i) line[columns_[i]] = cells[i];
    rows.push_back(line);
    if (json_) return;
    std::cout << "| " << name;
    for (double x : cells) std::cout << " | " << x;
    std::cout << " |\n" << std::flush;
  }
  nlohmann::ordered_json rows = nlohmann::ordered_json::array();

 private:
  bool json_;
  std::string what_;
  std::vector<std::string> columns_;
};

// q and k of ordinary attention, and the planes of a latent of half k's width, as one head.
void time_rope(const Options& o, const LlamaConfig& c, Report& report) {
  const int64_t H = c.num_attention_heads, K = c.num_key_value_heads, E = c.head_dim, P = K * E / 4;
  report.table("RoPE, ms", {"q, all heads", "k, all heads", "planes of a latent half as wide as k"});
  for (int64_t T : o.tokens) {
    const RopeTable table = make_rope_table(rope_frequencies(c), T, acc_dtype(o.type()), o.device);
    const Tensor at = positions_from(0, T, o.device),
                 pairs = Tensor::from(even_planes(P, E / 2).pair, {1, P}).to(o.device);
    const auto rotates = [&](int64_t heads, int64_t width, const Tensor& own) -> Call {
      Tensor x = Tensor::full({1, T, heads, width}, 0.5, o.type(), o.device);
      return [=] { rope(constant(x), table.cos, table.sin, at, own); };
    };
    report.row(str(T, " tokens"),
               best_of(o, {rotates(H, E, {}), rotates(K, E, {}), rotates(1, 2 * P, pairs)}));
  }
}

std::vector<std::string> names_of(const std::vector<std::unique_ptr<Layer>>& layers) {
  std::vector<std::string> names;
  for (const auto& layer : layers) names.push_back(layer->name);
  return names;
}

void time_prompt(const Options& o, const std::vector<std::unique_ptr<Layer>>& layers, Report& report) {
  report.table("attention of a prompt, ms", names_of(layers));
  for (int64_t T : o.tokens) {
    std::vector<Call> forward, both;
    for (const auto& layer : layers) {
      const Var x = layer->input(T);
      forward.push_back([&layer = *layer, x] {
        const NoGrad off;
        layer.forward(x);
      });
      both.push_back([&layer = *layer, x] {
        const Var y = layer.forward(x);
        backward(y, Tensor::full(y.shape(), 1, y.value.dtype(), y.value.device()));
      });
    }
    report.row(str(T, " tokens, forward"), best_of(o, forward));
    report.row(str(T, " tokens, forward and backward"), best_of(o, both));
  }
}

void time_decode(const Options& o, const std::vector<std::unique_ptr<Layer>>& layers, Report& report) {
  constexpr int64_t kTokens = 8;  // of a round, to be well above the clock's grain
  const NoGrad off;
  report.table(str("decoding ", kTokens, " tokens, ms"), names_of(layers));
  std::vector<double> bytes;
  for (int64_t context : o.context) {
    std::vector<std::unique_ptr<LayerCache>> caches;
    std::vector<Call> calls;
    for (const auto& layer : layers) {
      caches.push_back(layer->filled_cache(context));
      calls.push_back([&layer = *layer, context, cache = caches.back().get(), x = layer->input(1)] {
        for (int64_t i = 0; i < kTokens; ++i) {
          cache->truncate(context);
          layer.forward(x, context, cache);
        }
      });
    }
    report.row(str("after ", context), best_of(o, calls));
    bytes.clear();
    for (const auto& cache : caches) bytes.push_back(static_cast<double>(cache->bytes_per_token()));
  }
  report.row("bytes of cache, token and layer", bytes);
}

void run(const App& app, const Options& o) {
  LlamaConfig c = preset(o.preset);
  c.num_hidden_layers = 1;
  const int64_t positions = std::max(*std::max_element(o.tokens.begin(), o.tokens.end()),
                                     *std::max_element(o.context.begin(), o.context.end()) + 1);
  std::vector<std::unique_ptr<Layer>> layers;
  const auto add = [&](const std::string& name, const LlamaConfig& of) {
    layers.push_back(std::make_unique<Layer>(name, of, o, positions));
  };
  add("gqa", c);
  add("original", with_hla(c, HlaRope::original));
  add("aligned", with_hla(c, HlaRope::aligned));
  add("unified", with_hla(c, HlaRope::unified));
  const std::string where =
      o.device == Device::cuda ? cuda::device_name() : str(omp_get_max_threads(), " threads");
  if (!app.json) std::cout << o.preset << ", " << o.dtype << ", " << where << '\n';
  Report report(app.json);
  time_rope(o, c, report);
  time_prompt(o, layers, report);
  time_decode(o, layers, report);
  if (app.json)
    app.print_json({{"preset", o.preset},
                    {"dtype", o.dtype},
                    {"device", name(o.device)},
                    {"threads", omp_get_max_threads()},
                    {"rows", report.rows}});
}

}  // namespace
}  // namespace llatte

int main(int argc, char** argv) {
  using namespace llatte;
  App app("bench-hla-time", "How long latent attention takes, beside ordinary attention.",
          "hla_time --preset smollm-135m --dtype bf16 --threads 2");
  Options o;
  app.cli.add_option("--preset", o.preset, "whose shapes")->capture_default_str();
  app.cli.add_option("--dtype", o.dtype)->check(CLI::IsMember({"f32", "bf16"}))->capture_default_str();
  app.cli.add_option("--tokens", o.tokens, "lengths of prompts")->delimiter(',')->check(CLI::Range(1, 65536));
  app.cli.add_option("--context", o.context, "tokens in the cache")
      ->delimiter(',')
      ->check(CLI::Range(1, 65536));
  app.cli.add_option("--rounds", o.rounds, "the best of this many")->check(CLI::Range(1, 1000));
  return app.run(argc, argv, [&] {
    o.device = app.device;
    run(app, o);
  });
}
