"""From calibration to a model with RoPE inside its latents, on the command line: every mode, the report, plans, and
what is refused. Called with the folder of the programs."""
import json
import math
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import unittest

import device

APPS = sys.argv.pop(1)
BASE = "test/fixtures/tiny-mla/base"


def run(app, *args, code=0):
    p = subprocess.run([os.path.join(APPS, app), *device.ARGS, *map(str, args)], capture_output=True, text=True)
    assert p.returncode == code, (p.returncode, p.stdout, p.stderr)
    return p


def convert(*args, code=0):
    return run("convert", *args, code=code)


def report(*args):
    return json.loads(convert(*args, "--json").stdout.splitlines()[-1])


class ConvertHla(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.shared = tempfile.mkdtemp()
        cls.tokens = os.path.join(cls.shared, "tokens.ds")
        ids = [(i * i + 5 * i) % 48 for i in range(8 * 24)]
        with open(cls.tokens, "wb") as f:
            f.write(struct.pack(f"<{len(ids)}H", *ids))
        cls.calibration = os.path.join(cls.shared, "calibration.safetensors")
        run("calibrate", BASE, "--data", cls.tokens, "--seq", 24, "--covariance", "--out", cls.calibration)

    @classmethod
    def tearDownClass(cls):
        shutil.rmtree(cls.shared)

    def setUp(self):
        self.dir = tempfile.mkdtemp()

    def tearDown(self):
        shutil.rmtree(self.dir)

    def at(self, name):
        return os.path.join(self.dir, name)

    def perplexity(self, folder):
        p = run("eval", "ppl", folder, "--data", self.tokens, "--window", 24, "--json")
        return json.loads(p.stdout.splitlines()[-1])["ppl"]

    def test_every_mode(self):
        whole = self.perplexity(BASE)
        for mode, more in (("original", ["HLA.allocate=joint"]), ("aligned", ["HLA.allocate=global"]),
                           ("hybrid", ["HLA.rope_pairs=5", "HLA.allocate=joint"])):
            r = report(BASE, self.at(mode), "HLA.rope=" + mode, "HLA.metric=fisher", *more,
                       "HLA.calibration=" + self.calibration)
            cached = [layer["cache_values_per_token_after"] for layer in r["layers"]]
            self.assertLessEqual(sum(cached), 32 * 2)
            self.assertGreaterEqual(sum(cached), 32 * 2 - 2)
            self.assertLess(r["self_test_max_error"], 1e-3)
            for layer in r["layers"]:
                self.assertGreater(layer["error_of"], layer["error"])
                self.assertEqual(layer["metric"], "fisher")
            ppl = self.perplexity(self.at(mode))
            self.assertTrue(math.isfinite(ppl))
            self.assertNotEqual(ppl, whole)
        for mode in ("latent", "latent_literal"):
            r = report(BASE, self.at(mode), "HLA.rope=" + mode)
            self.assertEqual([layer["rank_v"] for layer in r["layers"]], [16, 16])
            self.assertTrue(math.isfinite(self.perplexity(self.at(mode))))

    @device.cpu_alone
    def test_says_what_it_did_and_follows_a_plan(self):
        out = convert(BASE, self.at("a"), "HLA.rope=aligned", "HLA.rank_k=16", "--save-plan", self.at("plan")).stdout
        for words in ("plan: metric plain, 32 cached values", "mode aligned", "0-4 6:2 7\n",
                      "layer 1: factoring lost", "cached values per token and layer: 64 before, 32 after",
                      "self-test: original at full rank is the source", "self-test: aligned at full rank is the source",
                      "self-test: the files are the conversion"):
            self.assertIn(words, out)
        convert(BASE, self.at("b"), "--plan", self.at("plan"))
        with open(self.at("a/model.safetensors"), "rb") as a, open(self.at("b/model.safetensors"), "rb") as b:
            self.assertEqual(a.read(), b.read())
        with open(self.at("a/config.json")) as f:
            hla = json.load(f)["HLA"]
        self.assertEqual((hla["rope"], hla["layers"][0]["k_pairs"]), ("aligned", [0, 1, 2, 3, 4, 6, 6, 7]))

    def test_best(self):
        said = {}
        for which in ("mla", "hla", "any"):
            p = convert(BASE, self.at(which), "--best", which, "--cache-values", 18, "--calibration", self.calibration,
                        "--save-plan", self.at("plan-" + which))
            said[which] = next(line for line in p.stdout.splitlines() if line.startswith("best: "))
            self.assertIn("self-test: the files are the conversion", p.stdout)
        rise = {which: float(re.search(r"rise by (\S+)", line)[1]) for which, line in said.items()}
        self.assertEqual(rise["any"], min(rise["mla"], rise["hla"]))
        with open(self.at("hla/config.json")) as f:
            hla = json.load(f)["HLA"]
        self.assertEqual(hla["rope"], "unified")
        cached = [2 * len(layer["k_pairs"]) + layer["rank_k"] for layer in hla["layers"]]
        self.assertTrue(all(n >= 9 for n in cached))
        self.assertIn(sum(cached), (35, 36))
        convert(BASE, self.at("again"), "--plan", self.at("plan-hla"))
        self.assertEqual(self.perplexity(self.at("again")), self.perplexity(self.at("hla")))
        # Sums in f32 taken in another order: 1e-7 each, through two layers and the logits.
        through_cache = run("eval", "ppl", self.at("hla"), "--data", self.tokens, "--window", 24, "--cache", "f32",
                            "--json").stdout
        self.assertAlmostEqual(json.loads(through_cache)["ppl"] / self.perplexity(self.at("hla")), 1, delta=1e-4)

    @device.cpu_alone
    def test_refused(self):
        for words, said in ((["HLA.rope=aligned", "RoPE.partial_rope_version=1"], "keep one of the two"),
                            (["HLA.rope=aligned", "HLA.metric=fisher"], "needs convert.calibration"),
                            (["HLA.rops=aligned"], "did you mean HLA.rope?"),
                            (["HLA.cache=half"], "HLA.cache is 'half', expected a share"),
                            (["HLA.rope=latent", "HLA.rank_k=10"], "use a multiple of 4")):
            p = convert(BASE, self.at("x"), *words, code=1)
            self.assertIn(said, p.stderr)
            self.assertEqual(p.stderr.count("\n"), 1, p.stderr)
        self.assertIn("latent attention", convert(BASE, self.at("x.gguf"), "HLA.rope=aligned", code=1).stderr)
        convert(BASE, self.at("done"), "HLA.rope=original")
        self.assertIn("has been converted before",
                      convert(self.at("done"), self.at("x"), "HLA.rope=aligned", code=1).stderr)
        self.assertEqual(os.listdir(self.dir), ["done"])


if __name__ == "__main__":
    unittest.main(verbosity=1)
