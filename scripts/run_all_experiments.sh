#!/bin/bash
#SBATCH --job-name=kava-suite
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gres=gpu:8
#SBATCH --cpus-per-task=32
#SBATCH --mem=512G
#SBATCH --time=168:00:00
#SBATCH --output=logs/experiments_%j.out
#SBATCH --error=logs/experiments_%j.err
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
mkdir -p outputs/explicit/.jobs/suite

exec kava task --status outputs/explicit/.jobs/suite/status-all.json --scheduler slurm --requeue --keep_going -- \
    torchrun --standalone --nproc_per_node=8 -m kava train --config explicit_hpc --output_dir outputs/explicit/E1_baseline/seed_42 --seed 42 --resume auto loss.alpha2_kv=0 \
    --then kava evaluate --checkpoint_dir outputs/explicit/E1_baseline/seed_42/best_checkpoint --eval_dataset gsm8k --missing --mode cot --losses \
    --then torchrun --standalone --nproc_per_node=8 -m kava train --config explicit_hpc --output_dir outputs/explicit/E2_full_kv/seed_42 --seed 42 --resume auto rkv.method=full \
    --then kava evaluate --checkpoint_dir outputs/explicit/E2_full_kv/seed_42/best_checkpoint --eval_dataset gsm8k --missing --mode cot --losses \
    --then torchrun --standalone --nproc_per_node=8 -m kava train --config explicit_hpc --output_dir outputs/explicit/E3_right_crop/seed_42 --seed 42 --resume auto rkv.method=crop \
    --then kava evaluate --checkpoint_dir outputs/explicit/E3_right_crop/seed_42/best_checkpoint --eval_dataset gsm8k --missing --mode cot --losses \
    --then torchrun --standalone --nproc_per_node=8 -m kava train --config explicit_hpc --output_dir outputs/explicit/E4_rkv/seed_42 --seed 42 --resume auto rkv.method=rkv \
    --then kava evaluate --checkpoint_dir outputs/explicit/E4_rkv/seed_42/best_checkpoint --eval_dataset gsm8k --missing --mode cot --losses \
    --then torchrun --standalone --nproc_per_node=8 -m kava train --config explicit_hpc --output_dir outputs/explicit/E5_shuffled/seed_42 --seed 42 --resume auto rkv.method=rkv rkv.shuffle=time \
    --then kava evaluate --checkpoint_dir outputs/explicit/E5_shuffled/seed_42/best_checkpoint --eval_dataset gsm8k --missing --mode cot --losses \
    --then kava suite e1-e5 --config explicit_hpc --seeds 42 --members E1_baseline E2_full_kv E3_right_crop E4_rkv E5_shuffled --output_dir outputs --datasets gsm8k --skip_train --skip_eval \
    --then kava analyze --output_base outputs/explicit
