# sbatch --parsable outputs/embedded_multi_seed/.jobs/seeds/train.sh
#!/bin/bash
#SBATCH --job-name=kava-embedded-train
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gres=gpu:4
#SBATCH --cpus-per-task=16
#SBATCH --mem=256G
#SBATCH --time=96:00:00
#SBATCH --partition=gpu
#SBATCH --account=proj_42
#SBATCH --array=0-2
#SBATCH --output=logs/kava_%A_%a.out
#SBATCH --error=logs/kava_%A_%a.err
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
#SBATCH --constraint=a100

set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-$PWD}"
set +u  # environment scripts read variables that are not set
module load cuda/12.1
set -u
export HF_HOME='/shared/hugging face'
export NOTE='it'"'"'s "$(touch injected)" `touch injected`; touch injected'
if ! [[ "${SLURM_ARRAY_TASK_ID:-}" =~ ^[0-9]{1,9}$ ]] || ((10#$SLURM_ARRAY_TASK_ID > 2)); then
    echo "error: array index SLURM_ARRAY_TASK_ID=${SLURM_ARRAY_TASK_ID:-} is not one of 0 to 2" >&2
    exit 2
fi
INDEX=$((10#$SLURM_ARRAY_TASK_ID))
SEED_OF_TASK=(42 123 456)
SEED=${SEED_OF_TASK[INDEX]}
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=120

exec kava task --status outputs/embedded_multi_seed/.jobs/seeds/status-train-"$INDEX".json --scheduler slurm --requeue -- \
    torchrun --standalone --nproc_per_node=4 -m kava train --config embedded --output_dir outputs/embedded_multi_seed/seed_"$SEED" --seed "$SEED" --resume auto \
    --then kava evaluate --checkpoint_dir outputs/embedded_multi_seed/seed_"$SEED"/best_checkpoint --missing

# sbatch --parsable '--dependency=afterok:<train>' --kill-on-invalid-dep=yes outputs/embedded_multi_seed/.jobs/seeds/aggregate.sh
#!/bin/bash
#SBATCH --job-name=kava-embedded-aggregate
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=2
#SBATCH --mem=16G
#SBATCH --time=01:00:00
#SBATCH --partition=gpu
#SBATCH --account=proj_42
#SBATCH --output=logs/kava_%j.out
#SBATCH --error=logs/kava_%j.err
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
#SBATCH --constraint=a100

set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-$PWD}"
set +u  # environment scripts read variables that are not set
module load cuda/12.1
set -u
export HF_HOME='/shared/hugging face'
export NOTE='it'"'"'s "$(touch injected)" `touch injected`; touch injected'

exec kava task --status outputs/embedded_multi_seed/.jobs/seeds/status-aggregate.json --scheduler slurm --needs 'outputs/embedded_multi_seed/.jobs/seeds/status-train-[0-2].json' --requeue -- \
    kava aggregate --seed_dirs outputs/embedded_multi_seed/seed_42 outputs/embedded_multi_seed/seed_123 outputs/embedded_multi_seed/seed_456 --config_name embedded --output_json=outputs/embedded_multi_seed/aggregated_results.json --output_yaml=outputs/embedded_multi_seed/aggregated_results.yaml
