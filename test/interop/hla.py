"""Models with RoPE inside their latents (HLA) as llatte writes them, in transformers with trust_remote_code: logits,
greedy generation and the size of the cache, in every mode, with weights at random. Run by `make interop`.

hla.py APPS     APPS: folder of our programs
"""
import os
import sys
import tempfile

import common
import mla
import numpy as np

D, H, K, E, F, V = 16, 4, 2, 8, 24, 48
ALL, FIVE, TWO, HIGH = [0, 1, 2, 3], [0, 0, 1, 3, 3], [0, 2], [0, 0, 1]
BLOCKED = {"k_pairs": [0, 0, 1, 2, 3], "k_blocks": [0, 1, 1, 0, 1], "q_pairs": ALL, "q_blocks": [1, 0, 1, 0]}
# name -> rope, rope_pairs, head_block, layers; no two layers alike
MODELS = {
    "original": ("original", 4, 0, [{"rank_k": 7, "rank_v": 5}, {"rank_q": 6, "rank_k": 3, "rank_v": 9}]),
    "latent": ("latent", 4, 0, [{"k_pairs": ALL, "q_pairs": ALL, "rank_v": 5}, {"k_pairs": TWO, "rank_v": 7}]),
    "aligned": ("aligned", 4, 0, [{"k_pairs": FIVE, "rank_v": 5}, {"k_pairs": TWO, "q_pairs": FIVE, "rank_v": 8}]),
    "blocks": ("aligned", 4, 1, [{**BLOCKED, "rank_v": 5}, {"k_pairs": TWO, "rank_v": 8}]),
    "hybrid": ("hybrid", 2, 0, [{"k_pairs": HIGH, "q_pairs": ALL, "rank_k": 6, "rank_v": 5}, {"rank_k": 5, "rank_v": 8}]),
    "unified": ("unified", 0, 0, [{"k_pairs": FIVE, "rank_k": 9, "rank_v": 9}, {"rank_k": 12, "rank_v": 12}]),
    "latent_literal": ("latent_literal", 4, 0, [{"k_pairs": TWO, "q_pairs": FIVE, "rank_q": 10, "rank_k": 4, "rank_v": 5},
                                                {"k_pairs": FIVE, "q_pairs": TWO, "rank_q": 4, "rank_k": 10, "rank_v": 7}]),
}


def shapes(layer, rope, rope_pairs, head_block):
    """Of a layer's attention: name -> shape."""
    lifts = rope not in ("original", "latent_literal")
    P, Q, r = len(layer.get("k_pairs", [])), len(layer.get("q_pairs", [])), layer.get("rank_k", 0)
    s = {"o_proj.weight": (D, H * E), "W_up_v.weight": (K * E, layer["rank_v"])}
    if lifts and Q:
        rows = head_block * H // K or H
        s.update({"W_down_q.weight": (2 * Q, D), "A_q_re": (rows, Q), "A_q_im": (rows, Q)})
    elif "rank_q" in layer:
        s.update({"W_down_q.weight": (layer["rank_q"], D), "W_up_q.weight": (H * E, layer["rank_q"])})
    else:
        s["q_proj.weight"] = (H * E, D)
    if lifts and P:
        s.update({"W_k_r.weight": (2 * P, D), "A_k_re": (head_block or K, P), "A_k_im": (head_block or K, P)})
    if r:
        s.update({"W_down_k.weight": (r, D), "W_up_k.weight": (K * (E - 2 * rope_pairs if lifts else E), r)})
    if rope != "unified":
        s["W_down_v.weight"] = (layer["rank_v"], D)
    return s


# Where Qwen2's biases go.
BIASED = {"q_proj", "W_k_r", "W_up_k", "W_up_v", "W_up_q"}


def write(folder, rope, rope_pairs, head_block, layers, biases):
    rng = np.random.default_rng(1)
    all_shapes = {"model.embed_tokens.weight": (V, D), "model.norm.weight": (D,), "lm_head.weight": (V, D)}
    for n, layer in enumerate(layers):
        at = f"model.layers.{n}."
        for name, shape in shapes(layer, rope, rope_pairs, head_block).items():
            all_shapes[at + "self_attn." + name] = shape
            stem, _, last = name.partition(".")
            in_planes = stem == "W_down_q" and "A_q_re" in shapes(layer, rope, rope_pairs, head_block)
            if biases and last and (stem in BIASED or in_planes):
                all_shapes[at + f"self_attn.{stem}.bias"] = shape[:1]
        for name, shape in {"gate": (F, D), "up": (F, D), "down": (D, F)}.items():
            all_shapes[at + f"mlp.{name}_proj.weight"] = shape
        for norm in ("input", "post_attention"):
            all_shapes[at + norm + "_layernorm.weight"] = (D,)
    weights = {name: 0.3 * rng.standard_normal(shape, dtype=np.float32) for name, shape in all_shapes.items()}
    weights = {name: w + 1 if "norm" in name else w for name, w in weights.items()}
    config = {"architectures": ["Qwen2ForCausalLM" if biases else "LlamaForCausalLM"], "hidden_size": D,
              "model_type": "qwen2" if biases else "llama", "num_hidden_layers": len(layers), "num_attention_heads": H,
              "num_key_value_heads": K, "head_dim": E, "intermediate_size": F, "vocab_size": V, "rope_theta": 100.0,
              "max_position_embeddings": 160, "rms_norm_eps": 1e-5, "hidden_act": "silu",
              "HLA": {"rope": rope, "rope_pairs": rope_pairs, "head_block": head_block, "layers": layers}}
    mla.write_model(folder, config, weights)


def main():
    mla.torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as folder:
        for biases in (False, True):
            for name, what in MODELS.items():
                full = f"hla-{name}{'-biases' if biases else ''}"
                source = os.path.join(folder, "source-" + full)
                write(source, *what, biases)
                target = mla.check(full, source, folder)
                mla.check_padding(target)
        mla.check_bf16(os.path.join(folder, "hla-unified"), folder)
    sys.exit(common.failures > 0)


if __name__ == "__main__":
    main()
