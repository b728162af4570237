#!/usr/bin/env bash
# Made by scripts/make-jobs: change that, not this.
# Fine-tunes one model four times, as it is and with each kind of latent attention: a job array, one element an
# experiment. The model is clm-60m, trained before, or a published one, downloaded before:
#   sbatch scripts/slurm.sh
#   sbatch --export=ALL,MODEL=smollm-135m scripts/slurm.sh
#   sbatch --ntasks=2 scripts/slurm.sh      each on two ranks, which share the micro-batches of a step
# The head of configs/hla/MODEL/baseline.yaml says what must be there. A rank uses the cores it is given as threads. Two
# minutes before its time is up a job saves; the same command submitted again, on any number of ranks, goes on from there.
# Queues and accounts are given on the command line.
#SBATCH --job-name=llatte-hla
#SBATCH --array=0-3
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=16
#SBATCH --mem=32G
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --output=llatte-hla-%A_%a.log
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:?this is a job: sbatch scripts/slurm.sh}"
experiments=(baseline original latent aligned)
model=${MODEL:-clm-60m} build=${BUILD:-build}
name=${experiments[${SLURM_ARRAY_TASK_ID:?submitted without its job array}]}
run=runs/hla/$model/$name

for file in "$build/apps/train" "configs/hla/$model/$name.yaml"; do
  [[ -e $file ]] && continue
  echo "slurm.sh: $file is missing in $PWD; run make there, and let MODEL be a folder of configs/hla" >&2
  exit 1
done
export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}
ranks=${SLURM_NTASKS:-1}
words=()
if ((ranks > 1)); then # a step stays what the config says: its micro-batches are shared out
  batches=$(sed -n 's/^ *batch_accumulation_per_replica: *\([0-9]*\).*/\1/p' "configs/$model.yaml")
  ((batches % ranks == 0)) || { echo "slurm.sh: $ranks ranks can't share $batches micro-batches evenly" >&2; exit 1; }
  words=("tokens.batch_accumulation_per_replica=$((batches / ranks))" optimizer.zero_stage=1)
fi
srun --ntasks="$ranks" --cpus-per-task="$OMP_NUM_THREADS" --kill-on-bad-exit=1 \
  "$build/apps/train" "configs/hla/$model/$name.yaml" "${words[@]}" --resume auto

# What early stopping kept, on the text it was chosen by: a figure to compare the four with, no more. A run that was cut
# off before its first validation has nothing yet.
[[ -e $run/best ]] || { echo "slurm.sh: $run/best is not there yet; submit again to go on" >&2; exit 0; }
srun --ntasks="$ranks" --cpus-per-task="$OMP_NUM_THREADS" --kill-on-bad-exit=1 \
  "$build/apps/eval" ppl "$run/best" --text assets/wikitext-2/test.raw --window 512 --json >"$run/ppl.json"
