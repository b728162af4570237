#include "train/start_model.h"
#include "convert/hla.h"
#include "models/partial_rope.h"

namespace llatte {

bool converts(const TrainConfig& c, const LlamaConfig& start) { return c.latent && !start.mla && !start.hla; }

LlamaConfig trained_config(const TrainConfig& c, const LlamaConfig& start) {
  if (!converts(c, start)) return start;
  LlamaConfig m = start;
  if (c.latent->gqa2mha) m.num_key_value_heads = m.num_attention_heads;
  m.mla = c.model.mla;
  if (c.latent->hla) {
    ConversionSettings alike = *c.latent;
    alike.hla->allocate = Allocation::layer;  // what is dealt out is the same in all
    m.hla = new_hla_config(start, alike);
  }
  m.check();
  return m;
}

std::unique_ptr<Llama> new_model(const TrainConfig& c) {
  LlamaConfig m = c.model;
  if (m.mla && chooses_by_score(m.mla->rope)) {
    LLATTE_CHECK(m.mla->rope.qk_tensor_path, c.file, ": RoPE.partial_rope_version ",
                 m.mla->rope.partial_rope_version,
                 " chooses pairs by their scores: RoPE.qk_tensor_path must name a file from calibrate");
    m.mla->scores = read_qk_scores(*m.mla->rope.qk_tensor_path, m);
  }
  if (m.mla) m.mla->kept = choose_pairs(m, m.mla->scores);
  auto model = std::make_unique<Llama>(m, c.dtype);
  model->init(c.seed, c.init_std);
  return model;
}

std::unique_ptr<Llama> start_model(const TrainConfig& c, const Checkpoint& start) {
  if (!converts(c, start.config)) return load_model(start, c.dtype);
  return load_model(convert_attention(start, make_plan(start, *c.latent), nullptr, c.device), c.dtype);
}

}  // namespace llatte
