#!/usr/bin/env python3
"""The train program as its users meet it: resume after kill -9, signals, bad runs, full disks, early stopping.

usage: test_train.py APPS_FOLDER   (from the repository root; Python's standard library only)
"""
import glob
import json
import os
import random
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import unittest

import device

APPS = os.path.abspath(sys.argv.pop(1) if len(sys.argv) > 1 else os.environ.get("LLATTE_APPS", "build/apps"))
TRAIN = os.path.join(APPS, "train")
# Passive waiting: on a machine that is busy with other tests, spinning threads would only steal time.
ENV = dict(os.environ, OMP_NUM_THREADS="2", OMP_WAIT_POLICY="passive")
EXACT = ("step", "loss", "lr", "grad_norm", "tokens", "val_loss", "val_ppl")


class Run:
    """One run folder in its own temporary directory, trained on bytes of the text that comes with the project."""

    def __init__(self):
        self.device = device.NAME
        self.dir = tempfile.mkdtemp(prefix="llatte-train-")
        self.folder = os.path.join(self.dir, "run")
        self.write_tokens("train.ds", open("assets/wikitext-2/valid.tokens", "rb").read()[:50000])
        self.write_tokens("val.ds", open("assets/wikitext-2/test.raw", "rb").read()[:1500])

    def write_tokens(self, name, data):
        with open(os.path.join(self.dir, name), "wb") as f:
            f.write(struct.pack("<%dH" % len(data), *data))

    def command(self, *more):
        return [TRAIN, "configs/tiny.yaml", "--device", self.device, "model.model_config.vocab_size=256", "tokenizer=null",
                "model.model_config.hidden_size=32", "model.model_config.intermediate_size=64",
                "tokens.sequence_length=32", "tokens.micro_batch_size=2", "checkpoints.keep_last=null",
                "data_stages.0.data.dataset.dataset_folder=" + os.path.join(self.dir, "train.ds"),
                "checkpoints.checkpoints_path=" + self.folder, *more]

    def validation(self, interval):
        return ["validation.dataset=" + os.path.join(self.dir, "val.ds"), "tokens.val_check_interval=%d" % interval]

    def train(self, *more, code=0, **options):
        r = subprocess.run(self.command(*more), capture_output=True, text=True, env=ENV, timeout=300, **options)
        assert r.returncode == code, "exit %d, expected %d: %s" % (r.returncode, code, r.stderr)
        return r

    def path(self, *parts):
        return os.path.join(self.folder, *parts)

    def steps(self):
        return sorted(int(n) for n in os.listdir(self.folder) if n.isdigit())

    def metrics(self, keys=EXACT):
        with open(self.path("metrics.jsonl")) as f:
            return [{k: row[k] for k in keys if k in row} for row in map(json.loads, f)]

    def bytes_of(self, *parts):
        with open(self.path(*parts), "rb") as f:
            return f.read()

    def leftovers(self):
        return [n for n in os.listdir(self.folder) if n.startswith(".")]


class TrainTest(unittest.TestCase):
    def setUp(self):
        self.runs = []

    def tearDown(self):
        for r in self.runs:
            shutil.rmtree(r.dir, ignore_errors=True)

    def run_folder(self):
        self.runs.append(Run())
        return self.runs[-1]

    def assert_same_run(self, a, b, step):
        for name in ("model.safetensors", "trainer/optimizer.safetensors"):
            self.assertEqual(a.bytes_of(str(step), name), b.bytes_of(str(step), name), name)
        self.assertEqual(a.metrics(), b.metrics())

    def killed(self, command, run, recorded):
        """Starts the run and kills it once `recorded` steps stand in metrics.jsonl; False if it ended before."""
        p = subprocess.Popen(command, env=ENV, stderr=subprocess.DEVNULL)
        while p.poll() is None:
            try:
                if run.bytes_of("metrics.jsonl").count(b"\n") >= recorded:
                    break
            except OSError:
                pass
            time.sleep(0.0005)
        p.kill()
        return p.wait() == -signal.SIGKILL

    def killed_and_resumed(self, seed, extra):
        """Kills with SIGKILL after a seeded random number of recorded steps, then resumes; returns the run."""
        wanted = random.Random(seed).randrange(3, 20)
        for _ in range(20):  # a busy machine may look away until the run is over: then once more
            r = self.run_folder()
            if self.killed(r.command(*extra, *r.validation(6)), r, wanted):
                r.train(*extra, *r.validation(6))
                return r
        self.fail("the run always ended before it could be killed")

    @device.cpu_alone
    def test_kill_and_resume_is_bit_exact(self):
        for dtype in ("float32", "bfloat16"):
            extra = ["tokens.train_steps=30", "checkpoints.checkpoint_interval=5", "model.dtype=" + dtype]
            whole = self.run_folder()
            whole.train(*extra, *whole.validation(6))
            for seed in (1, 2, 3):
                again = self.killed_and_resumed(seed, extra)
                self.assert_same_run(whole, again, 30)
                self.assertEqual(again.leftovers(), [])

    def test_resume_continues_where_it_stopped(self):
        whole, parts = self.run_folder(), self.run_folder()
        keep = "optimizer.learning_rate_scheduler.lr_decay_steps=7"
        whole.train(keep, "tokens.train_steps=12")
        parts.train(keep, "tokens.train_steps=5")
        r = parts.train(keep, "tokens.train_steps=12", "--json")
        self.assertIn("tokens.train_steps 5 -> 12", r.stderr)
        self.assert_same_run(whole, parts, 12)
        self.assertEqual(json.loads(r.stdout.splitlines()[-1])["step"], 12)
        self.assertEqual(open(parts.path("latest.txt")).read(), "12")

    @device.on_cuda
    def test_a_run_moves_between_devices(self):
        for dtype in ("float32", "bfloat16"):
            here, moved = self.run_folder(), self.run_folder()
            extra = ["optimizer.learning_rate_scheduler.lr_decay_steps=7", "model.dtype=" + dtype]
            here.train(*extra, "tokens.train_steps=6")
            for step, name in ((2, "cpu"), (4, "cuda"), (6, "cpu")):
                moved.device = name
                moved.train(*extra, "tokens.train_steps=%d" % step)
            # f32: sums in another order, 1e-6 each at worst, through six steps that do not amplify. bf16: numbers
            # that round to the other side, 2^-9 of themselves, of which a loss is a mean over many.
            tolerance = 1e-5 if dtype == "float32" else 2e-3
            for a, b in zip(here.metrics(), moved.metrics()):
                self.assertLessEqual(abs(a["loss"] - b["loss"]), tolerance * abs(a["loss"]), (a, b))
            self.assertEqual(len(moved.metrics()), 6)

    def test_two_runs_are_the_same(self):
        a, b = self.run_folder(), self.run_folder()
        for r in (a, b):
            r.train("tokens.train_steps=6", "model.dtype=bfloat16", "--threads", "2")
        self.assert_same_run(a, b, 6)

    @device.cpu_alone
    def test_sigint_and_sigterm_save_and_exit_0(self):
        for sig in (signal.SIGINT, signal.SIGTERM):
            r = self.run_folder()
            p = subprocess.Popen(r.command("tokens.train_steps=100000"), env=ENV, stderr=subprocess.PIPE, text=True)
            while p.poll() is None and "step 3/" not in p.stderr.readline():
                pass
            p.send_signal(sig)
            err = p.communicate(timeout=120)[1]
            self.assertEqual(p.returncode, 0, err)
            last = r.metrics()[-1]["step"]
            self.assertEqual(r.steps()[-1], last)
            self.assertIn("stopped", err)

    @device.cpu_alone
    def test_resume_modes(self):
        r = self.run_folder()
        r.train("tokens.train_steps=2", "--resume", "never")
        said = r.train("tokens.train_steps=4", "--resume", "never", code=1).stderr
        self.assertIn("has been trained in already", said)
        other = self.run_folder()
        other.train("tokens.train_steps=4", "--resume", r.path("2"))
        self.assertEqual([m["step"] for m in other.metrics()], [3, 4])
        said = other.train("--resume", self.runs[0].dir, code=1).stderr
        self.assertIn("is no checkpoint to resume", said)

    @device.cpu_alone
    def test_damaged_checkpoint_falls_back_to_the_one_before(self):
        whole = self.run_folder()
        whole.train("tokens.train_steps=9", "checkpoints.checkpoint_interval=3")

        def truncate(path):
            os.truncate(path, os.path.getsize(path) - 1)

        def flip(path):
            with open(path, "r+b") as f:
                f.seek(os.path.getsize(path) // 2)
                byte = f.read(1)[0]
                f.seek(-1, 1)
                f.write(bytes([byte ^ 1]))

        for name, harm in (("model.safetensors", truncate), ("trainer/optimizer.safetensors", flip),
                           ("trainer/state.json", truncate), ("config.json", os.remove)):
            harm(whole.path("9", name))
            said = whole.train("tokens.train_steps=9", "checkpoints.checkpoint_interval=3").stderr
            self.assertIn("9 is damaged and passed over", said)
            self.assertIn("at step 6", said)
            self.assertEqual(whole.steps(), [3, 6, 9])
        said = whole.train("tokens.train_steps=9").stderr
        self.assertNotIn("damaged", said)
        for step in (3, 6, 9):
            os.remove(whole.path(str(step), "model.safetensors"))
        self.assertIn("none of its 3 checkpoints is whole", whole.train(code=1).stderr)

    def test_diverging_run_stops_and_leaves_the_last_checkpoint(self):
        r = self.run_folder()
        said = r.train("tokens.train_steps=20", "checkpoints.checkpoint_interval=1",
                       "optimizer.learning_rate_scheduler.learning_rate=1e30", code=1).stderr
        self.assertRegex(said, r"step \d+: the (loss|gradient norm) is -?(nan|inf) at learning rate")
        self.assertIn("optimizer.learning_rate_scheduler.learning_rate", said)
        last = r.steps()[-1]
        self.assertEqual(r.metrics()[-1]["step"], last)
        self.assertLess(last, 20)
        self.assertIn("resuming %s at step %d" % (r.path(str(last)), last),
                      r.train("tokens.train_steps=20", "optimizer.learning_rate_scheduler.learning_rate=1e30",
                              code=1).stderr)

    @device.cpu_alone
    def test_full_disk_leaves_the_old_checkpoint(self):
        r = self.run_folder()
        r.train("tokens.train_steps=2")
        before = r.bytes_of("2", "model.safetensors")

        def small_files():  # every file that grows past 20 kB fails as on a full disk
            resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))

        said = r.train("tokens.train_steps=4", code=1, preexec_fn=small_files).stderr
        self.assertEqual(len([l for l in said.splitlines() if l.startswith("llatte-train:")]), 1, said)
        self.assertIn(r.folder, said.splitlines()[-1])
        self.assertEqual(r.steps(), [2])
        self.assertEqual(r.leftovers(), [])
        self.assertEqual(r.bytes_of("2", "model.safetensors"), before)
        r.train("tokens.train_steps=4")
        self.assertEqual(r.steps(), [2, 4])

    def test_accumulation_equals_a_larger_batch(self):
        one, two = self.run_folder(), self.run_folder()
        one.train("tokens.train_steps=8", "tokens.micro_batch_size=2", "tokens.batch_accumulation_per_replica=1")
        two.train("tokens.train_steps=8", "tokens.micro_batch_size=1", "tokens.batch_accumulation_per_replica=2")
        # The same sums in another order: f32 rounding (6e-8 each) over a few hundred terms, carried through eight
        # steps of a smooth loss, stays far below 1e-5.
        for a, b in zip(one.metrics(), two.metrics()):
            for key in ("loss", "grad_norm"):
                self.assertLessEqual(abs(a[key] - b[key]), 1e-5 * abs(a[key]), (a, b))
            self.assertEqual(a["tokens"], b["tokens"])

    def test_recompute_changes_no_bit(self):
        a, b = self.run_folder(), self.run_folder()
        a.train("tokens.train_steps=5")
        b.train("tokens.train_steps=5", "parallelism.recompute_layer=true")
        self.assert_same_run(a, b, 5)

    @device.cpu_alone
    def test_early_stopping_keeps_the_best(self):
        r = self.run_folder()
        # A rate of 0 after the warm-up step: validation can't improve twice.
        out = r.train("tokens.train_steps=50", *r.validation(2), "validation.patience=3", "--json",
                      "optimizer.learning_rate_scheduler.learning_rate=0",
                "optimizer.learning_rate_scheduler.min_decay_lr=0").stdout
        summary = json.loads(out.splitlines()[-1])
        self.assertEqual((summary["why"], summary["step"]), ("no improvement", 8))
        self.assertTrue(os.path.exists(r.path("best", "model.safetensors")))
        self.assertEqual(r.steps(), [8])
        vals = [m["val_loss"] for m in r.metrics() if "val_loss" in m]
        self.assertEqual(len(vals), 4)
        self.assertEqual(summary["best_val_loss"], vals[0])
        r.train("tokens.train_steps=50", *r.validation(2), "validation.patience=3",
                "optimizer.learning_rate_scheduler.learning_rate=0",
                "optimizer.learning_rate_scheduler.min_decay_lr=0")
        self.assertEqual(r.metrics()[-1]["step"], 8)

    @device.cpu_alone
    def test_keep_last_and_saves(self):
        r = self.run_folder()
        r.train("tokens.train_steps=7", "checkpoints.checkpoint_interval=2", "checkpoints.keep_last=2",
                "checkpoints.save_initial_state=true")
        self.assertEqual(r.steps(), [6, 7])
        r = self.run_folder()
        r.train("tokens.train_steps=3", "checkpoints.checkpoint_interval=2", "checkpoints.save_initial_state=true",
                "checkpoints.save_final_state=false")
        self.assertEqual(r.steps(), [0, 2])

    @device.cpu_alone
    def test_start_weights(self):
        first = self.run_folder()
        first.train("tokens.train_steps=4")
        shutil.rmtree(first.path("4", "trainer"))
        second = self.run_folder()
        second.train("tokens.train_steps=2", "checkpoints.resume_checkpoint_path=" + first.path("4"))
        self.assertLess(second.metrics()[0]["loss"], first.metrics()[0]["loss"] - 0.1)
        self.assertEqual(second.metrics()[0]["step"], 1)
        said = self.run_folder().train("checkpoints.resume_checkpoint_path=" + first.path("4"),
                                       "model.model_config.vocab_size=300", code=1).stderr
        self.assertIn("vocab_size is 300 but the start weights", said)
        said = self.run_folder().train("checkpoints.resume_checkpoint_path=" + first.dir, code=1).stderr
        self.assertIn("is no model: it is neither", said)

    @device.cpu_alone
    def test_start_weights_of_other_formats(self):
        first = self.run_folder()
        first.train("tokens.train_steps=4")
        shutil.rmtree(first.path("4", "trainer"))
        losses = []
        for name, to in (("4", None), ("nanotron", "nanotron"), ("x.gguf", "gguf")):
            if to:
                subprocess.run([os.path.join(APPS, "convert"), first.path("4"), first.path(name), "--to", to],
                               env=ENV, check=True, capture_output=True)
            run = self.run_folder()
            run.train("tokens.train_steps=2", "checkpoints.resume_checkpoint_path=" + first.path(name))
            losses.append([row["loss"] for row in run.metrics()])
        self.assertEqual(losses[0], losses[1])
        self.assertEqual(losses[0], losses[2])

    @device.cpu_alone
    def test_native_start_checkpoint_resumes_everything_unless_told(self):
        first, whole = self.run_folder(), self.run_folder()
        decay = "optimizer.learning_rate_scheduler.lr_decay_steps=7"
        first.train(decay, "tokens.train_steps=4")
        whole.train(decay, "tokens.train_steps=6")
        start = "checkpoints.resume_checkpoint_path=" + first.path("4")
        second, third = self.run_folder(), self.run_folder()
        second.train(decay, "tokens.train_steps=6", start)
        self.assertEqual(second.metrics(), whole.metrics()[4:])
        third.train(decay, "tokens.train_steps=6", start, "checkpoints.load_lr_scheduler=false")
        self.assertEqual(third.metrics()[0]["lr"], 0)

    def teacher(self):
        r = self.run_folder()
        r.train("tokens.train_steps=20", "tokens.micro_batch_size=8")
        shutil.rmtree(r.path("20", "trainer"))
        return r.path("20")

    def test_distill_from_the_start_weights(self):
        r = self.run_folder()
        r.train("tokens.train_steps=8", "distill.weight=0.25", "distill.temperature=2",
                "checkpoints.resume_checkpoint_path=" + self.teacher())
        rows = r.metrics(("loss", "kl", "ce"))
        for row in rows:  # f32 losses of about 5: 1e-6 of that is two roundings
            self.assertLess(abs(row["loss"] - 0.25 * row["kl"] - 0.75 * row["ce"]), 1e-5)
        self.assertLess(abs(rows[0]["kl"]), 1e-5)  # the same model
        self.assertGreater(rows[-1]["kl"], 1e-5)   # not any more

    @device.cpu_alone
    def test_distill_learns_the_teacher(self):
        teacher, same = self.teacher(), ["tokens.train_steps=30", "distill.weight=1",
                                      "optimizer.learning_rate_scheduler.lr_decay_steps=20"]
        whole, parts = self.run_folder(), self.run_folder()
        whole.train(*same, "distill.teacher=" + teacher)
        kl = [row["kl"] for row in whole.metrics(("kl",))]
        self.assertLess(sum(kl[-5:]), 0.7 * sum(kl[:5]))
        self.assertEqual(kl, [row["loss"] for row in whole.metrics()])
        parts.train(*same, "distill.teacher=" + teacher, "tokens.train_steps=11")
        parts.train(*same, "distill.teacher=" + teacher)
        self.assert_same_run(whole, parts, 30)
        self.assertEqual(kl, [row["kl"] for row in parts.metrics(("kl",))])

    @device.cpu_alone
    def test_distill_teachers_that_cannot_teach(self):
        teacher = self.teacher()
        for more, words in ((["distill.teacher=" + teacher, "model.model_config.vocab_size=300"],
                             "a teacher with a vocabulary of 256 cannot teach a model with one of 300"),
                            (["distill.teacher=/no/such"], "/no/such: there is no teacher here; see distill.teacher")):
            said = self.run_folder().train(*more, code=1).stderr.strip()
            self.assertIn(words, said.splitlines()[-1])
        plan = self.run_folder().train("distill.teacher=" + teacher, "--dry-run", "--json").stdout
        plan = json.loads(plan.splitlines()[-1])
        self.assertEqual(plan["teacher_bytes"], plan["weight_bytes"])

    @device.cpu_alone
    def test_data_stages(self):
        r = self.run_folder()
        r.write_tokens("second.ds", b"abcd" * 2000)
        stage = "{name: b, start_training_step: 4, data: {dataset: {dataset_folder: %s}, seed: 1}}" % os.path.join(
            r.dir, "second.ds")
        with open(os.path.join(r.dir, "c.yaml"), "w") as f:
            f.write("include: %s\n" % os.path.abspath("configs/tiny.yaml"))
        first = "{name: a, start_training_step: 1, data: {dataset: {dataset_folder: %s}, seed: 1}}" % os.path.join(
            r.dir, "train.ds")
        r.train("tokens.train_steps=6", "data_stages=[%s, %s]" % (first, stage),
                "optimizer.learning_rate_scheduler.learning_rate=0",
                "optimizer.learning_rate_scheduler.min_decay_lr=0")
        losses = [m["loss"] for m in r.metrics()]
        self.assertEqual(len(set(losses[:3])), 3)  # text differs from sample to sample
        only = self.run_folder()
        only.train("tokens.train_steps=3", "data_stages=[%s]" % stage.replace("start_training_step: 4",
                                                                                "start_training_step: 1"),
                   "optimizer.learning_rate_scheduler.learning_rate=0",
                "optimizer.learning_rate_scheduler.min_decay_lr=0")
        self.assertEqual(losses[3:], [m["loss"] for m in only.metrics()])

    def test_freeze_non_attn(self):
        r = self.run_folder()
        r.train("tokens.train_steps=3", "optimizer.freeze_non_attn=true", "checkpoints.save_initial_state=true")
        before, after = self.tensors(r, "0"), self.tensors(r, "3")
        self.assertEqual(set(before), set(after))
        for name in before:
            trained = "self_attn" in name or "norm" in name
            self.assertEqual(before[name] != after[name], trained, name)

    @device.cpu_alone
    def test_freeze_embedding(self):
        r = self.run_folder()
        r.train("tokens.train_steps=3", "optimizer.freeze_embedding=true", "checkpoints.save_initial_state=true")
        before, after = self.tensors(r, "0"), self.tensors(r, "3")
        for name in before:
            self.assertEqual(before[name] == after[name], name == "model.embed_tokens.weight", name)

    @device.cpu_alone
    def test_latent_attention_is_attention_too(self):
        r = self.run_folder()
        r.write_tokens("small.ds", [b % 48 for b in open("assets/wikitext-2/valid.tokens", "rb").read()[:20000]])
        shape = {"vocab_size": 48, "hidden_size": 64, "intermediate_size": 32, "num_hidden_layers": 2,
                 "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "tie_word_embeddings": "false"}
        more = ["model.model_config.%s=%s" % item for item in shape.items()] + [
            "checkpoints.resume_checkpoint_path=" + os.path.abspath("test/fixtures/tiny-mla/nanotron-era/hf_v4_m7"),
            "data_stages.0.data.dataset.dataset_folder=" + os.path.join(r.dir, "small.ds"),
            "distill.teacher=" + os.path.abspath("test/fixtures/tiny-mla/base"), "optimizer.freeze_non_attn=true"]
        plan = json.loads(r.train(*more, "--dry-run", "--json").stdout.splitlines()[-1])
        r.train(*more, "tokens.train_steps=20", "checkpoints.save_initial_state=true")
        before, after = self.tensors(r, "0"), self.tensors(r, "20")
        trained = 0
        for name in before:
            wanted = "self_attn" in name or "norm" in name
            self.assertEqual(before[name] != after[name], wanted, name)
            trained += wanted * len(before[name]) // 4
        self.assertIn("model.layers.1.self_attn.W_down_k.weight", before)
        self.assertEqual(plan["trained_parameters"], trained)
        self.assertEqual(plan["parameters"], sum(len(v) for v in before.values()) // 4)
        kl = [row["kl"] for row in r.metrics(("kl",))]
        self.assertLess(sum(kl[-5:]), sum(kl[:5]))  # it comes nearer to the model it was made from

    def tensors(self, run, step):
        data = run.bytes_of(step, "model.safetensors")
        n = struct.unpack("<Q", data[:8])[0]
        header = json.loads(data[8:8 + n])
        return {k: data[8 + n + v["data_offsets"][0]:8 + n + v["data_offsets"][1]] for k, v in header.items()
                if k != "__metadata__"}

    @device.cpu_alone
    def test_text_is_tokenised_once(self):
        r = self.run_folder()
        text = os.path.join(r.dir, "text.txt")
        with open(text, "w") as f:
            f.write(" ".join("the cat number %d sat on the mat" % i for i in range(400)))
        more = ["data_stages.0.data.dataset.dataset_folder=" + text, "model.model_config.vocab_size=49152",
                "tokenizer.tokenizer_name_or_path=assets/tokenizer"]
        r.train("tokens.train_steps=1", *more)
        cached = glob.glob(r.path("cache", "text-*.ds"))
        self.assertEqual(len(cached), 1)
        stamp = os.stat(cached[0]).st_mtime_ns
        r.train("tokens.train_steps=2", *more)
        self.assertEqual([os.stat(c).st_mtime_ns for c in glob.glob(r.path("cache", "*"))], [stamp])
        with open(text, "a") as f:
            f.write(" and so on")
        r.train("tokens.train_steps=3", *more)
        self.assertEqual(len(glob.glob(r.path("cache", "text-*.ds"))), 2)
        with open("assets/tokenizer/tokenizer.json", "rb") as f:
            self.assertEqual(r.bytes_of("2", "tokenizer.json"), f.read())

    @device.cpu_alone
    def test_bad_input_is_one_sentence(self):
        r = self.run_folder()
        for more, words in ((["tokens.micro_batchsize=2"], "did you mean tokens.micro_batch_size?"),
                            (["data_stages.0.data.dataset.dataset_folder=/no/such"], "no such data set"),
                            (["tokens.sequence_length=200000", "model.model_config.max_position_embeddings=200000"],
                             "has no whole sample of 200000 + 1 tokens"),
                            (["parallelism.tp=2"], "parallelism.tp is 2")):
            said = r.train(*more, code=1).stderr.strip()
            self.assertIn(words, said)
            self.assertEqual(len(said.splitlines()), 1, said)
        self.assertEqual(subprocess.run([TRAIN], capture_output=True).returncode, 2)
        self.assertEqual(subprocess.run([TRAIN, "configs/tiny.yaml", "nonsense"], capture_output=True).returncode, 2)

    @device.cpu_alone
    def test_dry_run(self):
        r = self.run_folder()
        out = subprocess.run([TRAIN, "configs/clm-60m.yaml", "--dry-run", "--json"], capture_output=True, text=True)
        plan = json.loads(out.stdout.splitlines()[-1])
        self.assertEqual(plan["parameters"], 82101120)
        self.assertEqual(plan["tokens_per_step"], 4 * 2 * 512)
        self.assertEqual(plan["optimizer_bytes"], 12 * 82101120)
        r.train("--dry-run")
        self.assertFalse(os.path.exists(r.folder))

    @device.cpu_alone
    def test_help_has_an_example(self):
        out = subprocess.run([TRAIN, "--help"], capture_output=True, text=True)
        self.assertEqual(out.returncode, 0)
        self.assertIn("train configs/clm-60m.yaml", out.stdout)


if __name__ == "__main__":
    unittest.main(verbosity=1)
