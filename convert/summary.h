// What a conversion read and wrote, as a table: one line for all weights of a kind (the same name in every
// layer), and a line of totals.
#pragma once
#include <string>
#include "models/checkpoint.h"

namespace llatte {

std::string weight_table(const Checkpoint& source, const Checkpoint& result);
// Keys and values (or latents) cached for one token, all layers, in the model's dtype.
int64_t cache_bytes_per_token(const Checkpoint& checkpoint);

}  // namespace llatte
