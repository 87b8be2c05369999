#!/bin/bash
#SBATCH --job-name=kava-distill-explicit_hpc
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gres=gpu:8
#SBATCH --cpus-per-task=32
#SBATCH --mem=512G
#SBATCH --time=336:00:00
#SBATCH --output=logs/multinode_%j.out
#SBATCH --error=logs/multinode_%j.err
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
read -r head < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
port=$((20000 + (SLURM_JOB_ID) % 20000))
mkdir -p outputs/qwen3_multinode/.jobs/distill

exec kava task --status outputs/qwen3_multinode/.jobs/distill/status-distill.json --scheduler slurm --requeue -- \
    srun --nodes=4 --ntasks=4 --ntasks-per-node=1 --cpus-per-task=32 --kill-on-bad-exit=1 torchrun --nnodes=4 --nproc_per_node=8 --rdzv_backend=c10d --rdzv_id="$SLURM_JOB_ID" --rdzv_endpoint="$head:$port" -m kava distill --config explicit_hpc --resume auto --output_dir outputs/qwen3_multinode training.epochs=10 training.batch_size=1 training.gradient_accumulation_steps=32 training.learning_rate=5e-6 dataset.max_length=2048 explicit.target_len=64 logging.save_steps=5000 logging.logging_steps=200
