#!/usr/bin/env bash
# Prefill and decoding beside llama.cpp's own llama-bench, SmolLM2-135M at the same weight precision, on this machine.
# The programs take turns, ROUNDS times, so that a slow minute of the machine hits both; the table holds each one's
# median over the rounds.
#   bench/vs_llamacpp.sh [BUILD]      PROMPT=512 TOKENS=128 ROUNDS=3 THREADS=2
#   LLAMA_BENCH=... a llama-bench; without it llama.cpp is built from the PyPI source package llama-cpp-python
set -euo pipefail
cd "$(dirname "$0")/.."
build=${1:-build}
prompt=${PROMPT:-512} tokens=${TOKENS:-128} rounds=${ROUNDS:-3}
export OMP_NUM_THREADS=${THREADS:-2}
models=$build/models

cmake --build "$build" --target bench_decode app_convert -j"$(nproc)" >&2
if [[ -z ${LLAMA_BENCH:-} ]]; then
  LLAMA_BENCH=$build/llamacpp/build/bin/llama-bench
  if ! [[ -x $LLAMA_BENCH ]]; then
    mkdir -p "$build/llamacpp"
    python3 -m pip download --quiet --no-deps --no-binary :all: llama-cpp-python==0.3.36 -d "$build/llamacpp" >&2
    tar -xzf "$build"/llamacpp/llama_cpp_python-*.tar.gz -C "$build/llamacpp" --strip-components=1
    cmake -S "$build/llamacpp/vendor/llama.cpp" -B "$build/llamacpp/build" -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON \
      -DBUILD_SHARED_LIBS=OFF -DLLAMA_CURL=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF \
      -DLLAMA_BUILD_SERVER=OFF >&2
    cmake --build "$build/llamacpp/build" --target llama-bench -j"$(nproc)" >&2
  fi
fi
[[ -e $models/SmolLM2-135M-Instruct.Q4_1.gguf ]] || scripts/get-smollm2 "$models" >&2
for dtype in f32 bf16; do
  gguf=$models/smollm2-$dtype.gguf
  [[ -e $gguf ]] || "$build/apps/convert" "$models/SmolLM2-135M-Instruct.Q4_1.gguf" "$gguf" --dtype $dtype >&2
done

results=$(mktemp)
trap 'rm -f "$results"' EXIT
for ((round = 1; round <= rounds; round++)); do
  for dtype in f32 bf16; do
    echo "vs_llamacpp: round $round, $dtype" >&2
    gguf=$models/smollm2-$dtype.gguf
    printf 'llatte\t%s\t%s\n' $dtype "$("$build/bench/decode" "$gguf" --dtype $dtype --prompt "$prompt" \
      --tokens "$tokens" --rounds 3 --json | tail -1)" >>"$results"
    printf 'llama.cpp\t%s\t%s\n' $dtype "$("$LLAMA_BENCH" -m "$gguf" -t "$OMP_NUM_THREADS" -p "$prompt" -n "$tokens" \
      -fa 1 -r 3 -o jsonl 2>/dev/null | tr '\n' ' ')" >>"$results"
  done
done

python3 - "$results" <<'PY'
import json, statistics, sys
runs = {}  # (dtype, program) -> [(prefill, decode)]
for row in open(sys.argv[1], encoding="utf-8"):
    program, dtype, text = row.rstrip("\n").split("\t")
    if program == "llatte":
        one = json.loads(text)
        pair = one["prefill_tokens_per_s"], one["decode_tokens_per_s"]
    else:
        decoder, at, rates = json.JSONDecoder(), 0, {}
        while at < len(text.rstrip()):
            one, end = decoder.raw_decode(text, at)
            at = end + (len(text[end:]) - len(text[end:].lstrip()))
            rates["decode" if one["n_gen"] else "prefill"] = max(one["samples_ts"])
        pair = rates["prefill"], rates["decode"]
    runs.setdefault((dtype, program), []).append(pair)
print("SmolLM2-135M, best of three runs, median over the rounds, tokens per second\n")
print("| weights | | llatte | llama.cpp | llatte's speed / llama.cpp's |")
print("|---|---|---|---|---|")
for dtype in ("f32", "bf16"):
    for i, what in enumerate(("prefill", "decode")):
        ours, theirs = (statistics.median(p[i] for p in runs[dtype, program]) for program in ("llatte", "llama.cpp"))
        print(f"| {dtype} | {what} | {ours:,.1f} | {theirs:,.1f} | {ours / theirs:.2f} |")
PY
