"""llatte-calibrate on the tiny model: the file it writes, interruption and going on, exit codes, sentences."""
import json, math, pathlib, signal, struct, subprocess, sys, tempfile, unittest

import device

APPS = pathlib.Path(sys.argv.pop(1)).resolve()
FIX = pathlib.Path("test/fixtures")
BASE = FIX / "tiny-mla" / "base"
FORMATS = {"F32": "f", "F64": "d", "I32": "i", "U8": "B"}


def run(*args):
    p = subprocess.run([APPS / "calibrate", *device.ARGS, *map(str, args)], capture_output=True, text=True, timeout=300)
    return p.returncode, p.stdout, p.stderr


def safetensors(path):
    """name -> (dtype, shape, flat list of numbers)"""
    b = pathlib.Path(path).read_bytes()
    n = struct.unpack("<Q", b[:8])[0]
    head = json.loads(b[8:8 + n])
    head.pop("__metadata__", None)
    return {k: (e["dtype"], e["shape"],
                list(struct.unpack(f"<{math.prod(e['shape'])}{FORMATS[e['dtype']]}",
                                   b[8 + n:][slice(*e["data_offsets"])]))) for k, e in head.items()}


class Calibrate(unittest.TestCase):
    def setUp(self):
        self.tmp = tempfile.TemporaryDirectory()
        self.dir = pathlib.Path(self.tmp.name)
        self.golden = safetensors(FIX / "tiny-mla" / "scores" / "golden.safetensors")
        self.ids = self.golden["calibration_tokens"][2]
        self.ds = self.dir / "tokens.ds"
        self.ds.write_bytes(struct.pack(f"<{len(self.ids)}H", *self.ids))
        self.out = self.dir / "calibration.safetensors"

    def tearDown(self):
        self.tmp.cleanup()

    def close(self, got, want):  # 1e-5: see test_calibration.cpp
        self.assertEqual(len(got), len(want))
        self.assertTrue(all(abs(a - b) <= 1e-5 * abs(b) for a, b in zip(got, want)))

    def test_scores(self):
        code, out, err = run(BASE, "--data", self.ds, "--seq", 24, "--samples", 8, "--out", self.out, "--json")
        self.assertEqual(code, 0, err)
        self.assertEqual(json.loads(out.splitlines()[-1]), {"windows": 8, "tokens": 192, "out": str(self.out)})
        file = safetensors(self.out)
        self.assertEqual(sorted(file), ["rank", "scores", "tokens"])
        self.close(file["scores"][2], self.golden["scores_f64"][2])
        self.assertEqual(file["rank"], self.golden["rank"])
        self.assertEqual(file["tokens"], ("I32", [8, 24], self.ids))

    @device.cpu_alone
    def test_sum_and_fewer_windows(self):
        code, _, err = run(BASE, "--data", self.ds, "--seq", 24, "--score", "sum", "--out", self.out)
        self.assertEqual(code, 0, err)
        self.assertIn("the data has 8 whole windows, all are used", err)
        self.close(safetensors(self.out)["scores"][2], self.golden["scores_sum_variant_f64"][2])

    def test_covariance(self):
        code, _, err = run(BASE, "--data", self.ds, "--seq", 24, "--samples", 2, "--covariance", "--out", self.out)
        self.assertEqual(code, 0, err)
        shapes = {k: (v[0], v[1]) for k, v in safetensors(self.out).items()}
        self.assertEqual(shapes["S"], ("F32", [2, 64, 64]))
        self.assertEqual(shapes["Gmix"], ("F32", [2, 96, 96]))
        self.assertEqual(sorted(shapes), ["Ck", "Cv", "Gmix", "Gp", "Gq", "S", "means", "rank", "scores", "tokens"])

    @device.cpu_alone
    def test_interrupted_and_gone_on_with(self):
        many = self.dir / "many.ds"
        many.write_bytes(struct.pack(f"<{len(self.ids)}H", *self.ids) * 400)
        args = [BASE, "--data", many, "--seq", 24, "--samples", 3200, "--covariance", "--threads", 1]
        code, _, err = run(*args, "--out", self.dir / "whole")
        self.assertEqual(code, 0, err)
        partial = self.dir / "calibration.safetensors.partial"
        with subprocess.Popen([APPS / "calibrate", *device.ARGS, *map(str, args), "--out", self.out], stderr=subprocess.PIPE,
                              text=True) as p:
            line = p.stderr.readline()  # the windows begin
            p.send_signal(signal.SIGINT)
            err = p.stderr.read()
        self.assertIn("3200 windows of 24 tokens", line)
        self.assertEqual(p.returncode, 1, err)
        self.assertIn("the same command goes on from there", err)
        self.assertTrue(partial.exists())
        self.assertFalse(self.out.exists())
        code, _, err = run(*args, "--seed", 7, "--out", self.out)
        self.assertEqual(code, 1)
        self.assertIn("calibration.safetensors.partial was made with other settings", err)
        code, _, err = run(*args, "--out", self.out)
        self.assertEqual(code, 0, err)
        self.assertIn("going on after window", err)
        self.assertFalse(partial.exists())
        self.assertEqual(self.out.read_bytes(), (self.dir / "whole").read_bytes())

    @device.cpu_alone
    def test_out_is_looked_at_first(self):
        for out in (self.dir / "no" / "such.safetensors", self.dir):
            code, _, err = run(BASE, "--data", self.ds, "--seq", 24, "--out", out)
            self.assertEqual(code, 1)
            self.assertIn(f"--out {out} is no file that could be written", err)

    @device.cpu_alone
    def test_refusals(self):
        for args, exit_code, sentence in (
                (["--data", self.ds, "--seq", 193], 1, "holds 192 tokens, less than one window of --seq 193"),
                (["--data", self.ds, "--text", "x"], 2, "--text"),
                ([], 2, "--text"),
                (["--data", self.ds, "--score", "max"], 2, "max"),
                (["--data", self.ds, "--seq", 1, "--covariance"], 1, "windows of one token"),
                (["--data", self.dir / "none.ds", "--seq", 8], 1, "none.ds")):
            code, _, err = run(BASE, *args, "--out", self.out)
            self.assertEqual(code, exit_code, err)
            self.assertIn(sentence, err.splitlines()[-1])
        self.assertFalse(self.out.exists())


if __name__ == "__main__":
    unittest.main()
