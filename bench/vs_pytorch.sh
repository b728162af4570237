#!/usr/bin/env bash
# llatte's training step beside PyTorch's, clm-60m on random tokens, on this machine. The programs take turns, ROUNDS
# times, so that a slow minute of the machine hits all of them; the table holds each one's median over the rounds.
#   bench/vs_pytorch.sh [BUILD]       BATCH=2 SEQ=512 STEPS=8 ROUNDS=3 THREADS=2
#   TORCH_PYTHON=... a python that has torch; without it one is installed from PyPI under BUILD/torch
#   COMPILE=0 leaves out torch.compile, which takes minutes to start
# "tuned" is what an expert would set: oneDNN's matrix products, malloc that keeps its memory, huge pages.
set -euo pipefail
cd "$(dirname "$0")/.."
build=${1:-build}
batch=${BATCH:-2} seq=${SEQ:-512} steps=${STEPS:-8} rounds=${ROUNDS:-3}
export OMP_NUM_THREADS=${THREADS:-2}
size=(--batch "$batch" --seq "$seq" --steps "$steps" --threads "$OMP_NUM_THREADS")
tuned=(env MALLOC_TRIM_THRESHOLD_=-1 MALLOC_MMAP_MAX_=0 MALLOC_TOP_PAD_=268435456 GLIBC_TUNABLES=glibc.malloc.hugetlb=1)

cmake --build "$build" --target bench_train_step -j"$(nproc)" >&2
if [[ -z ${TORCH_PYTHON:-} ]]; then
  TORCH_PYTHON=$build/torch/bin/python
  if ! [[ -x $TORCH_PYTHON ]] || ! "$TORCH_PYTHON" -c 'import torch' 2>/dev/null; then
    python3 -m venv "$build/torch"
    "$TORCH_PYTHON" -m pip install --quiet torch numpy setuptools >&2
  fi
fi

results=$(mktemp)
trap 'rm -f "$results"' EXIT
broken=()

# measure NAME CLASS COMMAND...: one line of results; a variant that fails is left out of the rounds that follow.
measure() {
  local name=$1 class=$2 line
  shift 2
  [[ " ${broken[*]-} " == *" ${name// /_} "* ]] && return
  echo "vs_pytorch: $name" >&2
  if line=$("$@" 2>"$results.err" | tail -1) && [[ $line == '{'* ]]; then
    printf '%s\t%s\t%s\n' "$class" "$name" "$line" >>"$results"
  else
    echo "vs_pytorch: $name did not run: $(tail -1 "$results.err")" >&2
    broken+=("${name// /_}")
  fi
  rm -f "$results.err"
}

torch() { "$TORCH_PYTHON" bench/torch_train.py "${size[@]}" "$@"; }
compiled() { [[ ${COMPILE:-1} == 0 ]] || measure "$@" --compile; }
torch_tuned() { "${tuned[@]}" "$TORCH_PYTHON" bench/torch_train.py "${size[@]}" --matmul-precision medium "$@"; }

for ((round = 1; round <= rounds; round++)); do
  for dtype in f32 bf16; do
    measure "llatte $dtype" $dtype "$build/bench/train_step" "${size[@]}" --dtype $dtype
  done
  measure "PyTorch eager f32" f32 torch --dtype f32
  measure "PyTorch eager f32, tuned" f32 torch_tuned --dtype f32
  compiled "PyTorch compiled f32, tuned" f32 torch_tuned --dtype f32
  measure "PyTorch eager bf16 autocast" bf16 torch --dtype autocast
  measure "PyTorch eager bf16 pure" bf16 torch --dtype bf16
  measure "PyTorch eager bf16 autocast, tuned" bf16 torch_tuned --dtype autocast
  compiled "PyTorch compiled bf16 autocast, tuned" bf16 torch_tuned --dtype autocast
done

python3 - "$results" <<'PY'
import collections, json, statistics, sys
runs = collections.OrderedDict()
for row in open(sys.argv[1], encoding="utf-8"):
    dtype, name, line = row.rstrip("\n").split("\t")
    runs.setdefault((dtype, name), []).append(json.loads(line))
if not runs:
    sys.exit("vs_pytorch: nothing ran")
def rate(key): return statistics.median(r["tok_s"]["med"] for r in runs[key])
def memory(key): return max(r["peak_rss_mib"] for r in runs[key])
one = next(iter(runs.values()))[0]
print(f"clm-60m, {one['batch']} x {one['seq']} tokens a step, {one['threads']} threads, "
      f"median of {len(next(iter(runs.values())))} rounds x {one['steps']} steps\n")
print("| training step | tok/s | slowest-fastest step | peak RSS MiB | llatte's speed / this | llatte's memory / this |")
print("|---|---|---|---|---|---|")
for key in sorted(runs, key=lambda k: k[0], reverse=True):
    ours = (key[0], "llatte " + key[0])
    ratio = f"{rate(ours) / rate(key):.2f} | {memory(ours) / memory(key):.2f}" if ours in runs else "- | -"
    low, high = (f(r["tok_s"][m] for r in runs[key]) for f, m in ((min, "min"), (max, "max")))
    print(f"| {key[1]} | {rate(key):,.0f} | {low:,.0f}-{high:,.0f} | {memory(key):,.0f} | {ratio} |")
PY
