#!/bin/bash
#SBATCH --job-name=kava-distill-phase3
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gres=gpu:4
#SBATCH --cpus-per-task=16
#SBATCH --mem=256G
#SBATCH --time=96:00:00
#SBATCH --output=logs/multi_teacher_%j.out
#SBATCH --error=logs/multi_teacher_%j.err
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
PHASE=${PHASE:-3}
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=120
mkdir -p outputs/multi_teacher_phase"$PHASE"/.jobs/distill

exec kava task --status outputs/multi_teacher_phase"$PHASE"/.jobs/distill/status-distill.json --scheduler slurm --requeue -- \
    torchrun --standalone --nproc_per_node=4 -m kava distill --phase "$PHASE" --resume auto --output_dir outputs/multi_teacher_phase"$PHASE"
