#!/usr/bin/env python3
"""The golden runs: 20 losses of configs/tiny.yaml and configs/tiny-mla.yaml, against test/golden/NAME.txt and against
themselves.

usage: test_golden.py APPS_FOLDER [--write]     (--write makes the files of test/golden anew, for a change that is
                                                 meant to alter numbers)
"""
import json
import os
import subprocess
import sys
import tempfile

import device

APPS = os.path.abspath(sys.argv[1] if len(sys.argv) > 1 else os.environ.get("LLATTE_APPS", "build/apps"))
RUNS = ("tiny", "tiny-mla")
# On one machine, with one thread count, two runs agree to the last bit. Between instruction sets they can't: a wider
# vector sums in another order, and libraries choose kernels by CPU. Each f32 sum of n terms then differs by about
# sqrt(n) * 6e-8, 1e-6 for the longest here (the logits' 49,152 entries enter through their logarithm), and 20 steps
# of training, at rates that do not amplify, stay within ten times that.
TOLERANCE = 1e-5


def losses(name):
    with tempfile.TemporaryDirectory(prefix="llatte-golden-") as folder:
        command = [os.path.join(APPS, "train"), "configs/%s.yaml" % name, *device.ARGS, "checkpoints.checkpoints_path=" + folder,
                   "checkpoints.save_final_state=false", "checkpoints.checkpoint_interval=1000", "--threads", "2"]
        subprocess.run(command, check=True, stderr=subprocess.PIPE, timeout=300,
                       env=dict(os.environ, OMP_WAIT_POLICY="passive"))
        with open(os.path.join(folder, "metrics.jsonl")) as f:
            return [json.loads(line)["loss"] for line in f]


def golden_file(name):
    return "test/golden/%s.txt" % name


def read_golden(name):
    with open(golden_file(name)) as f:
        return [float.fromhex(line) for line in f if not line.startswith("#")]


def check(name):
    """On the GPU one run: that two agree is seen where it is quick (test_train.py)."""
    first, golden = losses(name), read_golden(name)
    second = losses(name) if device.NAME == "cpu" else first
    if first != second:
        print(name, "two runs differ:", [(i + 1, a, b) for i, (a, b) in enumerate(zip(first, second)) if a != b])
        return False
    far = [(i + 1, a, b) for i, (a, b) in enumerate(zip(first, golden)) if not abs(a - b) <= TOLERANCE * abs(b)]
    if len(golden) != 20 or len(first) != 20 or far:
        print(name, "the run left its golden numbers at steps", far)
        return False
    print("%s, 20 losses: two runs identical, %d of 20 equal to the golden ones to the last bit" %
          (name, sum(a == b for a, b in zip(first, golden))))
    return True


def write(name):
    with open(golden_file(name), "w") as f:
        f.write("# loss of steps 1 to 20 of configs/%s.yaml, hex floats; written by test/apps/test_golden.py --write\n"
                % name)
        f.writelines(x.hex() + "\n" for x in losses(name))
    return True


def main():
    done = [write(name) if "--write" in sys.argv else check(name) for name in RUNS]
    return 0 if all(done) else 1


if __name__ == "__main__":
    sys.exit(main())
