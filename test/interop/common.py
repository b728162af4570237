"""What the comparisons with other programs share: our programs' runs and logits, and the count of failures."""
import array
import os
import subprocess
import sys

import numpy as np
from safetensors.numpy import load_file

APPS = sys.argv[1]
failures = 0


def run(app, *args):
    p = subprocess.run([os.path.join(APPS, app), *map(str, args)], capture_output=True, text=True)
    if p.returncode:
        sys.exit(f"{app} {args}: {p.stderr}")
    return p.stdout


def report(what, error, bound):
    global failures
    ok = error <= bound  # False for NaN
    failures += not ok
    print(f"{'ok  ' if ok else 'FAIL'} {what}: {error:.2e} (at most {bound:.0e})", flush=True)


def our_logits(model, ids, folder):
    data, out = os.path.join(folder, "ids.ds"), os.path.join(folder, "logits.safetensors")
    with open(data, "wb") as f:
        array.array("H", ids).tofile(f)
    run("eval", "logits", model, "--data", data, "--window", len(ids), "--out", out)
    return load_file(out)["logits"][0].astype(np.float64)
