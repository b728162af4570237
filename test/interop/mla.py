"""MLA models as llatte writes them, in transformers with trust_remote_code: logits, greedy generation and the size of
the cache, for every version of partial RoPE and method of SVD among the fixtures. Run by `make interop`.

mla.py APPS MODEL.gguf     APPS: folder of our programs; MODEL: SmolLM2-135M
"""
import json
import os
import sys
import tempfile

import common
import numpy as np
import torch
from common import our_logits, report, run
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM

FIXTURES = os.path.abspath("test/fixtures/tiny-mla")
NANOTRON_ERA = [f"v{v}_m{m}" for v in range(1, 7) for m in (0, 2, 7)] + ["v4_m1", "v4_m3", "v4_m4", "v4_m5", "v4_m6"]
GREEDY = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}  # eos is an id like any other: no early end
CURRENT = ["2-norm_only_key", "2-norm_only_value", "2-norm_none", "uniform_split"]


def read_json(*path):
    with open(os.path.join(*path)) as f:
        return json.load(f)


def write_model(folder, config, weights):
    os.makedirs(folder)
    save_file(weights, os.path.join(folder, "model.safetensors"), {"format": "pt"})
    with open(os.path.join(folder, "config.json"), "w") as f:
        json.dump(config, f)


def base_with(stored):
    """The base model's weights, k and v replaced by what a fixture stores."""
    weights = load_file(os.path.join(FIXTURES, "base", "model.safetensors"))
    new = {name: t for name, t in stored.items() if name.startswith("model.")}
    if new:
        weights = {n: t for n, t in weights.items() if "k_proj" not in n and "v_proj" not in n}
    return {**weights, **new}


def nanotron_era(name, folder):
    about = read_json(FIXTURES, "nanotron-era", name + ".json")
    config = {**read_json(FIXTURES, "base", "config.json"), "RoPE": about["RoPE"], "SVD": about["SVD"]}
    if config["RoPE"]["qk_tensor_path"]:
        config["RoPE"]["qk_tensor_path"] = os.path.join(FIXTURES, "scores", "qk_tensor.safetensors")
    write_model(folder, config, base_with(load_file(os.path.join(FIXTURES, "nanotron-era", name + ".safetensors"))))


def current(name, folder):
    about = read_json(FIXTURES, "current", name + ".json")
    config = {**read_json(FIXTURES, "base", "config.json"), "mha2mla": about["mha2mla"]}
    if config["mha2mla"]["qk_tensor_path"]:
        config["mha2mla"]["qk_tensor_path"] = os.path.join(FIXTURES, "scores", "qk_tensor.safetensors")
    weights = base_with(load_file(os.path.join(FIXTURES, "current", name + ".safetensors")))
    order = about["q_proj_row_order"]
    for layer in range(2):
        q = f"model.layers.{layer}.self_attn.q_proj.weight"
        weights[q] = np.ascontiguousarray(weights[q][order[min(layer, len(order) - 1)]])
    write_model(folder, config, weights)


def load(model, dtype=torch.float32):
    return AutoModelForCausalLM.from_pretrained(model, dtype=dtype, trust_remote_code=True).eval()


def check(name, source, folder, settings=(), bound=1e-5):
    """`bound`: of the largest logit. 1e-5 for f32 sums in another order through two layers."""
    target = os.path.join(folder, name)
    said = json.loads(run("convert", source, target, *settings, "--json").splitlines()[-1])
    net, vocab = load(target), read_json(target, "config.json")["vocab_size"]
    assert type(net).__name__.startswith("Llatte"), type(net)
    ids = torch.tensor([[i * 7919 % vocab for i in range(6)]])
    with torch.no_grad():
        text = net.generate(ids, **GREEDY, max_new_tokens=24, attention_mask=torch.ones_like(ids))[0]
        out = net(text[None], use_cache=True)
    theirs, ours = out.logits[0].double().numpy(), our_logits(target, text.tolist(), folder)
    report(f"transformers runs {name}", np.abs(ours - theirs).max() / np.abs(theirs).max(), bound)
    wrong = (ours[5:-1].argmax(axis=1) != text[6:].numpy()).sum()
    report(f"  greedy tokens of {name} that are not ours, of 24", float(wrong), 0)
    layers = (getattr(out, "cache", None) or out.past_key_values).layers  # its name since transformers 5.24, and before
    values = sum(layer.keys.shape[1] * layer.keys.shape[3] + layer.values.shape[1] * layer.values.shape[3]
                 for layer in layers)
    report(f"  bytes a token in the cache of {name}, beyond ours", 4.0 * values - said["cache_bytes_per_token_after"], 0)
    return target


def check_bf16(target, folder):
    """bf16 keeps 8 bits, 2^-9 of rounding in each of some ten products a layer: a few parts in 100 of the largest."""
    net, vocab = load(target, torch.bfloat16), read_json(target, "config.json")["vocab_size"]
    ids = [i * 7919 % vocab for i in range(12)]
    with torch.no_grad():
        theirs = net(torch.tensor([ids])).logits[0].double().numpy()
    ours = our_logits(target, ids, folder)
    report("transformers in bf16", np.abs(ours - theirs).max() / np.abs(ours).max(), 4e-2)


def check_padding(target):
    """A batch of prompts of two lengths, padded on the left, goes on as each of them alone."""
    net = load(target)
    short, long = [5, 9, 17], [3, 30, 7, 21, 40, 2]
    batch = torch.tensor([[0] * 3 + short, long])
    mask = torch.tensor([[0] * 3 + [1] * 3, [1] * 6])
    both = net.generate(batch, attention_mask=mask, **GREEDY, max_new_tokens=8)[:, 6:]
    alone = [net.generate(torch.tensor([ids]), **GREEDY, max_new_tokens=8)[0, len(ids):] for ids in (short, long)]
    wrong = sum(int((a != b).sum()) for a, b in zip(both, alone))
    report("tokens that differ when padded prompts are generated together", float(wrong), 0)


def check_deepseek(name, source, folder):
    """transformers' own DeepseekV3ForCausalLM, no code of ours. Its RMSNorm on the latent, and frequencies by way of a
    factor for each pair, add roundings of 1e-7 here and there: the bound is that of any f32 sum in another order."""
    target = os.path.join(folder, "deepseek-" + name)
    run("convert", source, target, "--to", "deepseek")
    net, vocab = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32).eval(), 48
    assert type(net).__name__ == "DeepseekV3ForCausalLM", type(net)
    ids = [i * 7919 % vocab for i in range(30)]
    with torch.no_grad():
        theirs = net(torch.tensor([ids])).logits[0].double().numpy()
    ours = our_logits(source, ids, folder)
    report(f"transformers runs {name} as DeepSeek-V3", np.abs(ours - theirs).max() / np.abs(theirs).max(), 1e-5)


def main():
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as folder:
        for make, names in ((nanotron_era, NANOTRON_ERA), (current, CURRENT)):
            for name in names:
                source = os.path.join(folder, "source-" + name)
                make(name, source)
                check(name, source, folder)
                check_deepseek(name, source, folder)
        check_bf16(os.path.join(folder, "v4_m7"), folder)
        check_padding(os.path.join(folder, "v4_m7"))
        for name in ("hf_qwen2_high_split", "hf_qwen2_high_joint"):
            check(name, os.path.join(FIXTURES, "current", name), folder)
        # Thirty layers, and a model that plain factors have made sensitive: transformers' own sdpa and eager attention are
        # 1.8e-5 apart on it.
        check("smollm2_v1_m7", sys.argv[2], folder, ["RoPE.partial_rope_version=1", "RoPE.top_k_rope_dim=8", "SVD.method=joint",
                                                     "SVD.low_rank=32"], 5e-5)
    sys.exit(common.failures > 0)


if __name__ == "__main__":
    main()
