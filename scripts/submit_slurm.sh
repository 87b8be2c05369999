#!/bin/bash
#SBATCH --job-name=kava-distill-adaptive
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=8
#SBATCH --mem=32G
#SBATCH --time=04:00:00
#SBATCH --output=logs/adaptive_%j.out
#SBATCH --error=logs/adaptive_%j.err
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@120

set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-$PWD}"
set +u  # environment scripts read variables that are not set
# module load cuda/12.1   # what this cluster needs goes here
python=$(bash setup.sh --python)
PATH="$(dirname "$python"):$PATH"
set -u
mkdir -p outputs/adaptive_seed_42/.jobs/distill

exec kava task --status outputs/adaptive_seed_42/.jobs/distill/status-distill.json --scheduler slurm --requeue -- \
    kava distill --max_steps 1000 --batch_size auto --gradient_accumulation auto --save_interval 200 --eval_interval 200 --resume auto --output_dir outputs/adaptive_seed_42
