#!/usr/bin/env bash
# Made by scripts/make-jobs: change that, not this.
# Fine-tunes one model four times, as it is and with each kind of latent attention: a job array, one element an
# experiment. The model is clm-60m, trained before, or a published one, downloaded before:
#   qsub scripts/pbs.sh
#   qsub -v MODEL=smollm-135m scripts/pbs.sh
#   qsub -l select=2:ncpus=16:mpiprocs=1:ompthreads=16:mem=32gb scripts/pbs.sh      each on two ranks, which share the micro-batches of a step
# The head of configs/hla/MODEL/baseline.yaml says what must be there. A rank uses the cores it is given as threads. Two
# minutes before its time is up a job saves; the same command submitted again, on any number of ranks, goes on from there.
# Queues and accounts are given on the command line.
#PBS -N llatte-hla
#PBS -J 0-3
#PBS -l select=1:ncpus=16:mpiprocs=1:ompthreads=16:mem=32gb
#PBS -l walltime=24:00:00
#PBS -j oe
set -euo pipefail
cd "${PBS_O_WORKDIR:?this is a job: qsub scripts/pbs.sh}"
experiments=(baseline original latent aligned)
model=${MODEL:-clm-60m} build=${BUILD:-build}
name=${experiments[${PBS_ARRAY_INDEX:?submitted without its job array}]}
run=runs/hla/$model/$name

for file in "$build/apps/train" "configs/hla/$model/$name.yaml"; do
  [[ -e $file ]] && continue
  echo "pbs.sh: $file is missing in $PWD; run make there, and let MODEL be a folder of configs/hla" >&2
  exit 1
done
export OMP_NUM_THREADS=${NCPUS:-1}
ranks=$(if [[ -n ${PBS_NODEFILE:-} ]]; then wc -l <"$PBS_NODEFILE"; else echo 1; fi)
words=()
if ((ranks > 1)); then # a step stays what the config says: its micro-batches are shared out
  batches=$(sed -n 's/^ *batch_accumulation_per_replica: *\([0-9]*\).*/\1/p' "configs/$model.yaml")
  ((batches % ranks == 0)) || { echo "pbs.sh: $ranks ranks can't share $batches micro-batches evenly" >&2; exit 1; }
  words=("tokens.batch_accumulation_per_replica=$((batches / ranks))" optimizer.zero_stage=1)
fi
mpirun -np "$ranks" --bind-to none -x OMP_NUM_THREADS timeout --preserve-status --signal=TERM $((24 * 3600 - 120)) \
  "$build/apps/train" "configs/hla/$model/$name.yaml" "${words[@]}" --resume auto

# What early stopping kept, on the text it was chosen by: a figure to compare the four with, no more. A run that was cut
# off before its first validation has nothing yet.
[[ -e $run/best ]] || { echo "pbs.sh: $run/best is not there yet; submit again to go on" >&2; exit 0; }
mpirun -np "$ranks" --bind-to none -x OMP_NUM_THREADS \
  "$build/apps/eval" ppl "$run/best" --text assets/wikitext-2/test.raw --window 512 --json >"$run/ppl.json"
