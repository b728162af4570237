"""llatte-eval on the tiny models: numbers against golden ones, JSON keys, exit codes, error sentences."""
import json, math, pathlib, struct, subprocess, sys, tempfile, unittest

APPS = pathlib.Path(sys.argv.pop(1)).resolve()
FIX = pathlib.Path("test/fixtures")
TINY = FIX / "tiny-llama" / "tiny-llama"
TOKENIZER = FIX / "lm-eval" / "tokenizer"


def run(*args):
    p = subprocess.run([APPS / "eval", *map(str, args)], capture_output=True, text=True, timeout=300)
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
        one = ok("ppl", TINY, "--data", self.ds, "--window", self.T, "--max-windows", 1)
        self.assertEqual(one["windows"], 1)
        sliding = ok("ppl", TINY, "--data", self.ds, "--window", 16, "--stride", 4)
        self.assertEqual((sliding["tokens"], sliding["kind"]), (2 * self.T - 1, "sliding"))

    def test_ppl_of_text(self):
        text = self.dir / "a.txt"
        text.write_text("The lake is one of the oldest in the world. " * 20)
        got = ok("ppl", TINY, "--text", text, "--window", 32, "--tokenizer", TOKENIZER)
        self.assertGreater(got["tokens"], 100)
        self.assertTrue(math.isfinite(got["ppl"]))
        code, out, _ = run("ppl", TINY, "--text", text, "--window", 32, "--tokenizer", TOKENIZER)
        self.assertEqual(code, 0)
        self.assertIn("non-overlapping windows of 32", out)

    def fails(self, code, sentence, *args):
        got, out, err = run(*args)
        self.assertEqual(got, code, err)
        self.assertIn(sentence, err)
        self.assertTrue(err.startswith("llatte-eval: "), err)
        self.assertEqual(err.count("\n"), 1, err)
        self.assertEqual(out, "")

    def test_failures(self):
        ds, out = self.ds, self.dir / "x.safetensors"
        self.fails(1, "no-such-folder is not a folder", "ppl", "no-such-folder", "--data", ds)
        self.fails(1, "config.json", "ppl", self.dir, "--data", ds)
        self.fails(1, "tokenizer.json does not exist; name one with --tokenizer", "ppl", TINY, "--text", ds)
        self.fails(1, "none.ds", "ppl", TINY, "--data", self.dir / "none.ds")
        self.fails(1, "48 tokens do not fill one window of 2048", "ppl", TINY, "--data", ds)
        self.fails(1, "stride 16 must be in [1,16)", "ppl", TINY, "--data", ds, "--window", 16, "--stride", 16)
        self.fails(1, "less than one window of 100", "logits", TINY, "--data", ds, "--window", 100, "--out", out)
        ds.write_bytes(struct.pack("<600H", *range(600)))
        self.fails(1, "384", "ppl", TINY, "--data", ds, "--window", 24)
        ds.write_bytes(struct.pack("<600H", *[1] * 600))
        self.fails(1, "exceeds max_position_embeddings 256", "ppl", TINY, "--data", ds, "--window", 300)
        self.assertFalse(out.exists())

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
