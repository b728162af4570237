#!/usr/bin/env python3
"""What it costs to train on several ranks (docs/distributed.md), each figure beside its own baseline, in one run.

    bench/scaling.py [PART...] [--build build] [--rounds 3]

PART: threads   2 ranks of 1 thread beside 1 rank of 2 threads, the same tokens a step
      network   2 ranks on two hosts (network namespaces; needs root, ip and tc): a step beside computing alone and
                summing alone, with buckets and with all gradients in one, where computing takes longer and where
                summing does (--links), and what the formula of docs/distributed.md makes of the two
      model     on paper: a step on 1 to 1024 GPUs
Without PART: all. Figures are medians over rounds of bench/train_step, taken in turn.
"""
import argparse
import json
import math
import os
import shlex
import statistics
import subprocess
import tempfile

MPI = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "OMPI_MCA_rmaps_base_oversubscribe": "1",
       "OMPI_MCA_hwloc_base_binding_policy": "none"}


def last_json(command, **environment):
    out = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env={**os.environ, **MPI, **environment})
    return json.loads(out.stdout.strip().splitlines()[-1])


def median(rows, key):
    return statistics.median(key(r) for r in rows)


def tokens_per_s(r):
    return r["tok_s"]["med"]


def threads(o):
    step = [o.step, "--steps", "5", "--seq", "512"]
    kinds = {
        "1 rank x 2 threads": (["mpirun", "-np", "1", *step, "--batch", "4"], "2"),
        "2 ranks x 1 thread": (["mpirun", "-np", "2", *step, "--batch", "2"], "1"),
        "2 ranks x 1 thread, zero_stage 1": (["mpirun", "-np", "2", *step, "--batch", "2", "--zero-stage", "1"], "1"),
    }
    rows = {name: [] for name in kinds}
    for _ in range(o.rounds):
        for name, (command, n) in kinds.items():
            rows[name].append(last_json(command, OMP_NUM_THREADS=n))
    base = median(rows["1 rank x 2 threads"], tokens_per_s)
    print("| clm-60m, f32, 4 x 512 tokens a step | tokens/s | beside 1 rank | s to sum gradients alone |\n|---|---|---|---|")
    for name, r in rows.items():
        rate = median(r, tokens_per_s)
        print(f"| {name} | {rate:.0f} | {rate / base:.2f} | {median(r, lambda x: x['sum_alone_s']):.2f} |")


class Link:
    """Two hosts, each a network namespace with a name of its own, and a link of so many Mbit/s between them."""
    HOSTS = ("llatte0", "llatte1")

    def __init__(self, mbit):
        for i, host in enumerate(self.HOSTS):
            self.sh(f"ip netns add {host}")
            if i == 0:
                continue
            self.sh("ip link add ll0 netns llatte0 type veth peer name ll1 netns llatte1")
        for i, host in enumerate(self.HOSTS):
            for words in ("ip link set lo up", f"ip addr add 10.77.0.{i + 1}/24 dev ll{i}", f"ip link set ll{i} up",
                          f"tc qdisc add dev ll{i} root tbf rate {mbit}mbit burst 256kb latency 50ms"):
                self.sh(f"ip netns exec {host} {words}")
        self.agent = tempfile.NamedTemporaryFile("w", prefix="llatte-agent-", suffix=".sh", delete=False)
        self.agent.write("#!/bin/sh\nshift\nexec ip netns exec llatte1 unshare --uts sh -c \"hostname llatte1; $*\"\n")
        self.agent.close()
        os.chmod(self.agent.name, 0o755)

    def sh(self, words):
        subprocess.run(shlex.split(words), check=True)

    def mpirun(self, *command):
        words = ["mpirun", "-np", "2", "--host", "10.77.0.1:1,10.77.0.2:1", "--mca", "plm_rsh_agent", self.agent.name,
                 "--mca", "btl", "tcp,self", "--mca", "btl_tcp_if_include", "10.77.0.0/24",
                 "--mca", "oob_tcp_if_include", "10.77.0.0/24", "-x", "OMP_NUM_THREADS",
                 *(w for name in MPI for w in ("-x", name)), *command]
        inside = "hostname llatte0; exec " + " ".join(map(shlex.quote, words))
        return last_json(["ip", "netns", "exec", "llatte0", "unshare", "--uts", "sh", "-c", inside], OMP_NUM_THREADS="1")

    def close(self):
        os.unlink(self.agent.name)
        for host in self.HOSTS:
            subprocess.run(["ip", "netns", "del", host], check=False)


def network(o):
    print("| Mbit/s | x 512 tokens a rank | s computing alone | s summing alone | of the link's rate | s a step, buckets of 25 MiB "
          "| beside the longer | formula | s, one bucket |\n|" + "---|" * 9)
    for mbit, batch in o.links:
        step = [os.path.abspath(o.step), "--steps", "3", "--warmup", "1", "--seq", "512", "--batch", str(batch)]
        link = Link(mbit)
        try:
            rows = {"alone": [], "buckets": [], "one": []}
            for _ in range(o.rounds):
                rows["alone"].append(link.mpirun(*step, "--alone"))
                rows["buckets"].append(link.mpirun(*step))
                rows["one"].append(link.mpirun(*step, "--bucket-mib", "4096"))
        finally:
            link.close()
        alone, buckets, one = (median(r, lambda x: x["step_s"]["med"]) for r in rows.values())
        sums = median(rows["buckets"], lambda x: x["sum_alone_s"])
        backward = median(rows["alone"], lambda x: x["phase_med_s"]["bwd"])
        params = rows["alone"][0]["params"]
        rate = ring(2, 4 * params, 2) / sums * 8e-6
        formula = alone + exposed(sums, CLM_60M_EMBEDDING / params, backward)
        print(f"| {mbit} | {batch} | {alone:.2f} | {sums:.2f} | {rate / mbit:.2f} | {buckets:.2f} | {buckets / max(alone, sums):.2f} "
              f"| {formula:.2f} | {one:.2f} |", flush=True)


# On paper. H100s, 8 a node: bytes/s a GPU can send to its neighbour in a ring, within a node and between nodes, and
# seconds until the first of them arrives. Milliseconds a micro-batch takes are docs/cuda.md's bounds.
NODE, NVLINK, NETWORK = 8, (450e9, 3e-6), (50e9, 10e-6)
CLM_60M_EMBEDDING = 49152 * 384
# parameters, those of the embedding, s forward and backward, s AdamW
MODELS = {"clm-60m, 4 x 512 tokens a micro-batch": (82.1e6, CLM_60M_EMBEDDING, 3.2e-3, 0.7e-3),
          "smollm-1.7b, 4 x 2048": (1.71e9, 49152 * 2048, 215e-3, 15e-3)}
BUCKET = 25 * 2**20
RATE_REACHED = 0.92  # of a link's rate, by `network`, at 1000 and at 200 Mbit/s


def ring(parts, size, ranks):
    """Bytes that a rank sends for `size` bytes: parts 1 reduce-scatter or all-gather, 2 all-reduce."""
    return parts * (ranks - 1) / ranks * size


def exposed(sums, last, backward):
    """Seconds of the sums that backward does not hide: at least those of its last gradient, the embedding's, `last` of all bytes."""
    return max(last * sums, sums - backward)


def collective(parts, size, ranks, buckets=1):
    """Seconds. Bandwidth of a ring, latency of a tree."""
    if ranks == 1:
        return 0
    rate, latency = NVLINK if ranks <= NODE else NETWORK
    return ring(parts, size, ranks) / (rate * RATE_REACHED) + parts * buckets * math.ceil(math.log2(ranks)) * latency


def model_step(params, embedding, compute, adamw, ranks, batches, zero):
    """One step; backward is two thirds of a micro-batch."""
    sums = collective(1 if zero else 2, 4 * params, ranks, 4 * params // BUCKET)
    weights = collective(1, 2 * params, ranks) if zero else 0
    return batches * compute + exposed(sums, embedding / params, 2 / 3 * compute) + adamw / (ranks if zero else 1) + weights


def model(o):
    counts = [1, 2, 8, 16, 64, 256, 1024]
    print("| efficiency on so many GPUs | " + " | ".join(map(str, counts)) + " |\n|" + "---|" * (len(counts) + 1))
    for name, constants in MODELS.items():
        for batches in (1, 8):
            for zero in (0, 1):
                steps = [model_step(*constants, n, batches, zero) for n in counts]
                cells = " | ".join(f"{steps[0] / s:.2f}" for s in steps)
                print(f"| {name}, {batches} a step, zero_stage {zero} | {cells} |")


def mbit_and_batch(text):
    mbit, batch = text.split(":")
    return int(mbit), int(batch)


PARTS = {"threads": threads, "network": network, "model": model}


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("parts", nargs="*", metavar="PART")
    p.add_argument("--build", default="build")
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--links", type=mbit_and_batch, nargs="+", default=[(1000, 8), (200, 1)], metavar="MBIT:BATCH")
    o = p.parse_args()
    unknown = [part for part in o.parts if part not in PARTS]
    if unknown:
        p.error(f"there is no part {unknown[0]}; choose {' or '.join(PARTS)}")
    o.step = os.path.join(o.build, "bench/train_step")
    if o.parts != ["model"]:
        subprocess.run(["cmake", "--build", o.build, "--target", "bench_train_step"], check=True, stdout=subprocess.DEVNULL)
    for part in o.parts or PARTS:
        PARTS[part](o)
        print()


main()
