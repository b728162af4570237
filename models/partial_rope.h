// Partial RoPE, the first of MHA2MLA's two steps (arXiv 2502.14837, section 3.1): which pairs of dimensions
// keep their rotation. The others are left unrotated in q and in k. Pair j of a head is dims (j, j + E/2).
//   L layers  K kv heads  E head width  F = E/2 pairs
#pragma once
#include <filesystem>
#include "models/llama.h"

namespace llatte {

// True for the versions that choose by score: 4 (the best of each head) and 6 (the best of a whole layer).
bool chooses_by_score(const PartialRope& rope);

// The pairs that c.mla->rope keeps in every layer and kv head. scores f32 or f64 [L,K,F], higher is kept
// first, equal ones by their index; undefined unless the version chooses by score.
KeptPairs choose_pairs(const LlamaConfig& c, const Tensor& scores_LKF = {});

// Fills c.mla->kept, and c.mla->scores where the version needs them: from RoPE.qk_tensor_path, seen from
// `folder`, or from qk_tensor.safetensors in it. Where neither is there, the pairs stay as config.json gave
// them, or unknown. Pairs that config.json gave must be those.
void resolve_pairs(LlamaConfig& c, const std::filesystem::path& folder);
// Models that transformers runs with the modeling_llatte.py beside them: their attention is their own, and
// its parts are known.
inline bool needs_modeling_llatte(const LlamaConfig& c) { return c.hla || (c.mla && !c.mla->kept.empty()); }
// Throws, saying which file is missing, if the model needs pairs that are not known.
void require_pairs(const LlamaConfig& c, const std::string& where);

// `scores` of a file from `calibrate` (or MHA2MLA's qk_tensor), f32 [L,K,F]; made for another model: an
// Error.
Tensor read_qk_scores(const std::filesystem::path& file, const LlamaConfig& c);
// The file that lies beside config.json: c.mla->scores and their descending `rank`, u8 [L,K,F]. Where only
// the pairs are known, scores that lead to them: 1 for those kept, 0 for the others.
constexpr const char* kQkTensorFile = "qk_tensor.safetensors";
void write_qk_scores(const std::filesystem::path& file, const LlamaConfig& c);

}  // namespace llatte
