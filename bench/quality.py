"""What bench/mla_quality.py and bench/hla_quality.py share: converting, healing and measuring a model, each figure kept
in WORK/results.jsonl and not measured again.

Calibration: the first 64 windows of 512 tokens of WikiText-2's validation text (`wikitext`) or of a text that is not
Wikipedia (`generic`). Perplexity: the first windows of 512 of its test text, x10 the first ten of them.
"""
import argparse
import json
import math
import os
import shutil
import subprocess
import sys

TEXT, VALID = "assets/wikitext-2/test.raw", "assets/wikitext-2/valid.tokens"
UNCONVERTED = ("unconverted", None)  # a name and the words for `convert`; None: the model as it is


class Bench:
    kept = ()  # names of conversions whose folders are used again

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

    def converted(self, name, words, text="wikitext"):
        """The folder of a conversion, made if it isn't there. @cal stands for the calibration file."""
        folder = os.path.join(self.o.work, folder_name(f"{name}-{text}"))
        if not os.path.exists(folder):
            words = [w.replace("@cal", self.calibration(text)) if "@cal" in w else w for w in words]
            self.app("convert", self.o.model, folder, *words, "--no-self-test", "--json")
        return folder

    def nll(self, name, words, windows, window=512, text="wikitext", extra=(), keep=False):
        def measure():
            folder = self.converted(name, words, text) if words else self.o.model
            r = self.app("eval", "ppl", folder, "--text", TEXT, "--window", str(window), "--max-windows", str(windows), *extra, "--json")
            if words and not keep and name not in self.kept:
                shutil.rmtree(folder)
            return r["nll"]
        key = f"{name} | {text} | {windows} x {window}" + "".join(" " + e for e in extra)
        return self.once(key, measure)

    def ppl(self, *args, **kw):
        return math.exp(self.nll(*args, **kw))

    def ppls(self, name, words, counts, **kw):
        """Over several numbers of windows, from one conversion."""
        return [self.ppl(name, words, n, keep=n != counts[-1], **kw) for n in counts]

    def healed(self, name, words, loss, steps):
        """x40 after `steps` steps of 4 x 512 tokens; the run of fewer steps is continued."""
        def measure():
            start = self.converted(name, words) if words else self.o.model
            run = os.path.join(self.o.work, "heal", folder_name(f"{name}-{loss}"))
            distill = [f"distill.teacher={self.o.model}", "distill.weight=1"] if loss == "kl" else []
            self.app("train", "configs/heal.yaml", f"checkpoints.resume_checkpoint_path={start}", f"checkpoints.checkpoints_path={run}",
                     f"tokens.train_steps={steps}", *distill, "--resume", "auto")
            r = self.app("eval", "ppl", run, "--text", TEXT, "--window", "512", "--max-windows", "40", "--json")
            return r["nll"]
        return math.exp(self.once(f"heal | {name} | {loss} | {steps}", measure))


def folder_name(text):
    return "".join(ch if ch.isalnum() else "-" for ch in text)


def last_line(command):
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.strip().splitlines()[-1]


def main(bench, doc, parts, usual, work):
    """Runs the parts named on the command line, `usual` without any: methods of `bench` that yield a table's lines."""
    p = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("parts", nargs="*", choices=parts + [[]], metavar="PART")
    p.add_argument("--apps", default="build/apps")
    p.add_argument("--work", default=work)
    p.add_argument("--models", default="build/models")
    p.add_argument("--model")
    o = p.parse_args()
    os.chdir(os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
    o.model = o.model or last_line(["scripts/get-smollm2", o.models])
    bench = bench(o)
    for part in o.parts or usual:
        for lines in getattr(bench, part)():
            print("\n".join(lines) if isinstance(lines, tuple) else lines, flush=True)
        print()
