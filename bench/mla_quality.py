#!/usr/bin/env python3
"""What converting SmolLM2-135M to latent attention costs in perplexity: our conversions beside MHA2MLA's own, before
any training and after a little.

    bench/mla_quality.py [PART...] [--apps build/apps] [--work build/mla_quality] [--model FILE.gguf]

PART: exact    the NLL of 160 tokens for eight of MHA2MLA's settings, beside the figures of an independent program
      tables   perplexities of MHA2MLA's own methods
      better   activation-aware conversions, calibrated on WikiText and on generic text
      cache    the best of them, scored through caches of each type
      heal     fine-tuning from several starts, beside the unconverted model (hours)
Without PART: all but heal. bench/quality.py says what is measured on which text, and keeps it in WORK/results.jsonl.
"""
import quality
from quality import UNCONVERTED

PARTS = ["exact", "tables", "better", "cache", "heal"]


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
CALIBRATED = ["convert.calibration=@cal"]
# name, settings, and what to be at or below
BETTER = [
    ("2-norm r=4, joint 32, plain (MHA2MLA)", two_norm(4) + svd(7, 32), None),
    ("2-norm r=4, joint 32, white", two_norm(4) + svd(7, 32) + ["SVD.metric=white"] + CALIBRATED, 458),
    ("2-norm r=4, joint 32, white, W_o refit", two_norm(4) + svd(7, 32) + ["SVD.metric=white", "convert.refit_o=true"] +
     CALIBRATED, 458),
    ("2-norm r=4, joint 32, output", two_norm(4) + svd(7, 32) + ["SVD.metric=output"] + CALIBRATED, None),
    ("fisher r=8, joint 24", ["RoPE.partial_rope_version=4", "RoPE.top_k_rope_dim=8"] + svd(7, 24) + ["SVD.metric=fisher"] +
     CALIBRATED, None),
    ("fisher r=8, joint 24, W_o refit", ["RoPE.partial_rope_version=4", "RoPE.top_k_rope_dim=8"] + svd(7, 24) +
     ["SVD.metric=fisher", "convert.refit_o=true"] + CALIBRATED, 84.6),
]
BEST = BETTER[-1]


class MlaBench(quality.Bench):
    kept = (BEST[0],)

    # ---- the parts

    # Conversions test themselves wherever users make them; here the perplexity is the test.
    def exact(self):
        yield "| first 160 tokens | NLL | independent program | difference |", "|---|---|---|---|"
        for name, settings, want in EXACT:
            got = self.nll(name, settings, 1, 160)
            yield f"| {name} | {got:.6f} | {want:.6f} | {got - want:+.1e} |",

    def tables(self):
        yield "| partial RoPE alone, x10 | pairs kept | llatte | MHA2MLA | ratio |", "|---|---|---|---|---|"
        yield f"| unconverted | 32 | {self.ppl(*UNCONVERTED, 10):.2f} | 33.60 | |",
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
            generic, (x10, x40) = self.ppl(name, settings, 10, text="generic"), self.ppls(name, settings, [10, 40])
            yield f"| {name} | {x10:.1f} | {x40:.1f} | {generic:.1f} |",

    def cache(self):
        yield "| cache | x10, unconverted | x10, " + BEST[0] + " |", "|---|---|---|"
        for t in ["f32", "bf16", "int8", "int4"]:
            extra = ("--cache", t)
            yield f"| {t} | {self.ppl(*UNCONVERTED, 10, extra=extra):.3f} | {self.ppl(BEST[0], BEST[1], 10, extra=extra):.3f} |",

    def heal(self):
        steps = [20, 50, 100]
        yield "| start | loss | x40 before | " + " | ".join(f"{s} steps" for s in steps) + " |", "|---|---|---|---|---|---|"
        plain, best = BETTER[0][:2], BEST[:2]
        for (name, settings), loss in [(best, "ce"), (UNCONVERTED, "ce"), (plain, "ce"), (best, "kl"), (plain, "kl")]:
            row = [self.healed(name, settings, loss, n) for n in steps]
            yield f"| {name} | {loss} | {self.ppl(name, settings, 40):.2f} | " + " | ".join(f"{x:.2f}" for x in row) + " |",


quality.main(MlaBench, __doc__, PARTS, PARTS[:-1], "build/mla_quality")
