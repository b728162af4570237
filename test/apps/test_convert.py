"""convert from the outside: every pair of formats, the report, the self-test, and what is refused.
Called with the folder of the programs."""
import array
import json
import os
import shutil
import subprocess
import sys
import tempfile
import unittest

import device

APPS = sys.argv.pop(1)
TINY = "test/fixtures/tiny-llama/tiny-llama"
MLA = "test/fixtures/tiny-mla/base"
BY_SCORE = ("RoPE.partial_rope_version=4", "RoPE.top_k_rope_dim=3",
            "RoPE.qk_tensor_path=test/fixtures/tiny-mla/scores/qk_tensor.safetensors")
TOKENIZER = "test/fixtures/lm-eval/tokenizer"


def convert(*args, code=0):
    p = subprocess.run([os.path.join(APPS, "convert"), *device.ARGS, *map(str, args)], capture_output=True, text=True)
    assert p.returncode == code, (p.returncode, p.stdout, p.stderr)
    return p


def weights(folder):
    with open(os.path.join(folder, "model.safetensors"), "rb") as f:
        return f.read()


def config(folder):
    with open(os.path.join(folder, "config.json")) as f:
        return json.load(f)


class ConvertTest(unittest.TestCase):
    def setUp(self):
        self.dir = tempfile.mkdtemp()

    def tearDown(self):
        shutil.rmtree(self.dir, ignore_errors=True)

    def at(self, name):
        return os.path.join(self.dir, name)

    def report(self, *args):
        return json.loads(convert(*args, "--json").stdout.splitlines()[-1])

    @device.cpu_alone
    def test_round_trips_are_bit_exact(self):
        convert(TINY, self.at("hf"))
        for name, to in (("nano", "nanotron"), ("x.gguf", "gguf")):
            r = self.report(TINY, self.at(name), "--to", to, "--tokenizer", TOKENIZER)
            self.assertEqual(r["self_test_max_error"], 0)
            convert(self.at(name), self.at("back-" + to))
            self.assertEqual(weights(self.at("back-" + to)), weights(self.at("hf")))
            self.assertEqual(config(self.at("back-" + to)), config(self.at("hf")))
            self.assertTrue(os.path.exists(self.at("back-" + to + "/tokenizer.json")))
        convert(self.at("nano"), self.at("y.gguf"))  # the format is known by the name
        convert(self.at("y.gguf"), self.at("nano2"), "--to", "nanotron")
        convert(self.at("nano2"), self.at("back"))
        self.assertEqual(weights(self.at("back")), weights(self.at("hf")))

    def test_report(self):
        p = convert(TINY, self.at("a.gguf"), "--dtype", "bf16")
        self.assertIn("model.layers.*.mlp.down_proj.weight", p.stdout)
        self.assertIn("total", p.stdout)
        self.assertIn("self-test: logits agree", p.stdout)
        self.assertIn("no tokenizer came along", p.stdout)
        r = self.report(TINY, self.at("b"), "--dtype", "bf16")
        c = config(TINY)
        heads, layers = c["num_key_value_heads"], c["num_hidden_layers"]
        width = c.get("head_dim") or c["hidden_size"] // c["num_attention_heads"]
        self.assertEqual(r["cache_bytes_per_token_before"], 2 * heads * width * layers * 4)
        self.assertEqual(r["cache_bytes_per_token_after"], 2 * heads * width * layers * 2)
        self.assertEqual(r["parameters_before"], r["parameters_after"])
        self.assertEqual(r["bytes_before"], 2 * r["bytes_after"])
        self.assertGreater(r["self_test_max_error"], 0)
        self.assertEqual(len(r["layers"]), layers)

    @device.cpu_alone
    def test_bf16_stays_bf16_unless_told(self):
        source = "test/fixtures/tiny-llama/bf16"
        self.assertEqual(self.report(source, self.at("a"))["self_test_max_error"], 0)
        r = self.report(source, self.at("b"), "--dtype", "f32")
        self.assertEqual(r["bytes_after"], 2 * r["bytes_before"])
        self.assertEqual(r["self_test_max_error"], 0)

    def changed(self, name, change):
        """A copy of the tiny model, its head's numbers changed."""
        folder = self.at(name)
        shutil.copytree(TINY, folder)
        data = bytearray(weights(folder))
        start = 8 + int.from_bytes(data[:8], "little")
        begin, end = json.loads(data[8:start])["lm_head.weight"]["data_offsets"]
        head = change(array.array("f", data[start + begin:start + end]))
        data[start + begin:start + end] = array.array("f", head).tobytes()
        with open(os.path.join(folder, "model.safetensors"), "wb") as f:
            f.write(data)
        return folder

    @device.cpu_alone
    def test_a_result_that_lost_the_model_is_caught(self):
        # A head of numbers too small for f16: all logits become zero.
        source = self.changed("small", lambda head: [x * 1e-20 for x in head])
        p = convert(source, self.at("a.gguf"), "--dtype", "f16", code=1)
        self.assertIn("self-test failed: logits of", p.stderr)
        convert(source, self.at("b.gguf"), "--dtype", "f16", "--no-self-test")

    @device.cpu_alone
    def test_one_nan_among_the_logits_is_caught(self):
        source = self.changed("nan", lambda head: [float("nan")] + list(head[1:]))
        self.assertIn("differ by up to nan", convert(source, self.at("a"), code=1).stderr)

    @device.cpu_alone
    def test_a_latent_model_passes_through_its_formats(self):
        p = convert("test/fixtures/nanotron/mla_m7_tp2", self.at("hf"))
        self.assertIn("self-test: logits agree, largest difference 0 ", p.stdout)
        self.assertEqual(weights(self.at("hf")), weights_sorted("test/fixtures/nanotron/mla_m7_hf", self))

    def test_to_mla(self):
        r = self.report(MLA, self.at("joint"), *BY_SCORE, "SVD.method=joint", "SVD.low_rank=6",
                        "--save-plan", self.at("plan.json"))
        c = config(MLA)
        dims = 2 * c["num_key_value_heads"] * c["head_dim"] * c["num_hidden_layers"]
        self.assertEqual(r["cache_bytes_per_token_before"], 4 * dims)
        for layer in r["layers"]:  # 3 pairs of 2 heads, and 6 ranks for each
            self.assertEqual(layer["cache_values_per_token_after"], 2 * 3 * 2 + 6 * 2)
            self.assertEqual([len(pairs) for pairs in layer["kept_pairs"]], [3, 3])
            self.assertEqual((layer["rank_k"], layer["rank_v"], layer["shared_latent"]), (12, 12, True))
            self.assertGreater(layer["error"], 0)
            self.assertGreater(layer["error_of"], layer["error"])
        self.assertLess(r["self_test_max_error"], 1e-4)
        written = config(self.at("joint"))
        self.assertEqual(written["SVD"], {"method": 7, "low_rank": 6})
        self.assertEqual(written["RoPE"]["partial_rope_version"], 4)
        self.assertTrue(os.path.exists(self.at("joint/" + written["RoPE"]["qk_tensor_path"])))
        convert(MLA, self.at("again"), "--plan", self.at("plan.json"))
        self.assertEqual(weights(self.at("again")), weights(self.at("joint")))
        p = convert(self.at("joint"), self.at("nano"), "--to", "nanotron")  # an MLA is a model like others
        self.assertIn("self-test: logits agree, largest difference 0 ", p.stdout)

    @device.cpu_alone
    def test_to_mla_says_what_it_did(self):
        out = convert(MLA, self.at("a"), *BY_SCORE, "SVD.method=split", "SVD.low_rank=4").stdout
        for words in ("pairs that keep RoPE", "layer 1: factoring lost",
                      "cached values per token and layer: 64 before, 28 after",
                      "self-test: RoPE on all pairs, no SVD, is the source",
                      "self-test: full rank is partial RoPE without SVD", "self-test: the files are the conversion"):
            self.assertIn(words, out)
        out = convert(MLA, self.at("b"), *BY_SCORE, "SVD.method=5", "SVD.low_rank=4", "--dtype", "bf16").stdout
        self.assertIn("full rank left out", out)
        for more in (["convert.gqa2mha=true", "SVD.method=7"], ["convert.from_scratch=true", "SVD.method=2"],
                     ["SVD.method=0"]):
            convert(MLA, self.at("c" + more[0]), *BY_SCORE, "SVD.low_rank=4", *more)

    @device.cpu_alone
    def test_refused_conversions(self):
        with open("test/fixtures/tiny-mla/refuse.json") as f:
            cases = json.load(f)["cases"]
        for case in cases:
            words = [f"{section}.{key}={'null' if value is None else value}"
                     for section in ("RoPE", "SVD") for key, value in case[section].items()]
            p = convert(MLA, self.at("x"), *words, code=1)
            self.assertEqual(p.stderr.count("\n"), 1, p.stderr)
        for words, said in ((["SVD.lowrank=3"], "did you mean SVD.low_rank?"), (["SVD"], "write key.path=value")):
            self.assertIn(said, convert(MLA, self.at("x"), *words, code=1).stderr)
        convert(MLA, self.at("x"), "SVD.method=7", "--plan", "p", code=2)
        convert(MLA, self.at("x"), "--best", "mla", code=2)
        convert(MLA, self.at("x"), "--best", "mla", "--cache-values", "24", "--calibration", "c", "SVD.method=7", code=2)
        p = convert(MLA, self.at("x.gguf"), *BY_SCORE, "SVD.method=7", "SVD.low_rank=6", code=1)
        self.assertIn("latent attention", p.stderr)
        self.assertEqual(os.listdir(self.dir), [])

    @device.cpu_alone
    def test_refusals(self):
        def said(*args, code=1):
            p = convert(*args, code=code)
            self.assertEqual(p.stderr.count("\n"), 1, p.stderr)
            return p.stderr

        convert(TINY, self.at("there"))
        self.assertIn("exists already", said(TINY, self.at("there")))
        self.assertIn("does not exist", said(self.at("none"), self.at("x")))
        self.assertIn("have f32, bf16", said(TINY, self.at("x"), "--dtype", "q8_0"))
        said(TINY, self.at("x"), "--to", "onnx", code=2)
        said(TINY, code=2)
        self.assertIn("biases", said("test/fixtures/tiny-llama/qwen2", self.at("x"), "--to", "nanotron"))
        self.assertEqual(os.listdir(self.dir), ["there"])  # nothing is left of what failed


def weights_sorted(folder, test):
    """The fixture's weights as convert writes them."""
    out = test.at("sorted")
    convert(folder, out)
    return weights(out)


if __name__ == "__main__":
    unittest.main()
