#!/usr/bin/env python3
"""What converting SmolLM2-135M to latent attention costs in perplexity: our conversions beside MHA2MLA's own, before
any training and after a little.

    bench/mla_quality.py [PART...] [--apps build/apps] [--work build/mla_quality] [--model FILE.gguf]

PART: exact    the NLL of 160 tokens for eight of MHA2MLA's settings, beside the figures of an independent program
      tables   perplexities of MHA2MLA's own methods
      better   activation-aware conversions, calibrated on WikiText and on generic text
      cache    the best of them, scored through caches of each type
      heal     fine-tuning from several starts, beside the unconverted model (hours)
Without PART: all but heal. What was measured is kept in WORK/results.jsonl and not measured again.

Calibration: the first 64 windows of 512 tokens of WikiText-2's validation text; perplexity: the first 10 (x10) or 40
(x40) windows of 512 of its test text.
"""
import argparse
import json
import math
import os
import shutil
import subprocess
import sys

TEXT, VALID = "assets/wikitext-2/test.raw", "assets/wikitext-2/valid.tokens"
PARTS = ["exact", "tables", "better", "cache", "heal"]

# name: (cached values per token and layer, settings)


def two_norm(r):
    return ["RoPE.partial_rope_version=4", f"RoPE.top_k_rope_dim={r}", "RoPE.qk_tensor_path=@cal"]


def rope(kind, r):
    return {"2-norm": two_norm(r),
            "high": ["RoPE.partial_rope_version=1", f"RoPE.top_k_rope_dim={r}"],
            "low": ["RoPE.partial_rope_version=5", f"RoPE.last_k_rope_dim={r}"],
            "uniform": ["RoPE.partial_rope_version=2", f"RoPE.uniform_step={32 // r}"],
            "layer budget": ["RoPE.partial_rope_version=6", f"RoPE.top_k_rope_dim={r}", "RoPE.qk_tensor_path=@cal"],
            }[kind]


def svd(method, rank):
    return [f"SVD.method={method}", f"SVD.low_rank={rank}"]


# settings, NLL of an independent program
EXACT = [
    ("2-norm r=4, joint 32", two_norm(4) + svd(7, 32), 8.837062),
    ("2-norm r=4, joint 8", two_norm(4) + svd(7, 8), 10.835349),
    ("2-norm r=8, split 16", two_norm(8) + svd(2, 16), 10.793536),
    ("2-norm r=4, only_key 16", two_norm(4) + svd("only_key", 16), 5.450280),
    ("2-norm r=4, only_value 16", two_norm(4) + svd("only_value", 16), 10.485033),
    ("high r=4", rope("high", 4), 4.433196),
    ("low r=8", rope("low", 8), 5.385684),
    ("uniform r=4", rope("uniform", 4), 4.967864),
]
# settings, x10 of MHA2MLA (products of the MLP in bf16, so 1 % apart is equal)
PARTIAL = {"2-norm": {2: 435.79, 4: 361.32, 8: 165.16, 16: 41.55}, "high": {2: 350.07, 4: 252.04, 8: 119.03, 16: 35.60},
           "uniform": {2: 386.31, 4: 350.63, 8: 291.39, 16: 142.48}, "low": {2: 459.35, 4: 458.72, 8: 450.34, 16: 410.73},
           "layer budget": {4: 333.15}}
FACTORED = [("joint", 7, 4, {32: 7928, 16: 38981, 8: 67775}), ("split", 2, 4, {16: 35078, 8: 44791, 4: 52727}),
            ("joint", 7, 8, {32: 18343, 16: 58439, 8: 90425}),
            ("only_key", "only_key", 4, {32: 387.8, 16: 449.5, 8: 488.8}),
            ("only_value", "only_value", 4, {32: 32167, 16: 41778, 8: 42013})]
# name, settings, and what to be at or below
BETTER = [
    ("2-norm r=4, joint 32, plain (MHA2MLA)", two_norm(4) + svd(7, 32), None),
    ("2-norm r=4, joint 32, white", two_norm(4) + svd(7, 32) + ["SVD.metric=white"], 458),
    ("2-norm r=4, joint 32, white, W_o refit", two_norm(4) + svd(7, 32) + ["SVD.metric=white", "convert.refit_o=true"], 458),
    ("2-norm r=4, joint 32, output", two_norm(4) + svd(7, 32) + ["SVD.metric=output"], None),
    ("fisher r=8, joint 24", ["RoPE.partial_rope_version=4", "RoPE.top_k_rope_dim=8"] + svd(7, 24) + ["SVD.metric=fisher"],
     None),
    ("fisher r=8, joint 24, W_o refit", ["RoPE.partial_rope_version=4", "RoPE.top_k_rope_dim=8"] + svd(7, 24) +
     ["SVD.metric=fisher", "convert.refit_o=true"], 84.6),
]
BEST = BETTER[-1]


class Bench:
    def __init__(self, options):
        self.o = options
        self.log = os.path.join(options.work, "results.jsonl")
        os.makedirs(options.work, exist_ok=True)
        self.known = {}
        if os.path.exists(self.log):
            with open(self.log, encoding="utf-8") as f:
                self.known = {r["what"]: r["value"] for r in map(json.loads, f)}

    def app(self, name, *args):
        command = [os.path.join(self.o.apps, name), *args]
        print("$", " ".join(command), file=sys.stderr, flush=True)
        out = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
        return json.loads(out.strip().splitlines()[-1]) if "--json" in args else {}

    def once(self, what, measure):
        if what not in self.known:
            self.known[what] = measure()
            with open(self.log, "a", encoding="utf-8") as f:
                f.write(json.dumps({"what": what, "value": self.known[what]}) + "\n")
        return self.known[what]

    def calibration(self, text="wikitext"):
        file = os.path.join(self.o.work, f"calibration-{text}.safetensors")
        if not os.path.exists(file):
            source = VALID if text == "wikitext" else last_line(["scripts/get-generic-text", self.o.models])
            self.app("calibrate", self.o.model, "--text", source, "--samples", "64", "--seq", "512", "--covariance", "--out", file)
        return file

    def converted(self, name, settings, text="wikitext"):
        """The folder of a conversion, made if it isn't there. `calibration` goes with what needs it."""
        folder = os.path.join(self.o.work, "".join(ch if ch.isalnum() else "-" for ch in f"{name}-{text}"))
        if not os.path.exists(folder):
            settings = [s.replace("@cal", self.calibration(text)) for s in settings]
            if any(s.startswith(("SVD.metric=", "convert.refit_o=")) for s in settings):
                settings.append(f"convert.calibration={self.calibration(text)}")
            self.app("convert", self.o.model, folder, *settings, "--no-self-test", "--json")
        return folder

    def nll(self, name, settings, windows, window=512, text="wikitext", extra=()):
        def measure():
            folder = self.converted(name, settings, text) if settings else self.o.model
            r = self.app("eval", "ppl", folder, "--text", TEXT, "--window", str(window), "--max-windows", str(windows), *extra, "--json")
            if settings and name != BEST[0]:
                shutil.rmtree(folder)
            return r["nll"]
        key = f"{name} | {text} | {windows} x {window}" + "".join(" " + e for e in extra)
        return self.once(key, measure)

    def ppl(self, *args, **kw):
        return math.exp(self.nll(*args, **kw))

    # ---- the parts

    # Conversions test themselves wherever users make them; here the perplexity is the test.
    def exact(self):
        yield "| first 160 tokens | NLL | independent program | difference |", "|---|---|---|---|"
        for name, settings, want in EXACT:
            got = self.nll(name, settings, 1, 160)
            yield f"| {name} | {got:.6f} | {want:.6f} | {got - want:+.1e} |",

    def tables(self):
        yield "| partial RoPE alone, x10 | pairs kept | llatte | MHA2MLA | ratio |", "|---|---|---|---|---|"
        yield f"| unconverted | 32 | {self.ppl('unconverted', None, 10):.2f} | 33.60 | |",
        for kind, by_r in PARTIAL.items():
            for r, want in by_r.items():
                got = self.ppl(f"{kind} r={r}", rope(kind, r), 10)
                yield f"| {kind} | {r} | {got:.2f} | {want:.2f} | {got / want:.4f} |",
        yield "", "| 2-norm and SVD, x10 | pairs | low_rank | llatte | MHA2MLA | ratio |", "|---|---|---|---|---|---|"
        for word, method, r, by_rank in FACTORED:
            for rank, want in by_rank.items():
                got = self.ppl(f"2-norm r={r}, {word} {rank}", two_norm(r) + svd(method, rank), 10)
                yield f"| {word} | {r} | {rank} | {got:.1f} | {want:.1f} | {got / want:.4f} |",

    def better(self):
        yield "| 120 cached values of 384 | x10 | x40 | x10, calibrated on generic text |", "|---|---|---|---|"
        for name, settings, _ in BETTER:
            generic = self.ppl(name, settings, 10, text="generic")
            yield f"| {name} | {self.ppl(name, settings, 10):.1f} | {self.ppl(name, settings, 40):.1f} | {generic:.1f} |",

    def cache(self):
        yield "| cache | x10, unconverted | x10, " + BEST[0] + " |", "|---|---|---|"
        for t in ["f32", "bf16", "int8", "int4"]:
            extra = ("--cache", t)
            yield f"| {t} | {self.ppl('unconverted', None, 10, extra=extra):.3f} | {self.ppl(BEST[0], BEST[1], 10, extra=extra):.3f} |",

    def heal(self):
        steps = [20, 50, 100]
        yield "| start | loss | x40 before | " + " | ".join(f"{s} steps" for s in steps) + " |", "|---|---|---|---|---|---|"
        plain, best, unconverted = BETTER[0][:2], BEST[:2], ("unconverted", None)
        for (name, settings), loss in [(best, "ce"), (unconverted, "ce"), (plain, "ce"), (best, "kl"), (plain, "kl")]:
            row = [self.healed(name, settings, loss, n) for n in steps]
            yield f"| {name} | {loss} | {self.ppl(name, settings, 40):.2f} | " + " | ".join(f"{x:.2f}" for x in row) + " |",

    def healed(self, name, settings, loss, steps):
        """x40 after `steps` steps of 4 x 512 tokens; the run of fewer steps is continued."""
        def measure():
            start = self.converted(name, settings) if settings else self.o.model
            run = os.path.join(self.o.work, "heal", "".join(ch if ch.isalnum() else "-" for ch in f"{name}-{loss}"))
            distill = [f"distill.teacher={self.o.model}", "distill.weight=1"] if loss == "kl" else []
            self.app("train", "configs/heal.yaml", f"checkpoints.resume_checkpoint_path={start}", f"checkpoints.checkpoints_path={run}",
                     f"tokens.train_steps={steps}", *distill, "--resume", "auto")
            r = self.app("eval", "ppl", run, "--text", TEXT, "--window", "512", "--max-windows", "40", "--json")
            return r["nll"]
        return math.exp(self.once(f"heal | {name} | {loss} | {steps}", measure))


def last_line(command):
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.strip().splitlines()[-1]


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("parts", nargs="*", choices=PARTS + [[]], metavar="PART")
    p.add_argument("--apps", default="build/apps")
    p.add_argument("--work", default="build/mla_quality")
    p.add_argument("--models", default="build/models")
    p.add_argument("--model")
    o = p.parse_args()
    os.chdir(os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
    o.model = o.model or last_line(["scripts/get-smollm2", o.models])
    bench = Bench(o)
    for part in o.parts or PARTS[:-1]:
        for lines in getattr(bench, part)():
            print("\n".join(lines), flush=True)
        print()


if __name__ == "__main__":
    main()
