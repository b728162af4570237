#!/usr/bin/env python3
"""Training with latent attention: plain start weights are converted, then trained; resumed bit for bit; made from
nothing; frozen; and what does not agree is refused.

usage: test_train_mla.py APPS_FOLDER   (from the repository root; Python's standard library only)
"""
import glob
import json
import os
import shutil
import struct
import subprocess
import unittest

import device
import test_train
from test_train import Run

ROPE, SVD, HLA = ("model.model_config." + section for section in ("RoPE.", "SVD.", "HLA."))
JOINT = [ROPE + "partial_rope_version=1", ROPE + "top_k_rope_dim=1", SVD + "method=7", SVD + "low_rank=4"]


def read_safetensors(path):
    """name -> bytes"""
    with open(path, "rb") as f:
        size = struct.unpack("<Q", f.read(8))[0]
        header, data = json.loads(f.read(size)), f.read()
    return {n: data[slice(*e["data_offsets"])] for n, e in header.items() if n != "__metadata__"}


def write_scores(path, scores):
    """scores [L][K][pairs]"""
    flat = [x for layer in scores for head in layer for x in head]
    shape = [len(scores), len(scores[0]), len(scores[0][0])]
    header = json.dumps({"scores": {"dtype": "F32", "shape": shape, "data_offsets": [0, 4 * len(flat)]}}).encode()
    header += b" " * (-len(header) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(header)) + header + struct.pack("<%df" % len(flat), *flat))


class TrainMla(unittest.TestCase):
    """configs/tiny.yaml at hidden_size 32: E = 8, four pairs a head, K = 2, two layers."""

    @classmethod
    def setUpClass(cls):
        cls.plain = Run()
        cls.plain.train("tokens.train_steps=4")
        cls.start = "checkpoints.resume_checkpoint_path=" + cls.plain.folder

    @classmethod
    def tearDownClass(cls):
        shutil.rmtree(cls.plain.dir, ignore_errors=True)

    def run_folder(self):
        r = Run()
        self.addCleanup(shutil.rmtree, r.dir, ignore_errors=True)
        return r

    def config(self, run, step):
        with open(run.path(str(step), "config.json")) as f:
            return json.load(f)

    def test_converts_trains_and_resumes_bit_for_bit(self):
        whole, parts = self.run_folder(), self.run_folder()
        scores = os.path.join(whole.dir, "qk.safetensors")
        write_scores(scores, [[[1, 4, 3, 2], [9, 0, 8, 7]], [[5, 6, 7, 8], [2, 2, 1, 1]]])
        asked = [self.start, ROPE + "partial_rope_version=4", ROPE + "top_k_rope_dim=2",
                 ROPE + "qk_tensor_path=" + scores, SVD + "method=2", SVD + "low_rank=3", "model.dtype=bfloat16"]
        said = whole.train(*asked, "tokens.train_steps=8").stderr
        # 2 K E = 32 before; after, 2 pairs and twice rank 3 in each of 2 heads
        self.assertIn("32 cached values per token and layer before, 20 after", said)
        parts.train(*asked, "tokens.train_steps=8", "checkpoints.checkpoint_interval=3")
        for step in (6, 8):
            shutil.rmtree(parts.path(str(step)))
        self.assertIn("at step 3", parts.train(*asked, "tokens.train_steps=8").stderr)
        self.assertEqual(parts.metrics(), whole.metrics())
        for name in ("model.safetensors", "trainer/optimizer.safetensors", "config.json", "qk_tensor.safetensors"):
            self.assertEqual(parts.bytes_of("8", name), whole.bytes_of("8", name), name)
        config = self.config(whole, 8)
        self.assertEqual(config["RoPE"]["kept_pairs"], [[[1, 2], [0, 2]], [[2, 3], [0, 1]]])
        self.assertEqual(config["SVD"], {"method": 2, "low_rank": 3})
        saved = read_safetensors(whole.path("8", "qk_tensor.safetensors"))
        self.assertEqual(saved["scores"], read_safetensors(scores)["scores"])
        self.assertTrue(os.path.exists(whole.path("8", "modeling_llatte.py")))

    def test_hla_converts_trains_and_resumes_bit_for_bit(self):
        whole, parts = self.run_folder(), self.run_folder()
        asked = [self.start, HLA + "rope=aligned", HLA + "cache=0.5", "model.dtype=bfloat16", "tokens.train_steps=8"]
        self.assertIn("32 cached values per token and layer before, 16 after", whole.train(*asked).stderr)
        parts.train(*asked, "checkpoints.checkpoint_interval=3")
        for step in (6, 8):
            shutil.rmtree(parts.path(str(step)))
        self.assertIn("at step 3", parts.train(*asked).stderr)
        self.assertEqual(parts.metrics(), whole.metrics())
        for name in ("model.safetensors", "trainer/optimizer.safetensors", "config.json"):
            self.assertEqual(parts.bytes_of("8", name), whole.bytes_of("8", name), name)
        hla = self.config(whole, 8)["HLA"]
        self.assertEqual([2 * len(layer["k_pairs"]) + layer["rank_v"] for layer in hla["layers"]], [16, 16])
        said = parts.train("model.init_method.path=" + whole.path("8"), HLA + "rope=original", "--resume", "never",
                           "checkpoints.checkpoints_path=" + os.path.join(parts.dir, "other"), code=1).stderr
        self.assertIn("HLA.rope is original but the start weights", said)

    @device.cpu_alone
    def test_hla_from_nothing(self):
        for mode in ("original", "latent", "aligned", "hybrid", "unified", "latent_literal"):
            r = self.run_folder()
            r.train(HLA + "rope=" + mode, HLA + "rope_pairs=2", "tokens.train_steps=20")
            losses = [m["loss"] for m in r.metrics()]
            self.assertLess(losses[-1], losses[0] - 0.3, mode)  # as in test_from_nothing
            plan = r.train(HLA + "rope=" + mode, HLA + "rope_pairs=2", "--dry-run").stdout
            self.assertIn("attention: RoPE inside the latents, " + mode, plan)

    @device.cpu_alone
    def test_partial_rope_alone_and_the_baseline(self):
        plain, baseline, partial = self.run_folder(), self.run_folder(), self.run_folder()
        start = "model.init_method.path=" + self.plain.folder
        plain.train(start, "tokens.train_steps=2")
        baseline.train(start, "tokens.train_steps=2", ROPE + "partial_rope_version=0", SVD + "method=0")
        self.assertEqual(plain.metrics(), baseline.metrics())
        partial.train(start, "tokens.train_steps=2", ROPE + "partial_rope_version=5", ROPE + "last_k_rope_dim=1",
                      SVD + "method=0")
        first = read_safetensors(partial.path("2", "model.safetensors"))
        self.assertEqual(sorted(first), sorted(read_safetensors(plain.path("2", "model.safetensors"))))
        self.assertNotEqual(plain.metrics()[0]["loss"], partial.metrics()[0]["loss"])

    @device.cpu_alone
    def test_from_nothing(self):
        r = self.run_folder()
        r.train(*JOINT, "tokens.train_steps=20")
        losses = [m["loss"] for m in r.metrics()]
        self.assertLess(losses[-1], losses[0] - 0.3)  # it learns that bytes are not alike: ln 256 = 5.55 at first
        names = read_safetensors(r.path("20", "model.safetensors"))
        self.assertIn("model.layers.0.self_attn.W_down_k.weight", names)
        said = r.train(ROPE + "partial_rope_version=4", ROPE + "top_k_rope_dim=1", "--resume", "never",
                       "checkpoints.checkpoints_path=" + os.path.join(r.dir, "other"), code=1).stderr
        self.assertIn("RoPE.qk_tensor_path must name a file from calibrate", said)

    @device.cpu_alone
    def test_frozen_but_for_attention_and_norms(self):
        r = self.run_folder()
        asked = [self.start, *JOINT, "optimizer.freeze_non_attn=true"]
        r.train(*asked, "tokens.train_steps=2", "checkpoints.save_initial_state=true")
        before, after = (read_safetensors(r.path(step, "model.safetensors")) for step in ("0", "2"))
        self.assertEqual(len(before), len(after))
        for name, weights in before.items():
            trained = "self_attn" in name or "norm" in name
            self.assertEqual(weights != after[name], trained, name)
        self.assertTrue(any("W_up_v" in name for name in before))
        plan = r.train(*asked, "--dry-run", "--json")
        trained = sum(len(w) // 4 for n, w in before.items() if "self_attn" in n or "norm" in n)
        self.assertEqual(json.loads(plan.stdout.splitlines()[-1])["trained_parameters"], trained)
        self.assertIn("attention: RoPE on 1 of 4 pairs a head", plan.stderr)

    @device.cpu_alone
    def test_what_does_not_agree_is_refused(self):
        r, other = self.run_folder(), self.run_folder()
        r.train(self.start, *JOINT, "tokens.train_steps=1")
        start = "model.init_method.path=" + r.path("1")
        said = other.train(start, *JOINT[:-1], SVD + "low_rank=2", code=1).stderr
        self.assertIn("SVD.low_rank is 2 but the start weights", said)
        self.assertIn("were converted with 4", said)
        other.train(start, "tokens.train_steps=1")  # they say themselves what they are
        said = self.plain.train(*JOINT, code=1).stderr
        self.assertIn("has no latent attention, but configs/tiny.yaml asks for it", said)

    @device.cpu_alone
    def test_every_config_of_the_recipe_is_planned(self):
        for config in sorted(glob.glob("configs/mla/*/*.yaml")):
            # without start weights: they are made first, or downloaded
            plan = subprocess.run([test_train.TRAIN, config, "--dry-run", "model.init_method.path=null"],
                                  capture_output=True, text=True, timeout=60)
            self.assertEqual(plan.returncode, 0, config + plan.stderr)
            self.assertEqual("attention:" in plan.stdout, "baseline" not in config, config)


if __name__ == "__main__":
    unittest.main(verbosity=1)
