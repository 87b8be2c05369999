#!/bin/bash
#SBATCH --job-name=kava-distill-explicit_hpc
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gres=gpu:8
#SBATCH --cpus-per-task=32
#SBATCH --mem=512G
#SBATCH --time=168:00:00
#SBATCH --output=logs/ultra_large_%j.out
#SBATCH --error=logs/ultra_large_%j.err
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
mkdir -p outputs/qwen3_ultra/.jobs/distill

exec kava task --status outputs/qwen3_ultra/.jobs/distill/status-distill.json --scheduler slurm --requeue -- \
    torchrun --standalone --nproc_per_node=8 -m kava distill --config explicit_hpc --resume auto --output_dir outputs/qwen3_ultra training.epochs=5 training.batch_size=2 training.gradient_accumulation_steps=16 training.learning_rate=1e-5 dataset.max_length=2048 explicit.target_len=32 logging.save_steps=2000 logging.logging_steps=100 system.num_workers=16
