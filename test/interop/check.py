"""Our exported files in other people's programs: transformers loads the Hugging Face folders and gives our logits,
llama.cpp loads the GGUF files and gives our perplexity. Run by `make interop`, which makes the Python environment.

check.py APPS MODEL.gguf     APPS: folder of our programs; MODEL: SmolLM2-135M
"""
import json
import math
import os
import sys
import tempfile

import common
import numpy as np
import torch
from common import our_logits, report, run
from transformers import AutoModelForCausalLM, AutoTokenizer

MODEL = sys.argv[2]
TEXT = "assets/wikitext-2/test.raw"


def our_ids(tokenizer, text, folder):
    cases = os.path.join(folder, "cases.jsonl")
    with open(cases, "w", encoding="utf-8") as f:
        f.writelines(json.dumps({"text": line}) + "\n" for line in text)
    return [json.loads(row) for row in run("tokenize", "--tokenizer", tokenizer, "--cases", cases).splitlines()]


def their_logits(model, ids):
    net = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    with torch.no_grad():
        return net(torch.tensor([ids])).logits[0].double().numpy()


def check_transformers(name, source, folder):
    """As a share of the largest logit: f32 sums in another order."""
    target = os.path.join(folder, name)
    run("convert", source, target)
    with open(os.path.join(target, "config.json")) as f:
        vocab = json.load(f)["vocab_size"]
    ids = [i * 7919 % vocab for i in range(64)]
    if os.path.exists(os.path.join(target, "tokenizer.json")):  # a real model is at home in text
        with open(TEXT, encoding="utf-8") as f:
            ids = our_ids(target, [f.read(2000)], folder)[0][:64]
    ours, theirs = our_logits(target, ids, folder), their_logits(target, ids)
    report(f"transformers reads {name}", np.abs(ours - theirs).max() / np.abs(theirs).max(), 1e-5)
    return target


def check_tokenizer(target, folder):
    tokenizer = AutoTokenizer.from_pretrained(target)
    with open(TEXT, encoding="utf-8") as f:
        lines = [line for line in f.read(200_000).splitlines() if line.strip()]
    ours = our_ids(target, lines, folder)
    theirs = [tokenizer.encode(line, add_special_tokens=False) for line in lines]
    report(f"transformers' tokenizer, lines that differ of {len(lines)}",
           float(sum(a != b for a, b in zip(ours, theirs, strict=True))), 0)
    turn = [{"role": "user", "content": "Hello"}]
    said = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    report("transformers' chat template is there", 0.0 if "<|im_start|>user\nHello<|im_end|>" in said else 1.0, 0)


def check_llamacpp(name, source, folder, windows=4, window=512):
    """Mean negative log-likelihood of the first windows. f32 sums in another order: 1e-4 is far above them and far
    below what a wrong layout does."""
    try:
        import llama_cpp
    except ImportError:
        return print("     llama.cpp: left out, no llama-cpp-python here")
    target = os.path.join(folder, name + ".gguf")
    run("convert", source, target, "--dtype", name)
    net = llama_cpp.Llama(target, n_ctx=window, logits_all=True, verbose=False, n_threads=2,
                          type_k=llama_cpp.GGML_TYPE_F32, type_v=llama_cpp.GGML_TYPE_F32)
    with open(TEXT, "rb") as f:
        ids = net.tokenize(f.read(windows * window * 8), add_bos=False, special=False)
    total = 0.0
    for w in range(windows):
        part = ids[w * window:(w + 1) * window]
        net.reset()
        net.eval(part)
        logits = np.array(net.scores[:window - 1], dtype=np.float64)
        logits -= logits.max(axis=1, keepdims=True)
        log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        total -= log_p[np.arange(window - 1), part[1:]].sum()
    theirs = total / (windows * (window - 1))
    text = os.path.join(folder, "text")
    with open(text, "wb") as f, open(TEXT, "rb") as g:
        f.write(g.read(windows * window * 8))
    ours = json.loads(run("eval", "ppl", target, "--text", text, "--window", window, "--max-windows", windows,
                          "--json").splitlines()[-1])["nll"]
    print(f"     perplexity of the first {windows} windows of {window}: {math.exp(ours):.6f}, "
          f"llama.cpp {math.exp(theirs):.6f}")
    report(f"llama.cpp reads {name}.gguf", abs(ours - theirs) / theirs, 1e-4)


def main():
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as folder:
        for variant in ("tiny-llama", "tied", "qwen2", "qwen3", "llama3-rope", "e-not-d-over-h"):
            source = os.path.join("test/fixtures/tiny-llama", variant)
            check_transformers(variant, source, folder)
        hf = check_transformers("smollm2", MODEL, folder)
        check_tokenizer(hf, folder)
        nano = os.path.join(folder, "nano")
        run("convert", hf, nano, "--to", "nanotron")
        check_transformers("smollm2-by-nanotron", nano, folder)
        check_llamacpp("f32", hf, folder)
    sys.exit(common.failures > 0)


main()
