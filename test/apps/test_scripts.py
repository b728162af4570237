"""The job scripts for clusters: they are what scripts/make-jobs writes, they are sound bash, and each element of the
job array runs its experiment. Launchers and programs are stand-ins that write down how they were called."""
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

sys.argv.pop(1)  # the apps folder: no program of ours is needed
ROOT = pathlib.Path(__file__).resolve().parents[2]
EXPERIMENTS = ["baseline", "original", "latent", "aligned"]
SCHEDULERS = {  # script: its launcher, and what the scheduler tells a job
    "slurm.sh": ("srun", "SLURM_SUBMIT_DIR", "SLURM_ARRAY_TASK_ID", {"SLURM_CPUS_PER_TASK": "3"}),
    "pbs.sh": ("mpirun", "PBS_O_WORKDIR", "PBS_ARRAY_INDEX", {"NCPUS": "3"}),
}
# The launcher drops its own options and runs the program, as the real ones do.
LAUNCHER = """#!/usr/bin/env bash
echo "$(basename "$0") with $OMP_NUM_THREADS threads" >>"$LOG"
while [[ $1 == -* ]]; do case $1 in -np | --bind-to | -x) shift 2 ;; *) shift ;; esac; done
exec "$@"
"""
PROGRAM = """#!/usr/bin/env bash
echo "$(basename "$0") $*" >>"$LOG"
[[ $(basename "$0") == eval ]] && echo '{"ppl": 1}'
run=${1/configs/runs}
[[ $(basename "$0") == eval || ${BEST:-1} == 0 ]] || mkdir -p "${run%.yaml}/best"
"""


class Scripts(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.dir = pathlib.Path(folder.name)

    def executable(self, path, text):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)

    def test_the_scripts_are_what_the_template_gives(self):
        subprocess.run([ROOT / "scripts/make-jobs", self.dir], check=True)
        self.assertEqual(sorted(p.name for p in self.dir.iterdir()), sorted(SCHEDULERS))
        for name in SCHEDULERS:
            kept, made = (folder / name for folder in (ROOT / "scripts", self.dir))
            self.assertEqual(kept.read_text(), made.read_text(), "run scripts/make-jobs")
            self.assertTrue(os.access(ROOT / "scripts" / name, os.X_OK))

    def test_they_are_sound_bash(self):
        for name in SCHEDULERS:
            self.assertEqual(subprocess.run(["bash", "-n", ROOT / "scripts" / name]).returncode, 0)
            if shutil.which("shellcheck"):
                r = subprocess.run(["shellcheck", ROOT / "scripts" / name], capture_output=True, text=True)
                self.assertEqual(r.returncode, 0, r.stdout)

    def job(self, script, index, **more):
        launcher, folder, element, words = SCHEDULERS[script]
        for program in ("train", "eval"):
            self.executable(self.dir / "build/apps" / program, PROGRAM)
        self.executable(self.dir / "bin" / launcher, LAUNCHER)
        if not (self.dir / "configs").exists():
            shutil.copytree(ROOT / "configs", self.dir / "configs")
        log = self.dir / "log"
        log.write_text("")
        path = f"{self.dir / 'bin'}:{os.environ['PATH']}"
        env = {"PATH": path, "LOG": str(log), folder: str(self.dir), **words, **more}
        if index is not None:
            env[element] = str(index)
        r = subprocess.run([ROOT / "scripts" / script], env=env, capture_output=True, text=True, timeout=60)
        return r, log.read_text().splitlines()

    def test_every_element_runs_its_experiment(self):
        for script, (launcher, *_) in SCHEDULERS.items():
            elements = re.search(r"(?:--array=|-J )0-(\d+)", (ROOT / "scripts" / script).read_text())
            self.assertEqual(int(elements[1]) + 1, len(EXPERIMENTS))
            for model in ("clm-60m", "smollm-135m"):
                for index, name in enumerate(EXPERIMENTS):
                    r, calls = self.job(script, index, MODEL=model)
                    self.assertEqual(r.returncode, 0, r.stderr)
                    best = f"runs/hla/{model}/{name}/best"
                    self.assertEqual(calls, [
                        f"{launcher} with 3 threads", f"train configs/hla/{model}/{name}.yaml --resume auto",
                        f"{launcher} with 3 threads",
                        f"eval ppl {best} --text assets/wikitext-2/test.raw --window 512 --json"])
                    self.assertIn('"ppl"', (self.dir / f"runs/hla/{model}/{name}/ppl.json").read_text())

    def test_several_ranks_share_the_micro_batches_of_a_step(self):
        nodes = self.dir / "nodes"
        nodes.write_text("node1\nnode2\n")
        for script, tell in (("slurm.sh", {"SLURM_NTASKS": "2"}), ("pbs.sh", {"PBS_NODEFILE": str(nodes)})):
            for model, batches in (("clm-60m", 1), ("smollm-135m", 2)):
                r, calls = self.job(script, 0, MODEL=model, **tell)
                self.assertEqual(r.returncode, 0, r.stderr)
                self.assertIn(f"train configs/hla/{model}/baseline.yaml tokens.batch_accumulation_per_replica={batches} "
                              "optimizer.zero_stage=1 --resume auto", calls)
        r, calls = self.job("slurm.sh", 0, SLURM_NTASKS="3")
        self.assertEqual((r.returncode, calls), (1, []))
        self.assertIn("3 ranks can't share 2 micro-batches evenly", r.stderr)

    def test_what_is_missing_is_said(self):
        for script in SCHEDULERS:
            r, calls = self.job(script, 0, MODEL="llama-9b")
            self.assertEqual((r.returncode, calls), (1, []))
            self.assertIn("configs/hla/llama-9b/baseline.yaml is missing", r.stderr)
            r, calls = self.job(script, None)
            self.assertEqual((r.returncode != 0, calls), (True, []))
            self.assertIn("submitted without its job array", r.stderr)
            r, calls = self.job(script, 1, BEST="0")  # cut off before it was validated
            self.assertEqual((r.returncode, len(calls)), (0, 2))
            self.assertIn("submit again to go on", r.stderr)


unittest.main()
