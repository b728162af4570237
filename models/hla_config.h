// HLA in config.json: {"rope": "aligned", "rope_pairs": n, "head_block": 0, "layers": [{"k_pairs": [..],
// "k_blocks": [..], "q_pairs": [..], "q_blocks": [..], "rank_q": n, "rank_k": n, "rank_v": n}, ..]}. Blocks
// that are all 0, planes of q that are not there and ranks of 0 are left out.
#pragma once
#include "models/json_fields.h"
#include "models/llama.h"

namespace llatte {

HlaConfig read_hla(const Fields& f, int64_t head_dim);
nlohmann::ordered_json hla_json(const HlaConfig& c);

}  // namespace llatte
