#!/bin/bash
#SBATCH --job-name=kava-distill-explicit_hpc
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gres=gpu:4
#SBATCH --cpus-per-task=16
#SBATCH --mem=256G
#SBATCH --time=96:00:00
#SBATCH --output=logs/train_%j.out
#SBATCH --error=logs/train_%j.err
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
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=120
mkdir -p outputs/kava_experiment/.jobs/distill

exec kava task --status outputs/kava_experiment/.jobs/distill/status-distill.json --scheduler slurm --requeue -- \
    torchrun --standalone --nproc_per_node=4 -m kava distill --config explicit_hpc --resume auto --output_dir outputs/kava_experiment
