// nanotron's checkpoints, in and out: a folder with latest.txt and STEP/, in which
//   model_config.json, config.yaml, checkpoint_metadata.json
//   model/model/<module>/model_weight[_pp-rank-P-of-PP_tp-rank-T-of-TP].safetensors, see
//   data/sharded_tensor.h
// Modules: token_position_embeddings/pp_block/token_embedding, decoder/<i>/pp_block/{input_layernorm,
// attn/qkv_proj, attn/o_proj, post_attention_layernorm, mlp/gate_up_proj, mlp/down_proj},
// final_layer_norm/pp_block, lm_head/pp_block. qkv_proj is the rows [q; k; v], gate_up_proj [gate; up]; with
// latent attention attn/ has q_proj, W_k_r, W_down_k, W_down_v, W_up_k, W_up_v instead of qkv_proj.
#pragma once
#include <filesystem>
#include "models/checkpoint.h"

namespace llatte {

// Whether `folder`, or the step its latest.txt names, has a model_config.json.
bool is_nanotron(const std::filesystem::path& folder);

// `folder` has latest.txt, or is the step's folder itself. Any numbers of tp and pp ranks. The tokenizer is
// read where tokenizer.json lies in the step's folder, or in one that config.yaml names and that exists.
Checkpoint open_nanotron(const std::filesystem::path& folder);

// Writes folder/<step>, as one rank would have, and latest.txt; the step appears by one rename and must not
// exist. f32 or bf16. A converted model has trained no step. Refuses what nanotron's Llama has no place for:
// biases, q and k norms, head_dim other than hidden_size / num_attention_heads.
void save_nanotron(const std::filesystem::path& folder, const Checkpoint& checkpoint, DType dtype,
                   int64_t step = 0);

}  // namespace llatte
