#!/usr/bin/env bash
# Made by scripts/make-jobs: change that, not this.
# Fine-tunes one model four times, as it is and with each kind of latent attention: a job array, one element an
# experiment. The model is clm-60m, trained before, or a published one, downloaded before:
#   sbatch scripts/slurm.sh
#   sbatch --export=ALL,MODEL=smollm-135m scripts/slurm.sh
# The head of configs/hla/MODEL/baseline.yaml says what must be there. An element is one process, which uses the cores
# of its node as threads: `train` does not spread over several processes, so nothing here asks for more. Two minutes
# before its time is up it saves; the same command submitted again goes on from there. Queues and accounts are given on
# the command line.
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
srun --ntasks=1 --cpus-per-task="$OMP_NUM_THREADS" \
  "$build/apps/train" "configs/hla/$model/$name.yaml" --resume auto

# What early stopping kept, on the text it was chosen by: a figure to compare the four with, no more. A run that was cut
# off before its first validation has nothing yet.
[[ -e $run/best ]] || { echo "slurm.sh: $run/best is not there yet; submit again to go on" >&2; exit 0; }
srun --ntasks=1 --cpus-per-task="$OMP_NUM_THREADS" \
  "$build/apps/eval" ppl "$run/best" --text assets/wikitext-2/test.raw --window 512 --json >"$run/ppl.json"
