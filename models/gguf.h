// GGUF files as llama.cpp has them <-> Checkpoint. Architectures: llama, whose q and k rows are permuted in
// the file (RoPE there turns neighbours, here halves), qwen2 and qwen3, whose rows are not. Others are
// refused by name. A file without output.weight is a tied model.
#pragma once
#include <filesystem>
#include "data/gguf_quants.h"
#include "models/checkpoint.h"

namespace llatte {

Checkpoint open_gguf(const std::filesystem::path& file);

// One of F32, F16, BF16, Q8_0 for the matrices; vectors are always F32. Q8_0 becomes F16 for a matrix whose
// rows are no whole number of blocks of 32. Weights pass one at a time.
void save_gguf(const std::filesystem::path& file, const Checkpoint& checkpoint, GgufType type);

}  // namespace llatte
