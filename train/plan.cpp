#include "train/plan.h"
#include <algorithm>
#include <iomanip>
#include <set>
#include <sstream>

namespace llatte {
namespace {

int64_t trained_parameters(const TrainConfig& c, const LlamaConfig& m) {
  int64_t n = 0;
  for (const auto& [name, shape] : param_shapes(m))
    if (is_trained(c, name)) n += numel_of(shape);
  return n;
}

// What one block's closures hold per token, in elements: x and its norm twice (4 D), the rotated q and the
// attention output (2 H E), the rotated k, and v (2 K E), gate, up and their product (3 F); with latent
// attention also the latents and the two parts of k.
int64_t block_elements(const LlamaConfig& m, int64_t layer) {
  const int64_t plain = 4 * m.hidden_size + 2 * (m.num_attention_heads + m.num_key_value_heads) * m.head_dim +
                        3 * m.intermediate_size;
  if (m.hla) return plain + cache_values(m, layer) + m.num_key_value_heads * m.head_dim;
  if (!is_latent(m)) return plain;
  const LatentWidths w = latent_widths(m);
  return plain + w.kept + w.lost + w.rank_k + (w.shared ? 0 : w.rank_v);
}

int64_t all_block_elements(const LlamaConfig& m) {
  int64_t sum = 0;
  for (int64_t l = 0; l < m.num_hidden_layers; ++l) sum += block_elements(m, l);
  return sum;
}

std::string mib(int64_t bytes) { return str((bytes + (1 << 19)) >> 20, " MiB"); }

std::string schedule_lines(const Schedule& s) {
  const int64_t start = s.decay_starting_step.value_or(s.warmup_steps);
  const int64_t end = s.decay_steps ? start + *s.decay_steps : std::max(start, s.total_steps);
  std::ostringstream os;
  os << "schedule: " << (s.warmup_style.empty() ? "no" : s.warmup_style) << " warm-up over " << s.warmup_steps
     << " steps, " << s.decay_style << " decay from step " << start << " to " << end << ", floor "
     << s.min_decay_lr << '\n';
  for (const int64_t t : std::set<int64_t>{0, s.warmup_steps, start, (start + end) / 2, s.total_steps - 1})
    if (t < s.total_steps) os << "  lr of step " << std::left << std::setw(8) << t + 1 << s.at(t) << '\n';
  return os.str();
}

std::string attention_line(const LlamaConfig& m) {
  const std::string cached = str(mean_cache_values(m), " cached values per token and layer instead of ",
                                 2 * m.num_key_value_heads * m.head_dim, '\n');
  if (m.hla) return str("attention: RoPE inside the latents, ", name(m.hla->rope), ", ", cached);
  if (!m.mla) return "";
  return str("attention: RoPE on ", kept_pairs(m), " of ", m.head_dim / 2, " pairs a head, SVD method ",
             static_cast<int>(m.mla->svd.method), ", ", cached);
}

}  // namespace

TrainPlan make_plan(const TrainConfig& c, const LlamaConfig& m, const LlamaConfig* teacher) {
  TrainPlan p;
  const auto width = static_cast<int64_t>(size_of(c.dtype));
  const int64_t rows = c.micro_batch * c.sequence_length, L = m.num_hidden_layers;
  p.parameters = param_count(m);
  p.trained_parameters = trained_parameters(c, m);
  p.tokens_per_step = c.tokens_per_step();
  p.total_tokens = p.tokens_per_step * c.train_steps;
  p.weight_bytes = p.parameters * width;
  p.gradient_bytes = p.trained_parameters * 4;
  p.optimizer_bytes = p.trained_parameters * (c.dtype == DType::bf16 ? 12 : 8);
  if (c.adamw.zero_stage == 1) p.optimizer_bytes /= c.ranks;
  const int64_t kept = c.recompute_layer ? L * m.hidden_size + block_elements(m, 0) : all_block_elements(m);
  p.activation_bytes = rows * (kept + 2 * m.hidden_size) * width;
  if (teacher) p.teacher_bytes = param_count(*teacher) * width;
  return p;
}

std::string describe_plan(const TrainConfig& c, const LlamaConfig& m, const LlamaConfig* teacher) {
  const TrainPlan p = make_plan(c, m, teacher);
  std::ostringstream os;
  os << "run:      " << c.checkpoints.folder.string() << ", " << c.train_steps << " steps, " << name(c.dtype)
     << '\n'
     << "model:    " << p.parameters << " parameters, " << p.trained_parameters << " of them trained (D "
     << m.hidden_size << ", L " << m.num_hidden_layers << ", H " << m.num_attention_heads << ", K "
     << m.num_key_value_heads << ", E " << m.head_dim << ", F " << m.intermediate_size << ", V "
     << m.vocab_size << ")\n"
     << attention_line(m) << "tokens:   " << p.tokens_per_step << " per step (" << c.micro_batch
     << " sequences of " << c.sequence_length << ", accumulated " << c.accumulation << " times"
     << (c.ranks > 1 ? str(", on ", c.ranks, " ranks") : "") << "), " << p.total_tokens << " in all\n"
     << (c.ranks > 1 ? "memory:   a rank takes about " : "memory:   about ") << mib(p.total_bytes())
     << ": weights " << mib(p.weight_bytes) << ", gradients " << mib(p.gradient_bytes) << ", optimizer "
     << mib(p.optimizer_bytes) << ", activations " << mib(p.activation_bytes)
     << (c.recompute_layer ? " (recomputed layer by layer)" : "");
  if (teacher) os << ", teacher " << mib(p.teacher_bytes);
  os << '\n' << schedule_lines(c.schedule);
  return os.str();
}

}  // namespace llatte
