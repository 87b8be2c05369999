#!/bin/bash
#SBATCH --job-name=kava-train-llama1b_aug
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=8
#SBATCH --mem=64G
#SBATCH --time=48:00:00
#SBATCH --partition=gpu
#SBATCH --output=logs/kava_%j.out
#SBATCH --error=logs/kava_%j.err
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
CONFIG=${CONFIG:-llama1b_aug}
SEED=${SEED:-42}
CONFIG_NAME=${CONFIG##*/}
CONFIG_NAME=${CONFIG_NAME%.yaml}
mkdir -p outputs/"$CONFIG_NAME"_seed_"$SEED"/.jobs/train

exec kava task --status outputs/"$CONFIG_NAME"_seed_"$SEED"/.jobs/train/status-train.json --scheduler slurm --requeue -- \
    kava train --config "$CONFIG" --seed "$SEED" --resume auto --output_dir outputs/"$CONFIG_NAME"_seed_"$SEED"
