# python -m kava.cluster.driver outputs/embedded_multi_seed/.jobs/seeds/train.sh logs/kava 3
#!/bin/bash

set -euo pipefail
set +u  # environment scripts read variables that are not set
module load cuda/12.1
set -u
export HF_HOME='/shared/hugging face'
export NOTE='it'"'"'s "$(touch injected)" `touch injected`; touch injected'
if ! [[ "${KAVA_TASK_INDEX:-}" =~ ^[0-9]{1,9}$ ]] || ((10#$KAVA_TASK_INDEX > 2)); then
    echo "error: array index KAVA_TASK_INDEX=${KAVA_TASK_INDEX:-} is not one of 0 to 2" >&2
    exit 2
fi
INDEX=$((10#$KAVA_TASK_INDEX))
SEED_OF_TASK=(42 123 456)
SEED=${SEED_OF_TASK[INDEX]}
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=120
head=localhost
port=$((20000 + (${KAVA_JOB_ID%%[!0-9]*} + INDEX) % 20000))

exec kava task --status outputs/embedded_multi_seed/.jobs/seeds/status-train-"$INDEX".json --scheduler local --requeue -- \
    mpirun -np 4 --map-by ppr:1:node -x PATH -x TORCH_ELASTIC_SHUTDOWN_TIMEOUT -x HF_HOME -x NOTE ${LD_LIBRARY_PATH:+-x LD_LIBRARY_PATH} torchrun --nnodes=4 --nproc_per_node=8 --rdzv_backend=c10d --rdzv_id="$KAVA_JOB_ID" --rdzv_endpoint="$head:$port" -m kava train --config embedded --output_dir outputs/embedded_multi_seed/seed_"$SEED" --seed "$SEED" --resume auto \
    --then kava evaluate --checkpoint_dir outputs/embedded_multi_seed/seed_"$SEED"/best_checkpoint --missing

# python -m kava.cluster.driver outputs/embedded_multi_seed/.jobs/seeds/aggregate.sh logs/kava - '<train>'
#!/bin/bash

set -euo pipefail
set +u  # environment scripts read variables that are not set
module load cuda/12.1
set -u
export HF_HOME='/shared/hugging face'
export NOTE='it'"'"'s "$(touch injected)" `touch injected`; touch injected'

exec kava task --status outputs/embedded_multi_seed/.jobs/seeds/status-aggregate.json --scheduler local --needs 'outputs/embedded_multi_seed/.jobs/seeds/status-train-[0-2].json' --requeue -- \
    kava aggregate --seed_dirs outputs/embedded_multi_seed/seed_42 outputs/embedded_multi_seed/seed_123 outputs/embedded_multi_seed/seed_456 --config_name embedded --output_json=outputs/embedded_multi_seed/aggregated_results.json --output_yaml=outputs/embedded_multi_seed/aggregated_results.yaml
