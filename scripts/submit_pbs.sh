#!/bin/bash
#PBS -N kava-distill-adaptive
#PBS -l select=1:ncpus=8:ngpus=1:mem=32768mb:mpiprocs=1
#PBS -l walltime=04:00:00
#PBS -r y
#PBS -o logs/
#PBS -e logs/

set -euo pipefail
cd "${PBS_O_WORKDIR:-$PWD}"
set +u  # environment scripts read variables that are not set
# module load cuda/12.1   # what this cluster needs goes here
python=$(bash setup.sh --python)
PATH="$(dirname "$python"):$PATH"
set -u
mkdir -p outputs/adaptive_seed_42/.jobs/distill

exec kava task --status outputs/adaptive_seed_42/.jobs/distill/status-distill.json --scheduler pbs --requeue --stop_after 14280 -- \
    kava distill --max_steps 1000 --batch_size auto --gradient_accumulation auto --save_interval 200 --eval_interval 200 --resume auto --output_dir outputs/adaptive_seed_42
