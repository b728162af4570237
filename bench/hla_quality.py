#!/usr/bin/env python3
"""What converting SmolLM2-135M to latent attention with RoPE in the latents (HLA) costs in perplexity, before any
training and after a little, beside a prototype's figures.

    bench/hla_quality.py [PART...] [--apps build/apps] [--work build/hla_quality] [--model FILE.gguf]

PART: modes    each mode and metric at a half, a quarter and an eighth of the cache
      any      `convert --best any` at four sizes of the cache, calibrated on WikiText and on generic text
      equal    MLA and the modes of HLA at the same number of cached values, as converted and healed (hours)
      heal     fine-tuning for longer, beside the unconverted model (hours)
Without PART: modes and any. bench/quality.py says what is measured on which text, and keeps it in WORK/results.jsonl.
Healing (configs/heal.yaml) is at 3e-4 and leaves the embedding as it is, as the prototype did. That computed most products in bf16: 1 % apart
is equal.
"""
import quality
from quality import UNCONVERTED

PARTS = ["modes", "any", "equal", "heal"]
ALL = 384  # values that the unconverted model caches of a token in a layer
SIZES = HALF, QUARTER, EIGHTH = 192, 96, 48


def hla(rope, metric, values, allocate="layer", factor_q=False, more=()):
    words = [f"HLA.rope={rope}", f"HLA.metric={metric}", f"HLA.cache={values / ALL:g}", f"HLA.allocate={allocate}",
             f"HLA.factor_q={str(factor_q).lower()}", *more]
    return words + ([] if metric == "plain" else ["HLA.calibration=@cal"])


def joint(rope, values, **kw):
    return hla(rope, "fisher", values, "joint", **kw)


def best(kind, values):
    return ["--best", kind, "--cache-values", str(values), "--calibration", "@cal"]


# name, cached values, words, the prototype's x8 and x40
MODES = [
    ("HLA original, plain", HALF, hla("original", "plain", HALF), 35010, None),
    ("HLA original, white", HALF, hla("original", "white", HALF), None, None),
    ("HLA original, output", HALF, hla("original", "output", HALF), 41.9, None),
    ("HLA original, output", QUARTER, hla("original", "output", QUARTER), 83.6, None),
    ("HLA original, fisher", HALF, hla("original", "fisher", HALF), 39.3, 36.25),
    ("HLA original, fisher joint", HALF, joint("original", HALF), 35.8, 33.56),
    ("HLA original, fisher joint", QUARTER, joint("original", QUARTER), 58.2, None),
    ("HLA original, fisher joint", EIGHTH, joint("original", EIGHTH), 127.7, None),
    ("HLA aligned, plain", HALF, hla("aligned", "plain", HALF), None, 64068),
    ("HLA aligned, white", HALF, hla("aligned", "white", HALF), None, None),
    ("HLA aligned, output", HALF, hla("aligned", "output", HALF), None, 55.79),
    ("HLA aligned, output", QUARTER, hla("aligned", "output", QUARTER), 1316, None),
    ("HLA aligned, omega", HALF, hla("aligned", "omega", HALF), 57.8, None),
    ("HLA aligned, fisher", HALF, hla("aligned", "fisher", HALF), 54.4, 49.12),
    ("HLA aligned, fisher", QUARTER, hla("aligned", "fisher", QUARTER), 838, None),
    ("HLA aligned, fisher", EIGHTH, hla("aligned", "fisher", EIGHTH), 9101, None),
    ("HLA aligned, fisher joint", HALF, joint("aligned", HALF), 55.8, 49.35),
    ("HLA aligned, fisher joint", QUARTER, joint("aligned", QUARTER), 244, None),
    ("HLA aligned, fisher joint", EIGHTH, joint("aligned", EIGHTH), None, None),
    ("HLA hybrid 20, fisher", HALF, hla("hybrid", "fisher", HALF, more=["HLA.rope_pairs=20"]), 47.9, None),
    ("HLA hybrid 16, fisher joint", HALF, joint("hybrid", HALF, more=["HLA.rope_pairs=16"]), 46.7, None),
    ("HLA hybrid 20, fisher joint", HALF, joint("hybrid", HALF, more=["HLA.rope_pairs=20"]), 46.4, 42.01),
    ("HLA hybrid 20, fisher joint", QUARTER, joint("hybrid", QUARTER, more=["HLA.rope_pairs=20"]), None, None),
    ("HLA hybrid 20, fisher joint", EIGHTH, joint("hybrid", EIGHTH, more=["HLA.rope_pairs=20"]), None, None),
    ("HLA latent even, q too", HALF, hla("latent", "plain", HALF, factor_q=True, more=["HLA.frequencies=even"]), 32328, None),
    ("HLA latent first, q too", HALF, hla("latent", "plain", HALF, factor_q=True, more=["HLA.frequencies=first"]), 39077, None),
    ("HLA latent_literal, q too", HALF, hla("latent_literal", "plain", HALF, factor_q=True), 117293, None),
    ("HLA original, fisher joint, q too", HALF, joint("original", HALF, factor_q=True), 35.9, None),
    ("HLA aligned, fisher, q too", HALF, hla("aligned", "fisher", HALF, factor_q=True), 58.6, None),
    ("HLA aligned, fisher joint, q too", HALF, joint("aligned", HALF, factor_q=True), 62.1, None),
]
# cached values: the prototype's x10 and x40
ANY = {192: (39.4, 32.4), 120: (50.9, 41.2), 72: (91.8, 71.2), 48: (154.6, 155.8)}
# name, words for so many cached values
EQUAL = [
    ("MLA, `--best mla`", lambda values: best("mla", values)),
    ("HLA, `--best any`", lambda values: best("any", values)),
    ("HLA original, fisher joint", lambda values: joint("original", values)),
    ("HLA aligned, fisher joint", lambda values: joint("aligned", values)),
    ("HLA hybrid 20, fisher joint", lambda values: joint("hybrid", values, more=["HLA.rope_pairs=20"])),
    ("HLA latent even, q too", lambda values: hla("latent", "plain", values, factor_q=True, more=["HLA.frequencies=even"])),
]
# name, words, numbers of steps, the prototype's x40 before and after 40 steps
HEAL = [
    (*UNCONVERTED, [40, 100], 28.71, 18.73),
    *((f"HLA, `--best any` {values}", best("any", values), [40, 100], None, None) for values in ANY),
    ("HLA original, fisher joint 192", joint("original", HALF), [40], 33.56, 20.10),
    ("HLA original, fisher joint 192, not balanced", joint("original", HALF, more=["convert.balance=false"]), [40], 33.56, 32.29),
    ("HLA aligned, fisher joint 192", joint("aligned", HALF), [40], 49.35, 23.64),
    ("HLA aligned, fisher joint 192, not balanced", joint("aligned", HALF, more=["convert.balance=false"]), [40], 49.35, 31.45),
]


def figure(x):
    return "" if x is None else f"{x:,.0f}" if x >= 1000 else f"{x:.1f}" if x >= 100 else f"{x:.2f}"


def row(*cells):
    return "| " + " | ".join(figure(c) if c is None or isinstance(c, float) else str(c) for c in cells) + " |"


def head(*cells):
    return row(*cells), "|" + "---|" * len(cells)


class HlaBench(quality.Bench):
    kept = {f"{name} {n}" for name, _ in EQUAL for n in SIZES}  # `equal` heals what `modes` has measured

    def modes(self):
        yield head("mode and metric", "cached values of 384", "x8", "prototype", "x40", "prototype, x40")
        x8, x40 = self.ppls(*UNCONVERTED, [8, 40])
        yield row(UNCONVERTED[0], ALL, x8, 30.40, x40, 28.71)
        for name, values, words, want8, want40 in MODES:
            x8, *x40 = self.ppls(f"{name} {values}", words, [8, 40] if want40 else [8])
            yield row(name, values, x8, want8 and float(want8), x40[0] if x40 else None, want40 and float(want40))

    def any(self):
        yield head("`--best any`, cached values", "x10", "prototype", "x40", "prototype, x40", "x10, generic calibration",
                   "x40, generic calibration")
        for values, (want10, want40) in ANY.items():
            name, words = f"HLA, `--best any` {values}", best("any", values)
            x10, x40 = self.ppls(name, words, [10, 40])
            yield row(values, x10, want10, x40, want40, *self.ppls(name, words, [10, 40], text="generic"))

    def equal(self):
        yield head("x40, as converted and after 40 steps", *(cell for n in SIZES for cell in (f"{n} values", "healed")))
        yield row(UNCONVERTED[0], self.ppl(*UNCONVERTED, 40), self.healed(*UNCONVERTED, "ce", 40), *[None] * 4)
        for name, words in EQUAL:
            cells = []
            for n in SIZES:
                sized = f"{name} {n}", words(n)
                cells += [self.ppl(*sized, 40), self.healed(*sized, "ce", 40)]
            yield row(name, *cells)

    def heal(self):
        yield head("start", "x40 before", "prototype", "40 steps", "prototype", "100 steps")
        for name, words, steps, want, want40 in HEAL:
            before = self.ppl(name, words, 40, keep=True)
            after = [self.healed(name, words, "ce", n) for n in steps]
            yield row(name, before, want, after[0], want40 and float(want40), after[1] if len(after) > 1 else None)


quality.main(HlaBench, __doc__, PARTS, PARTS[:2], "build/hla_quality")
