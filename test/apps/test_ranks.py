#!/usr/bin/env python3
"""Many processes as their users meet them: mpirun -np N train, on any number of ranks, killed, stopped and resumed.

usage: test_ranks.py APPS_FOLDER   (from the repository root; Python's standard library and mpirun)
"""
import fcntl
import json
import os
import random
import re
import shutil
import signal
import struct
import subprocess
import tempfile
import time
import unittest

import device
import test_train
from test_train import Run

# Open MPI's names; others ignore them. A core for a rank: this may run on two cores, with other tests.
ENV = dict(test_train.ENV, OMP_NUM_THREADS="1", OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1",
           OMPI_MCA_rmaps_base_oversubscribe="1", OMPI_MCA_hwloc_base_binding_policy="none", ASAN_OPTIONS="detect_leaks=0")
BATCHES = 12  # micro-batches of a step, whatever the number of ranks: 1, 2, 3 and 4 divide it
STEPS = 12
TINY, TOKENIZER = "test/fixtures/tiny-llama/tiny-llama", "test/fixtures/lm-eval/tokenizer"
TEXT = "assets/wikitext-2/test.raw"


def content(path):
    with open(path, encoding="utf-8", errors="replace") as f:
        return f.read()


def floats_of(path):
    """The f32 tensors of a safetensors file."""
    data = open(path, "rb").read()
    begin = 8 + struct.unpack("<Q", data[:8])[0]
    tensors = json.loads(data[8:begin])
    out = {}
    for name, t in tensors.items():
        if name != "__metadata__" and t["dtype"] == "F32":
            a, b = t["data_offsets"]
            out[name] = struct.unpack("<%df" % ((b - a) // 4), data[begin + a:begin + b])
    return out


class RanksRun(Run):
    def ranks_command(self, ranks, *more):
        return ["mpirun", "-np", str(ranks), *self.command(
            "tokens.micro_batch_size=1", "tokens.batch_accumulation_per_replica=%d" % (BATCHES // ranks),
            "tokens.train_steps=%d" % STEPS, "model.ddp_bucket_cap_mb=1", *more)]

    def start(self, ranks, *more):
        # A group of its own, so that all of it can be killed at once.
        return subprocess.Popen(self.ranks_command(ranks, *more), env=ENV, stderr=subprocess.PIPE, text=True,
                                stdout=subprocess.PIPE, start_new_session=True)

    def train_on(self, ranks, *more, code=0):
        p = self.start(ranks, *more)
        out, err = p.communicate(timeout=120)
        assert (p.returncode != 0) == bool(code), "exit %d: %s" % (p.returncode, err)
        return out, err

    def recorded(self):
        try:
            return self.bytes_of("metrics.jsonl").count(b"\n")
        except OSError:
            return 0

    def ranks_pids(self):
        """Of this run's processes, by rank."""
        found = {}
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                words, environment = (content("/proc/%s/%s" % (pid, name)).split("\0") for name in ("cmdline", "environ"))
            except OSError:
                continue
            if words[0] == test_train.TRAIN and any(self.folder in w for w in words):
                found.update((int(e.split("=")[1]), int(pid)) for e in environment if e.startswith("OMPI_COMM_WORLD_RANK="))
        return found


class RanksCase(unittest.TestCase):
    def run_folder(self):
        run = RanksRun()
        self.addCleanup(shutil.rmtree, run.dir, ignore_errors=True)
        return run

    def whole(self, ranks, *more):
        run = self.run_folder()
        run.train_on(ranks, *more)
        return run

    # The same f32 gradients added up in another order, through twelve steps: far below 1e-5 of a loss of about 4.
    def assert_near(self, run, want):
        got = run.metrics()
        self.assertEqual([m["step"] for m in got], [m["step"] for m in want])
        for a, b in zip(got, want):
            for key in ("loss", "grad_norm", "val_loss"):
                if key in b:
                    self.assertLessEqual(abs(a[key] - b[key]), 1e-5 * abs(b[key]), (key, a, b))
            self.assertEqual(a["tokens"], b["tokens"])

    def killed(self, ranks, after, whom, *more):
        """Starts a run; when `after` steps are recorded, whom(run, mpirun) kills. False if it was over before."""
        run = self.run_folder()
        p = run.start(ranks, *more)
        while p.poll() is None and run.recorded() < after:
            time.sleep(0.001)
        if p.poll() is None:
            whom(run, p)
        began = time.time()
        err = p.communicate(timeout=60)[1]
        return run, p.returncode, err, time.time() - began

    def check_that_a_rank_that_hangs_is_named(self):
        def stop_rank_1(run, mpirun):
            os.kill(run.ranks_pids()[1], signal.SIGSTOP)

        # Long enough for a step on the stand-in GPU under a sanitizer, beside another test.
        run, code, err, seconds = self.killed(2, 2, stop_rank_1, "parallelism.timeout_s=4", "tokens.train_steps=100000")
        self.assertNotEqual(code, 0)
        self.assertLess(seconds, 10)
        self.assertRegex(err, r"llatte-train: rank 0: .* 4 s were not enough for rank 1")
        self.assertEqual(err.count("llatte-train:"), 1, err)

    def app(self, ranks, name, *args):
        p = subprocess.run([*(["mpirun", "-np", str(ranks)] if ranks > 1 else []), os.path.join(test_train.APPS, name),
                            *args, "--json"], env=ENV, capture_output=True, text=True)
        assert p.returncode == 0, p.stderr
        return json.loads(p.stdout.splitlines()[-1])

    def calibrated(self, ranks, where):
        folder = tempfile.mkdtemp(prefix="llatte-ranks-")
        self.addCleanup(shutil.rmtree, folder)
        out = os.path.join(folder, "c.safetensors")
        self.app(ranks, "calibrate", TINY, "--tokenizer", TOKENIZER, "--text", TEXT, "--seq", "32", "--samples", "7",
                 "--covariance", "--windows-for-gradients", "4", "--out", out, "--device", where)
        self.assertFalse(os.path.exists(out + ".partial"))
        return floats_of(out)

    # Sums of f32 in another order: 2^-24 of the largest, in sums of hundreds.
    def assert_same_sums(self, got, want):
        self.assertEqual(sorted(got), sorted(want))
        for name, numbers in want.items():
            largest = max(map(abs, numbers))
            for a, b in zip(got[name], numbers):
                self.assertLessEqual(abs(a - b), 1e-5 * largest, name)


def gpus():
    if "emulated" in test_train.APPS:
        return 16  # as many as there are processes
    try:
        return subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True).stdout.count("UUID: GPU")
    except OSError:
        return 0


@device.on_cuda
@unittest.skipIf(device.NAME == "cuda" and gpus() < 2, "needs a GPU for each rank")
class DeviceRanksTest(RanksCase):
    """Ranks whose models are on GPUs share tensors by NCCL."""
    FEW = ["tokens.train_steps=3", "tokens.sequence_length=8"]

    def test_two_ranks_train_as_one_on_the_cpu(self):
        alone = self.run_folder()
        alone.device = "cpu"
        alone.train_on(1, *self.FEW, "tokens.batch_accumulation_per_replica=2", *alone.validation(3))
        for stage in (0, 1):
            run = self.run_folder()
            run.train_on(2, *self.FEW, "tokens.batch_accumulation_per_replica=1", "optimizer.zero_stage=%d" % stage,
                         *run.validation(3))
            self.assert_near(run, alone.metrics())
            self.assertEqual(run.leftovers(), [])

    def test_what_two_ranks_have_saved_one_goes_on_from(self):
        more = [*self.FEW, "checkpoints.checkpoint_interval=1", "model.dtype=bfloat16", "optimizer.zero_stage=1"]
        run = self.run_folder()
        run.train_on(2, *more, "tokens.batch_accumulation_per_replica=1")
        want = run.metrics()
        shutil.rmtree(run.path("3"))
        run.train_on(1, *more, "tokens.batch_accumulation_per_replica=2")
        self.assertEqual(run.steps(), [1, 2, 3])
        self.assert_near(run, want)

    def test_two_ranks_calibrate_as_one_on_the_cpu(self):
        self.assert_same_sums(self.calibrated(2, device.NAME), self.calibrated(1, "cpu"))

    def test_a_rank_that_is_killed_ends_all(self):
        def kill_rank_1(run, mpirun):
            os.kill(run.ranks_pids()[1], signal.SIGKILL)

        run, code, err, seconds = self.killed(2, 2, kill_rank_1, "tokens.train_steps=100000")
        self.assertNotEqual(code, 0)
        self.assertLess(seconds, 10, err)
        self.assertEqual(run.ranks_pids(), {})

    def test_a_rank_that_hangs_is_named(self):
        self.check_that_a_rank_that_hangs_is_named()

    def test_a_loss_that_is_not_finite_ends_all_with_one_message(self):
        err = self.run_folder().train_on(2, "optimizer.learning_rate_scheduler.learning_rate=1e30", code=1)[1]
        self.assertEqual(err.count("llatte-train:"), 1, err)


@device.cpu_alone
class RanksTest(RanksCase):
    def test_any_number_of_ranks_trains_the_same(self):
        want = None
        for ranks in (1, 2, 3, 4):
            for stage in (0, 1):
                run = self.run_folder()
                run.train_on(ranks, "optimizer.zero_stage=%d" % stage, *run.validation(5))
                want = want or run.metrics()
                self.assert_near(run, want)
                self.assertEqual(run.leftovers(), [])

    def killed_and_resumed(self, rng, whom, *more, says=""):
        """...and resumes it on another number of ranks, or on as many: the loss of the run that nothing disturbed."""
        for i in range(20):
            ranks, then = rng.sample((1, 2, 3, 4), 2) if i % 4 else (2, 2)
            for _ in range(10):  # a busy machine may look away until the run is over
                run, code, err, seconds = self.killed(ranks, rng.randrange(1, STEPS - 2), whom, *more)
                if code != 0:
                    break
            self.assertNotEqual(code, 0)
            self.assertLess(seconds, 10, err)
            self.assertTrue(re.search(says, err), err)
            run.train_on(then, *more)
            self.assert_near(run, self.want)
            if ranks == then:
                self.assertEqual(run.metrics(), self.want_2)
            self.assertEqual(run.leftovers(), [])

    def test_kill_9_of_a_rank(self):
        rng = random.Random(8)
        more = ["checkpoints.checkpoint_interval=3", "optimizer.zero_stage=1"]
        self.want, self.want_2 = self.whole(1, *more).metrics(), self.whole(2, *more).metrics()

        def a_rank(run, mpirun):
            pids = run.ranks_pids()
            if pids:
                os.kill(pids[rng.choice(sorted(pids))], signal.SIGKILL)

        self.killed_and_resumed(rng, a_rank, *more, says=r"process rank \d")  # mpirun's words

    def test_kill_9_of_all_while_they_save(self):
        more = ["checkpoints.checkpoint_interval=1", "optimizer.zero_stage=1"]
        self.want, self.want_2 = self.whole(1, *more).metrics(), self.whole(2, *more).metrics()

        def all_of_them(run, mpirun):
            while mpirun.poll() is None and not run.leftovers():  # a checkpoint that is being written
                pass
            # mpirun gives each rank a group of its own.
            for pid in [mpirun.pid, *run.ranks_pids().values()]:
                os.kill(pid, signal.SIGKILL)

        self.killed_and_resumed(random.Random(9), all_of_them, *more)

    def test_a_rank_that_hangs_is_named(self):
        self.check_that_a_rank_that_hangs_is_named()

    def test_a_loss_that_is_not_finite_ends_all_with_one_message(self):
        run = self.run_folder()
        err = run.train_on(2, "optimizer.learning_rate_scheduler.learning_rate=1e30", code=1)[1]
        self.assertEqual(err.count("llatte-train:"), 1, err)
        self.assertRegex(err, r"llatte-train: rank 0: step \d+: the (loss of rank \d|gradient norm) is -?(nan|inf)")

    def test_what_all_ranks_find_wrong_is_said_once(self):
        for wrong in ("parallelism.dp=3", "no.such.key=1", "tokens.train_steps"):
            err = self.run_folder().train_on(2, wrong, code=1)[1]
            self.assertEqual(err.count("llatte-train: rank"), 1, err)

    def test_what_one_rank_finds_wrong_ends_all(self):
        run = self.run_folder()
        os.mkdir(run.folder)
        held = os.open(run.folder, os.O_RDONLY)
        self.addCleanup(os.close, held)
        fcntl.flock(held, fcntl.LOCK_EX)  # rank 0 alone asks for this lock; rank 1 waits for rank 0
        began = time.time()
        err = run.train_on(2, code=1)[1]
        self.assertLess(time.time() - began, 10)
        self.assertEqual(err.count("llatte-train:"), 1, err)
        self.assertRegex(err, "llatte-train: rank 0: .*is in use by another process")

    def test_a_signal_to_mpirun_saves_on_all_ranks(self):
        run = self.run_folder()
        p = run.start(2, "tokens.train_steps=100000")
        while p.poll() is None and run.recorded() < 2:
            time.sleep(0.001)
        p.send_signal(signal.SIGUSR1)
        err = p.communicate(timeout=60)[1]
        self.assertEqual(p.returncode, 0, err)
        self.assertEqual(run.steps()[-1], run.metrics()[-1]["step"])
        self.assertIn("stopped", err)

    # Batches are the same, whoever takes them.
    def test_eval_shares_windows_out(self):
        args = ["ppl", TINY, "--tokenizer", TOKENIZER, "--text", TEXT, "--window", "64", "--max-windows", "200"]
        alone = self.app(1, "eval", *args)
        for ranks in (2, 3):
            many = self.app(ranks, "eval", *args)
            for key in ("nll", "tokens", "windows", "window_nlls"):
                self.assertEqual(many[key], alone[key])

    def test_calibrate_shares_windows_out(self):
        want = self.calibrated(1, "cpu")
        for ranks in (2, 3):
            self.assert_same_sums(self.calibrated(ranks, "cpu"), want)

    def test_other_programs_are_one_process(self):
        p = subprocess.run(["mpirun", "-np", "2", os.path.join(test_train.APPS, "tokenize"), "--help"], env=ENV,
                           capture_output=True, text=True)
        self.assertNotEqual(p.returncode, 0)
        self.assertIn("this program is one process, but several were started", p.stderr)


if __name__ == "__main__":
    unittest.main(verbosity=1)
