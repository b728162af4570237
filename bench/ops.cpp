// One benchmark per op, at clm-60m's shapes: 2 sequences of 512 tokens unless the name says otherwise.
//   GF, per second: multiply-adds count two; causal attention counts only the half it computes
//   GB, per second: numbers the op has to read or write, once each; operands of a few MiB come from the
//   caches
//   bench/ops [--device cpu|cuda] [--threads N] [--benchmark_filter=REGEX, and what else Google Benchmark
//   takes]
// Not here: correctness (test/) and the whole training step (bench/train_step.cpp).
#include <benchmark/benchmark.h>
#include <functional>
#include <random>
#include "apps/common.h"
#include "bench/wait.h"
#include "tensor/kernels.h"

namespace llatte {
namespace {

// D width  H query heads  K kv heads  E head width  F ffn  V vocab  N tokens
constexpr int64_t D = 384, H = 6, K = 2, E = 64, F = 1408, V = 49152, N = 1024;

// A prepared call and what one of it costs.
struct Case {
  std::function<void()> call;
  double flops = 0, bytes = 0;
};
using Make = std::function<Case(DType)>;

Device device = Device::cpu;  // where all tensors are; set before any case is made

void time_case(benchmark::State& state, const Make& make, DType t) {
  const Case c = make(t);
  c.call();  // the first call builds primitives and touches pages
  wait(device);
  // The GPU is given many calls before it is waited for: alone, a short one would take as long as the wait.
  const int64_t calls = device == Device::cuda ? 32 : 1;
  while (state.KeepRunningBatch(calls)) {
    for (int64_t i = 0; i < calls; ++i) c.call();
    wait(device);
  }
  using benchmark::Counter;
  if (c.flops > 0) state.counters["GF"] = Counter(c.flops * 1e-9, Counter::kIsIterationInvariantRate);
  if (c.bytes > 0) state.counters["GB"] = Counter(c.bytes * 1e-9, Counter::kIsIterationInvariantRate);
}

void add_case(const std::string& name, Make make) {
  for (DType t : {DType::f32, DType::bf16}) {
    auto body = [make, t](benchmark::State& state) { time_case(state, make, t); };
    benchmark::RegisterBenchmark((name + "/" + llatte::name(t)).c_str(), body)
        ->Unit(benchmark::kMillisecond)
        ->UseRealTime();  // OpenMP's other threads do not count as this thread's CPU time
  }
}

Tensor empty(const Shape& shape, DType t) { return Tensor::empty(shape, t, device); }
Tensor full(const Shape& shape, double value, DType t) { return Tensor::full(shape, value, t, device); }

Tensor random(const Shape& shape, DType t) {
  static uint64_t stream = 0;
  Tensor x = empty(shape, t);
  kernels::random_normal(1, ++stream, 0, 0.5, x);
  return x;
}

Tensor random_ids(int64_t n, int32_t below) {
  std::mt19937 engine(7);
  std::vector<int32_t> ids(n);
  for (auto& id : ids) id = static_cast<int32_t>(engine() % static_cast<uint32_t>(below));
  return Tensor::from(ids, {n}).to(device);
}

double total_bytes(std::initializer_list<Tensor> tensors) {
  double sum = 0;
  for (const Tensor& t : tensors) sum += static_cast<double>(t.bytes());
  return sum;
}

Case product(Tensor a, Tensor b, Tensor c) {
  const double flops = 2.0 * a.size(0) * a.size(1) * b.size(1);
  return {[=]() mutable { kernels::matmul(a, b, c, 0); }, flops};
}

// The three products of y_NO = x_NI w_OI^T: forward, gradient of x, gradient of w (summed in f32).
void add_linear(const std::string& layer, int64_t rows, int64_t I, int64_t O) {
  const std::string at = "matmul/" + layer + "_" + str(rows, "x", I, "x", O);
  add_case(at + "/fwd", [=](DType t) {
    return product(random({rows, I}, t), random({O, I}, t).transpose(0, 1), empty({rows, O}, t));
  });
  add_case(at + "/dx", [=](DType t) {
    return product(random({rows, O}, t), random({O, I}, t), empty({rows, I}, t));
  });
  add_case(at + "/dw", [=](DType t) {
    return product(random({rows, O}, t).transpose(0, 1), random({rows, I}, t), empty({O, I}, acc_dtype(t)));
  });
}

struct AttentionTensors {
  Tensor q, k, v, o, lse, dout, dq, dk, dv;
  AttentionTensors(int64_t B, int64_t T, DType t)
      : q(random({B, T, H, E}, t)),
        k(random({B, T, K, E}, t)),
        v(random({B, T, K, E}, t)),
        o(Tensor::empty_like(q)),
        lse(empty({B, H, T}, acc_dtype(t))),
        dout(random({B, T, H, E}, t)),
        dq(Tensor::empty_like(q)),
        dk(Tensor::empty_like(k)),
        dv(Tensor::empty_like(v)) {}
};

// One causal product of [T,E] by [E,T]: T(T+1)/2 dot products of length E for each of B H heads.
double causal_flops(int64_t B, int64_t T) { return 2.0 * B * H * E * T * (T + 1) / 2; }

void add_attention(int64_t B, int64_t T) {
  const std::string at = "attention/" + str(B, "x", T);
  add_case(at + "/fwd", [=](DType t) {
    auto call = [a = AttentionTensors(B, T, t)]() mutable {
      kernels::attention_fwd(a.q, a.k, a.v, 0.125, a.o, a.lse);
    };
    return Case{call, 2 * causal_flops(B, T)};  // q k, p v
  });
  add_case(at + "/bwd", [=](DType t) {
    AttentionTensors a(B, T, t);
    kernels::attention_fwd(a.q, a.k, a.v, 0.125, a.o, a.lse);
    auto call = [a]() mutable {
      kernels::attention_bwd(a.dout, a.q, a.k, a.v, a.o, a.lse, 0.125, a.dq, a.dk, a.dv);
    };
    return Case{call, 5 * causal_flops(B, T)};  // q k again, dv, dp, dq, dk
  });
}

// Decoding one token after S with SmolLM2-135M's heads (9 over 3 kv heads of 64): keys and values, or the
// 24 + 96 numbers of a latent stream kept in t or in codes.
constexpr int64_t S = 4096, kHeads = 9, kKvHeads = 3, kPlanes = 24, kLatent = 96;

Case decode_attention_case(DType t) {
  Tensor q = random({1, 1, kHeads, E}, t), k = random({1, S, kKvHeads, E}, t),
         v = random({1, S, kKvHeads, E}, t);
  Tensor o = Tensor::empty_like(q), lse = empty({1, kHeads, 1}, acc_dtype(t));
  return {[=]() mutable { kernels::attention_fwd(q, k, v, 0.125, o, lse); }, 4.0 * S * kHeads * E,
          total_bytes({k, v})};
}

CacheRows random_rows(int bits, DType t) {
  CacheRows rows;
  rows.W = kPlanes + kLatent, rows.bits = bits;
  rows.data = bits ? empty({1, S, rows.W * bits / 32}, DType::i32) : empty({1, S, rows.W}, t);
  if (bits) {
    rows.groups = Tensor::from(std::vector<int32_t>{0, 24, 56, 88, 120}, {5}).to(device);
    rows.scales = empty({1, S, 4}, DType::bf16);
  }
  kernels::write_rows(random({1, S, rows.W}, t), 0, rows);
  return rows;
}

void add_latent_attention(const std::string& kept, int bits) {
  add_case("latent_attention/1x4096/" + kept, [=](DType t) {
    Tensor q = random({1, 1, kHeads, kPlanes + kLatent}, t), o = empty({1, 1, kHeads, kLatent}, t);
    const CacheRows rows = random_rows(bits, t);
    const double bytes = total_bytes({rows.data}) + (bits ? total_bytes({rows.scales}) : 0);
    return Case{[=]() mutable { kernels::latent_attention(q, rows, S, 0.125, kPlanes, o); },
                2.0 * S * kHeads * (kPlanes + 2 * kLatent), bytes};
  });
}

Case loss_case(DType t) {
  Tensor x = random({N, D}, t), w = random({V, D}, t), targets = random_ids(N, V);
  Tensor losses = empty({N}, acc_dtype(t)), dx = Tensor::empty_like(x), dw = empty({V, D}, acc_dtype(t));
  auto call = [=]() mutable { kernels::linear_cross_entropy(x, w, targets, -100, losses, dx, dw); };
  return {call, 3 * 2.0 * N * D * V};  // logits, dx, dw
}

Case distill_case(DType t) {
  Tensor x = random({N, D}, t), w = random({V, D}, t), teacher_x = random({N, D}, t),
         teacher_w = random({V, D}, t), targets = random_ids(N, V);
  Tensor kl = empty({N}, acc_dtype(t)), ce = Tensor::empty_like(kl), dx = Tensor::empty_like(x),
         dw = empty({V, D}, acc_dtype(t));
  auto call = [=]() mutable {
    kernels::linear_distill(x, w, teacher_x, teacher_w, targets, -100, DistillRule{0.5, 2}, kl, ce, dx, dw);
  };
  return {call, 4 * 2.0 * N * D * V};  // logits of both, dx, dw
}

Case rms_norm_fwd_case(DType t) {
  Tensor x = random({N, D}, t), w = random({D}, t), y = Tensor::empty_like(x), r = empty({N}, acc_dtype(t));
  return {[=]() mutable { kernels::rms_norm_fwd(x, w, 1e-5, y, r); }, 0, total_bytes({x, y})};
}

Case rms_norm_bwd_case(DType t) {
  Tensor x = random({N, D}, t), w = random({D}, t), dy = random({N, D}, t), dx = Tensor::empty_like(x);
  Tensor r = full({N}, 2.0, acc_dtype(t)), dw = empty({D}, acc_dtype(t));
  return {[=]() mutable { kernels::rms_norm_bwd(dy, x, w, r, dx, dw); }, 0, total_bytes({x, dy, dx})};
}

Case rope_case(DType t) {
  Tensor x = random({N, H, E}, t), y = Tensor::empty_like(x), cos = random({N, E / 2}, acc_dtype(t)),
         sin = random({N, E / 2}, acc_dtype(t)), pos = random_ids(N, N);
  return {[=]() mutable { kernels::rope(x, cos, sin, pos, Tensor(), false, y); }, 0,
          total_bytes({x, y, cos, sin})};
}

Case swiglu_fwd_case(DType t) {
  Tensor gate = random({N, F}, t), up = random({N, F}, t), y = Tensor::empty_like(gate);
  return {[=]() mutable { kernels::swiglu_fwd(gate, up, y); }, 0, total_bytes({gate, up, y})};
}

Case swiglu_bwd_case(DType t) {
  Tensor gate = random({N, F}, t), up = random({N, F}, t), dy = random({N, F}, t),
         dgate = Tensor::empty_like(gate), dup = Tensor::empty_like(up);
  return {[=]() mutable { kernels::swiglu_bwd(dy, gate, up, dgate, dup); }, 0,
          total_bytes({dy, gate, up, dgate, dup})};
}

// The embedding's share of a step: 18.9 M of clm-60m's 82.1 M parameters.
Case adamw_case(DType t) {
  const DType acc = acc_dtype(t);
  Tensor w = random({V, D}, t), g = random({V, D}, acc), m = full({V, D}, 0, acc), v = full({V, D}, 0, acc),
         master = t == acc ? Tensor() : w.to(acc);
  const AdamWStep step{1e-4, 0.9, 0.95, 1e-8, 1.0, 100};
  std::vector<AdamWTensors> list{{w, g, m, v, master, 0.01}};
  const Tensor sum = full({1}, 4, DType::f64);
  double bytes = total_bytes({w, g, m, v, m, v});
  bytes += t == acc ? total_bytes({w}) : total_bytes({master, master});
  return {[=]() mutable { kernels::adamw(list, sum, step); }, 0, bytes};
}

void add_all() {
  add_linear("q_proj", N, D, H * E);
  add_linear("k_proj", N, D, K * E);
  add_linear("gate_proj", N, D, F);
  add_linear("down_proj", N, F, D);
  add_linear("lm_head", 256, D, V);
  add_attention(2, 512);
  add_attention(1, 2048);
  add_case("attention/decode_1x4096", decode_attention_case);
  add_latent_attention("floats", 0);
  add_latent_attention("int8", 8);
  add_latent_attention("int4", 4);
  add_case("linear_cross_entropy/fwd_bwd", loss_case);
  add_case("linear_distill/fwd_bwd", distill_case);
  add_case("rms_norm/fwd", rms_norm_fwd_case);
  add_case("rms_norm/bwd", rms_norm_bwd_case);
  add_case("rope/6_heads", rope_case);
  add_case("swiglu/fwd", swiglu_fwd_case);
  add_case("swiglu/bwd", swiglu_bwd_case);
  add_case("adamw/embedding", adamw_case);
}

}  // namespace
}  // namespace llatte

int main(int argc, char** argv) {
  llatte::App app("bench-ops",
                  "How long single ops take at clm-60m's shapes. Options of Google Benchmark are taken too.",
                  "ops --device cpu --threads 2 --benchmark_filter=^attention");
  app.cli.allow_extras();
  return app.run(argc, argv, [&] {
    llatte::device = app.device;
    std::vector<std::string> words{argv[0]};
    for (const auto& w : app.cli.remaining()) words.push_back(w);
    std::vector<char*> args;
    for (auto& w : words) args.push_back(w.data());
    auto count = static_cast<int>(args.size());
    benchmark::Initialize(&count, args.data());
    if (count > 1) throw llatte::UsageError(std::string("there is no option ") + args[1]);
    llatte::add_all();
    benchmark::RunSpecifiedBenchmarks();
  });
}
