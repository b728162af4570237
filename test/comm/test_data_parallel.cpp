// Training on several ranks is training on one: run alone, and by ctest under mpirun with 2, 3 and 4 ranks,
// on the CPU and on the GPU. Every rank also trains a model of its own on the samples of all of them, which
// is what the ranks' common model is held against.
#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>
#include "models/llama.h"
#include "optim/adamw.h"
#include "test/near.h"
#include "test/on_device.h"
#include "train/ranks.h"

using namespace llatte;
using namespace llatte::test;

namespace {

std::unique_ptr<Comm> comm;

constexpr int64_t kTokens = 7, kMicroBatches = 2, kSteps = 20;

LlamaConfig shape() {
  LlamaConfig c;
  c.vocab_size = 31, c.hidden_size = 16, c.intermediate_size = 24, c.num_hidden_layers = 2;
  c.num_attention_heads = 4, c.num_key_value_heads = 2, c.head_dim = 4, c.max_position_embeddings = 16;
  c.tie_word_embeddings = true;  // a parameter that is used twice
  return c;
}

// Sample n of the run: a sequence and what follows it.
struct Sample {
  Tensor tokens, targets;
};
Sample sample(int64_t n) {
  std::mt19937 rng(static_cast<unsigned>(n + 1));
  std::vector<int32_t> tokens, targets;
  for (int64_t t = 0; t < kTokens; ++t) tokens.push_back(static_cast<int32_t>(rng() % 31));
  for (int64_t t = 0; t < kTokens; ++t) targets.push_back((tokens[static_cast<size_t>(t)] * 7 + 3) % 31);
  return {Tensor::from(tokens, {1, kTokens}), Tensor::from(targets, {1, kTokens})};
}

// One step over micro-batches i of ranks [first, last); the mean loss over all of them is summed up here in
// part.
double step(Llama& model, AdamW& optimizer, int64_t at, int first, int last) {
  const int64_t ranks = comm->size();
  const double share = 1.0 / static_cast<double>(kMicroBatches * ranks);
  double loss = 0;
  for (int64_t i = 0; i < kMicroBatches; ++i)
    for (int r = first; r < last; ++r) {
      const Sample s = sample((at * kMicroBatches + i) * ranks + r);
      const Var l = model.loss(s.tokens, s.targets);
      if (i == kMicroBatches - 1 && r == last - 1) optimizer.expect_last_backward();
      backward(l, full(l.shape(), share, l.value.dtype()));
      loss += l.value.item() * share;
    }
  optimizer.step(0.01);
  return loss;
}

struct Run {
  Llama model;
  std::unique_ptr<AdamW> optimizer;
  std::vector<double> losses;

  Run(DType t, int zero_stage, Comm* ranks, bool recompute = false) : model(shape(), t) {
    model.init(3, 0.1);
    model.to(test_device());
    model.set_recompute(recompute);
    AdamWConfig c;
    c.clip_grad = 0.5, c.zero_stage = zero_stage,
    c.bucket_bytes = 2000;  // several buckets, and larger parameters
    optimizer = std::make_unique<AdamW>(model, c, nullptr, ranks);
    const int me = comm->rank();
    for (int64_t at = 0; at < kSteps; ++at) {
      double loss =
          ranks ? step(model, *optimizer, at, me, me + 1) : step(model, *optimizer, at, 0, comm->size());
      if (ranks) {
        Tensor sum = Tensor::full({1}, loss, DType::f64);
        comm->all_reduce_sum(sum);
        loss = sum.item();
      }
      losses.push_back(loss);
    }
  }

  std::map<std::string, Vec> weights() {
    std::map<std::string, Vec> w;
    model.params("", [&](const std::string& name, Var& p) { w[name] = to_vec(p.value); });
    return w;
  }
  std::map<std::string, Vec> state() const {
    std::map<std::string, Vec> out;
    for (const OptimizerTensor& t : optimizer->state()) out[t.name] = to_vec(t.get());
    return out;
  }
};

void check_same_everywhere(Run& run) {
  run.model.params("", [&](const std::string& name, Var& p) {
    INFO(name);
    Tensor first = p.value.clone();
    comm->broadcast(first, 0);
    CHECK(to_vec(p.value) == to_vec(first));
  });
}

void check_all_near(const std::map<std::string, Vec>& got, const std::map<std::string, Vec>& want,
                    double tolerance) {
  REQUIRE(got.size() == want.size());
  for (const auto& [name, v] : want) check_near(name, got.at(name), v, tolerance);
}

}  // namespace

// Sums of the same f32 gradients in another order: 2^-24 of each, 20 steps of AdamW, which divides by their
// size.
TEST_CASE("losses and weights are those of one rank with the same samples") {
  Run alone(DType::f32, 0, nullptr);
  CHECK(alone.losses.back() < alone.losses.front());
  for (const int zero_stage : {0, 1}) {
    Run ranks(DType::f32, zero_stage, comm.get());
    check_near(str("losses, zero_stage ", zero_stage), ranks.losses, alone.losses, 1e-5);
    check_all_near(ranks.weights(), alone.weights(), 1e-3);
    check_same_everywhere(ranks);
  }
}

// Bit for bit where sums have one order: on the CPU that of the ranks, and of two there is no other.
TEST_CASE("zero_stage 1 is zero_stage 0 with its state shared out") {
  for (const DType t : {DType::f32, DType::bf16}) {
    Run all(t, 0, comm.get()), parts(t, 1, comm.get());
    check_near("losses", parts.losses, all.losses, 1e-6);
    check_same_everywhere(parts);
    if (comm->size() <= 2 || test_device() == Device::cpu) {
      CHECK(parts.weights() == all.weights());
      CHECK(parts.state() == all.state());
    }
    // Buckets are padded to equal parts, of at most size() - 1 elements each.
    const int64_t even = all.optimizer->state_bytes() / comm->size();
    CHECK(parts.optimizer->state_bytes() >= even * 95 / 100);
    CHECK(parts.optimizer->state_bytes() <= even * 105 / 100);
  }
}

TEST_CASE("recomputed blocks send their gradients too") {
  Run plain(DType::f32, 1, comm.get()), recomputed(DType::f32, 1, comm.get(), true);
  CHECK(recomputed.weights() == plain.weights());
}

TEST_CASE("weights that are not the same everywhere are found, and whose they are") {
  Run run(DType::bf16, 1, comm.get());
  check_same_weights(run.model, *comm);
  if (comm->size() == 1) return;
  run.model.params("", [&](const std::string& name, Var& p) {
    if (name != "model.norm.weight" || comm->rank() != comm->size() - 1) return;
    Tensor changed = p.value.to(Device::cpu).clone();
    static_cast<char*>(changed.raw())[0] ^= 1;  // the last bit of the first gain
    p.value.copy_from(changed);
  });
  check_rejects([&] { check_same_weights(run.model, *comm); },
                str("the weights of rank ", comm->size() - 1, " are no longer those of rank 0"));
  share_weights(run.model, *comm);
  check_same_weights(run.model, *comm);
}

TEST_CASE("state that was saved on any number of ranks continues on any") {
  for (const int zero_stage : {0, 1}) {
    Run first(DType::bf16, zero_stage, comm.get());
    std::map<std::string, Tensor> saved;
    for (const OptimizerTensor& t : first.optimizer->state()) saved[t.name] = t.get().clone();
    Run second(DType::bf16, 1 - zero_stage, comm.get());
    second.model.params("", [&](const std::string&, Var& p) { p.value.zero(); });
    second.optimizer->load_state(kSteps,
                                 [&](const std::string& name, const Shape&) { return saved.at(name); });
    CHECK(second.state() == first.state());
    CHECK(second.weights() == first.weights());  // from the masters
  }
}

int main(int argc, char** argv) {
  doctest::Context context(argc, argv);
  comm = make_comm();
  take_gpu(comm->local_rank());
  const int failed = context.run();
  comm.reset();
  return failed;
}
