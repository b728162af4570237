// MLA in DeepSeek-V3's format (dense layers), for programs that know that architecture and not ours. Written,
// not read. What is exact, and how, with dr = qk_rope_head_dim and n = kv_lora_rank:
//   - there k has one rotated part for all heads; ours has one for each kv head. The shared part holds the
//   pairs of
//     all kv heads, and a query has zeros where it meets another head's.
//   - there the latent passes an RMSNorm, ours does not. s more coordinates of the latent are constants a_i
//   2^20 (a bias
//     on a zero row) with sum a_i^2 = n: the rms is 2^20, to 1e-7 while latents stay below 2^8, and the
//     norm's weight is 2^20. Every n is a sum of four squares (Lagrange), most of fewer.
//   - the softmax scale is (qk_nope_head_dim + dr)^-0.5 there: q_proj takes the difference, the one rounding
//   there is.
//   - frequencies are theta^(-2i/dr) there. Pairs on a grid that no two kv heads share need nothing else;
//   others are
//     said by rope_scaling type longrope, a factor for each pair, which transformers honours.
// Refused: biases and norms of q and k (Qwen2, Qwen3), which q_proj has no place for.
#pragma once
#include <filesystem>
#include "models/checkpoint.h"

namespace llatte {

// Writes config.json, model.safetensors and the tokenizer into an existing folder; f32 or bf16.
void save_deepseek(const std::filesystem::path& folder, const Checkpoint& checkpoint, DType dtype);

}  // namespace llatte
