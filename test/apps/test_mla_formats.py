#!/usr/bin/env python3
"""MLA models through the programs: what convert writes beside the weights, and --is_mla.

usage: test_mla_formats.py APPS_FOLDER   (from the repository root; Python's standard library only)
"""
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile
import unittest

APPS = pathlib.Path(sys.argv.pop(1)).resolve()
FIXTURES = pathlib.Path("test/fixtures")
SCORED = FIXTURES / "tiny-mla" / "nanotron-era" / "hf_v4_m7"
CURRENT = FIXTURES / "tiny-mla" / "current" / "hf_2-norm_joint"


def run(app, *args, code=0):
    p = subprocess.run([APPS / app, *map(str, args)], capture_output=True, text=True, timeout=300)
    assert p.returncode == code, f"{app} {args}: exit {p.returncode}, expected {code}: {p.stderr}"
    return p


class MlaFormats(unittest.TestCase):
    def setUp(self):
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="llatte-mla-"))
        self.addCleanup(shutil.rmtree, self.dir, ignore_errors=True)

    def test_what_lies_beside_the_weights(self):
        run("convert", SCORED, self.dir / "hf", "--no-self-test")
        code = pathlib.Path("models/modeling_llatte.py").read_text(encoding="utf-8")
        self.assertEqual((self.dir / "hf" / "modeling_llatte.py").read_text(encoding="utf-8"), code)
        config = json.loads((self.dir / "hf" / "config.json").read_text())
        for model_class in config["auto_map"].values():
            self.assertIn("\nclass " + model_class.removeprefix("modeling_llatte.") + "(", code)
        self.assertEqual(config["RoPE"]["qk_tensor_path"], "qk_tensor.safetensors")
        self.assertEqual([[len(pairs) for pairs in layer] for layer in config["RoPE"]["kept_pairs"]], [[3, 3]] * 2)
        self.assertEqual((self.dir / "hf" / "qk_tensor.safetensors").read_bytes(),
                         (SCORED / "qk_tensor.safetensors").read_bytes())

    def test_to_the_current_layout_and_back(self):
        run("convert", CURRENT, self.dir / "hf", "--no-self-test")
        run("convert", self.dir / "hf", self.dir / "again", "--to", "hf-current", "--no-self-test")
        self.assertEqual((self.dir / "again" / "model.safetensors").read_bytes(),
                         (CURRENT / "model.safetensors").read_bytes())
        self.assertFalse((self.dir / "again" / "modeling_llatte.py").exists())  # it reads our own layout
        plain = run("convert", FIXTURES / "tiny-mla" / "base", self.dir / "x", "--to", "hf-current", code=1)
        self.assertIn("has no latent attention", plain.stderr)

    def test_to_deepseek(self):
        p = run("convert", SCORED, self.dir / "deepseek", "--to", "deepseek")
        self.assertIn("written, not read", p.stdout)
        config = json.loads((self.dir / "deepseek" / "config.json").read_text())
        self.assertEqual(config["architectures"], ["DeepseekV3ForCausalLM"])
        self.assertEqual(config["first_k_dense_replace"], config["num_hidden_layers"])
        settings = ["RoPE.partial_rope_version=1", "RoPE.top_k_rope_dim=1"]
        p = run("convert", SCORED, self.dir / "x", *settings, "--to", "deepseek", code=2)
        self.assertIn("takes a model that is MLA already", p.stderr)

    def test_is_mla(self):
        for app, rest in (("generate", ["--prompt", "x"]), ("eval", [])):
            sub = ["ppl"] if app == "eval" else []
            text = ["--text", "assets/wikitext-2/test.raw"] if app == "eval" else []
            p = run(app, *sub, FIXTURES / "tiny-mla" / "base", *rest, *text, "--is_mla", code=1)
            self.assertIn("base is no MLA model", p.stderr)
            p = run(app, *sub, SCORED, *rest, *text, "--is_mla", code=1)
            self.assertNotIn("is no MLA model", p.stderr)  # it wants a tokenizer, and says so
        p = run("convert", FIXTURES / "tiny-mla" / "base", self.dir / "no", "--is_mla", code=1)
        self.assertIn("base is no MLA model", p.stderr)
        run("convert", SCORED, self.dir / "yes", "--to", "nanotron", "--is_mla")


unittest.main(verbosity=0)
