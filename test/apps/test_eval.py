"""llatte-eval on the tiny models: numbers against golden ones, JSON keys, exit codes, error sentences."""
import json, math, pathlib, shutil, struct, subprocess, sys, tempfile, unittest

import device

APPS = pathlib.Path(sys.argv.pop(1)).resolve()
FIX = pathlib.Path("test/fixtures")
TINY = FIX / "tiny-llama" / "tiny-llama"
LM_EVAL = FIX / "lm-eval"
TOKENIZER = LM_EVAL / "tokenizer"
WIKI = pathlib.Path("assets/wikitext-2/test.raw")


def run(*args):
    p = subprocess.run([APPS / "eval", *device.ARGS, *map(str, args)], capture_output=True, text=True, timeout=300)
    return p.returncode, p.stdout, p.stderr


def ok(*args):
    code, out, err = run(*args, "--json")
    assert code == 0, err
    return json.loads(out.splitlines()[-1])


FORMATS = {"F32": "f", "F64": "d", "I32": "i"}


def safetensors(path):
    """name -> (shape, flat list of numbers)"""
    b = pathlib.Path(path).read_bytes()
    n = struct.unpack("<Q", b[:8])[0]
    head = json.loads(b[8:8 + n])
    head.pop("__metadata__", None)
    return {k: (e["shape"], list(struct.unpack(f"<{math.prod(e['shape'])}{FORMATS[e['dtype']]}",
                                               b[8 + n:][slice(*e["data_offsets"])]))) for k, e in head.items()}


class Eval(unittest.TestCase):
    def setUp(self):
        self.tmp = tempfile.TemporaryDirectory()
        self.dir = pathlib.Path(self.tmp.name)
        self.golden = safetensors(TINY / "golden.safetensors")
        (self.B, self.T), ids = self.golden["tokens"]
        self.ds = self.dir / "tokens.ds"
        self.ds.write_bytes(struct.pack(f"<{len(ids)}H", *ids))

    def tearDown(self):
        self.tmp.cleanup()

    def close(self, got, want, tolerance):
        self.assertEqual(got[0], want[0])
        self.assertTrue(all(abs(a - b) <= tolerance for a, b in zip(got[1], want[1])))

    # Tolerances: see test_tiny_llama.cpp; f32 against f64, a factor of ten above the fixtures' own distance.
    def test_logits(self):
        out = self.dir / "logits.safetensors"
        got = ok("logits", TINY, "--data", self.ds, "--window", self.T, "--out", out)
        self.assertEqual(got["windows"], self.B)
        self.close(safetensors(out)["logits"], self.golden["logits_f64"], 1e-4)

    def test_grads(self):
        for dtype, tolerance in (("f32", 1e-4), ("f64", 1e-9)):
            out = self.dir / "grads.safetensors"
            got = ok("grads", TINY, "--data", self.ds, "--window", self.T, "--out", out, "--dtype", dtype)
            file = safetensors(out)
            loss = self.golden["loss_f64"][1][0]
            self.assertLessEqual(abs(got["loss"] - loss), tolerance)
            self.assertLessEqual(abs(file.pop("loss")[1][0] - loss), tolerance)
            wanted = {k[9:]: v for k, v in self.golden.items() if k.startswith("grad_f64.")}
            self.assertEqual(sorted(file), sorted(wanted))
            for name, want in wanted.items():
                self.close(file[name], want, tolerance * max(map(abs, want[1])))

    def test_ppl(self):
        got = ok("ppl", TINY, "--data", self.ds, "--window", self.T)
        self.assertLessEqual({"nll", "ppl", "tokens", "windows", "seconds", "tokens_per_s"}, set(got))
        self.assertLessEqual(abs(got["nll"] - self.golden["loss_f64"][1][0]), 1e-5)
        self.assertAlmostEqual(got["ppl"], math.exp(got["nll"]), delta=1e-9 * got["ppl"])
        self.assertEqual((got["tokens"], got["windows"], got["kind"]), (2 * (self.T - 1), 2, "non-overlapping"))
        self.assertEqual(len(got["window_nlls"]), 2)
        self.assertAlmostEqual(sum(got["window_nlls"]) / 2, got["nll"], delta=1e-12 * got["nll"])  # equal windows
        one = ok("ppl", TINY, "--data", self.ds, "--window", self.T, "--max-windows", 1)
        self.assertEqual(one["windows"], 1)
        sliding = ok("ppl", TINY, "--data", self.ds, "--window", 16, "--stride", 4)
        self.assertEqual((sliding["tokens"], sliding["kind"]), (2 * self.T - 1, "sliding"))

    def test_ppl_through_a_cache(self):
        mla = FIX / "tiny-mla" / "nanotron-era" / "hf_v4_m7"
        ids = self.dir / "small.ds"
        ids.write_bytes(struct.pack("<80H", *((i * i * 7 + 3 * i) % 48 for i in range(80))))
        for model, data in ((TINY, self.ds), (mla, ids)):
            plain, cached = (ok("ppl", model, "--data", data, "--window", 20, *c)["nll"] for c in ((), ("--cache", "f32")))
            self.assertLessEqual(abs(plain - cached), 1e-5)  # a mean of f32 losses, summed in another order
            for kind, least, most in (("bf16", 1e-7, 1e-2), ("int8", 1e-7, 1e-2), ("int4", 1e-6, 0.1)):
                got = ok("ppl", model, "--data", data, "--window", 20, "--cache", kind)
                self.assertEqual(got["cache"], kind)
                self.assertTrue(least < abs(got["nll"] - plain) < most, (kind, got["nll"], plain))

    @device.cpu_alone
    def test_ppl_of_text(self):
        text = self.dir / "a.txt"
        text.write_text("The lake is one of the oldest in the world. " * 20)
        got = ok("ppl", TINY, "--text", text, "--window", 32, "--tokenizer", TOKENIZER)
        self.assertGreater(got["tokens"], 100)
        self.assertTrue(math.isfinite(got["ppl"]))
        code, out, _ = run("ppl", TINY, "--text", text, "--window", 32, "--tokenizer", TOKENIZER)
        self.assertEqual(code, 0)
        self.assertIn("non-overlapping windows of 32", out)

    # Tolerances: see test_wikitext.cpp and test_choices.cpp; the numbers are lm_eval's.
    @device.cpu_alone
    def test_wikitext(self):
        args = ("wikitext", TINY, "--text", WIKI, "--tokenizer", TOKENIZER, "--window", 64)
        want = json.loads((LM_EVAL / "wikitext_result.json").read_text())["results"][0]
        got = ok(*args, "--max-pages", 5)
        for key in ("word_perplexity", "byte_perplexity", "bits_per_byte"):
            self.assertLessEqual(abs(got[key] - want[key]), 1e-5 * want[key], key)
        self.assertEqual((got["pages"], got["tokens"]), (5, sum(p["tokens"] for p in want["pages"])))
        # words and bytes alone tie the two perplexities together
        ratio = math.log(got["word_perplexity"]) / math.log(got["byte_perplexity"])
        self.assertAlmostEqual(ratio, got["bytes"] / got["words"], delta=1e-9)
        code, out, err = run(*args, "--max-pages", 1)
        self.assertEqual((code, err), (0, ""))
        self.assertIn("1 pages, 3218 tokens in windows of 64", out)

    @device.cpu_alone
    def test_wikitext_defaults(self):
        # MODEL has 256 positions: that is the window; a tokenizer beside it needs no option.
        model = self.dir / "model"
        shutil.copytree(TINY, model)
        page = self.dir / "page.raw"
        page.write_text(" = A = \n \n The lake is old . \n" * 40 + " = B = \n \n Milk . \n")
        shutil.copy(TOKENIZER / "tokenizer.json", model)
        bos = ok("wikitext", model, "--text", page)
        self.assertEqual((bos["window"], bos["pages"]), (256, 41))
        shutil.copy(TOKENIZER / "tokenizer_config.nobos.json", model / "tokenizer_config.json")
        eos = ok("wikitext", model, "--text", page)
        self.assertNotEqual(bos["word_perplexity"], eos["word_perplexity"])
        file = ok("wikitext", model, "--text", page, "--tokenizer", TOKENIZER / "tokenizer.json")
        self.assertEqual(bos["word_perplexity"], file["word_perplexity"])

    def test_choices(self):
        args = ("choices", TINY, "--items", LM_EVAL / "multiple_choice.jsonl", "--tokenizer", TOKENIZER)
        want = [json.loads(line) for line in (LM_EVAL / "multiple_choice.jsonl").read_text().splitlines()]
        got = ok(*args, "--window", 96)
        self.assertAlmostEqual(got["acc"], 0.3, delta=1e-12)
        self.assertAlmostEqual(got["acc_norm"], 0.4, delta=1e-12)
        self.assertEqual(len(got["items"]), len(want))
        for g, w in zip(got["items"], want):
            self.assertEqual(len(g["loglikelihoods"]), len(w["loglikelihoods"]))
            for a, b in zip(g["loglikelihoods"], w["loglikelihoods"]):
                self.assertLessEqual(abs(a - b), 1e-3)
        code, out, err = run(*args, "--window", 96)
        self.assertEqual((code, out, err), (0, "acc 0.3  acc_norm 0.4  (30 items)\n", ""))

    @device.cpu_alone
    def test_lm_eval_failures(self):
        tok = ("--tokenizer", TOKENIZER)
        items = self.dir / "items.jsonl"
        items.write_text('{"context": "a", "choices": ["b"], "label": 0}\n{"context": "a"}\n')
        self.fails(1, "items.jsonl:2: `choices` is missing", "choices", TINY, "--items", items, *tok)
        items.write_text("")
        self.fails(1, "items.jsonl holds no items", "choices", TINY, "--items", items, *tok)
        items.write_text(" \n")
        self.fails(1, "items.jsonl has no pages", "wikitext", TINY, "--text", items, *tok)
        self.fails(1, "none.raw", "wikitext", TINY, "--text", self.dir / "none.raw", *tok)
        self.fails(1, "exceeds max_position_embeddings 256", "wikitext", TINY, "--text", WIKI,
                   "--max-pages", 1, "--window", 300, *tok)
        self.fails(1, "outside the model's vocabulary of 384", "wikitext", TINY, "--text", WIKI,
                   "--max-pages", 1, "--tokenizer", "assets/tokenizer")
        self.fails(2, "--items", "choices", TINY)
        self.fails(2, "--window", "wikitext", TINY, "--text", WIKI, "--window", 0)

    def fails(self, code, sentence, *args):
        got, out, err = run(*args)
        self.assertEqual(got, code, err)
        self.assertIn(sentence, err)
        self.assertTrue(err.startswith("llatte-eval: "), err)
        self.assertEqual(err.count("\n"), 1, err)
        self.assertEqual(out, "")

    @device.cpu_alone
    def test_failures(self):
        ds, out = self.ds, self.dir / "x.safetensors"
        self.fails(1, "no-such-folder does not exist", "ppl", "no-such-folder", "--data", ds)
        self.fails(1, "config.json", "ppl", self.dir, "--data", ds)
        self.fails(1, "has no tokenizer; name one with --tokenizer", "ppl", TINY, "--text", ds)
        self.fails(1, "none.ds", "ppl", TINY, "--data", self.dir / "none.ds")
        self.fails(1, "48 tokens do not fill one window of 2048", "ppl", TINY, "--data", ds)
        self.fails(1, "stride 16 must be in [1,16)", "ppl", TINY, "--data", ds, "--window", 16, "--stride", 16)
        self.fails(1, "less than one window of 100", "logits", TINY, "--data", ds, "--window", 100, "--out", out)
        ds.write_bytes(struct.pack("<600H", *range(600)))
        self.fails(1, "384", "ppl", TINY, "--data", ds, "--window", 24)
        ds.write_bytes(struct.pack("<600H", *[1] * 600))
        self.fails(1, "exceeds max_position_embeddings 256", "ppl", TINY, "--data", ds, "--window", 300)
        self.assertFalse(out.exists())

    @device.cpu_alone
    def test_usage(self):
        self.fails(2, "", "ppl", TINY)
        self.fails(2, "", "ppl", TINY, "--data", self.ds, "--text", self.ds)
        self.fails(2, "--window", "ppl", TINY, "--data", self.ds, "--window", 1)
        self.fails(2, "", "nonsense")
        code, out, _ = run("--help")
        self.assertEqual(code, 0)
        self.assertIn("Example:", out)


if __name__ == "__main__":
    unittest.main()
