# bsub < outputs/embedded_multi_seed/.jobs/seeds/train.sh
#!/bin/bash
#BSUB -J "kava-embedded-train[1-3]"
#BSUB -n 32
#BSUB -R "span[ptile=32]"
#BSUB -gpu "num=8"
#BSUB -R "rusage[mem=524288MB]"
#BSUB -W 168:00
#BSUB -wa USR1
#BSUB -wt 2
#BSUB -q gpu
#BSUB -P proj_42
#BSUB -o logs/kava_%J_%I.out
#BSUB -e logs/kava_%J_%I.err
#BSUB -r
#BSUB -Q "99"
#BSUB -N

set -euo pipefail
cd "${LS_SUBCWD:-$PWD}"
set +u  # environment scripts read variables that are not set
module load cuda/12.1
set -u
export HF_HOME='/shared/hugging face'
export NOTE='it'"'"'s "$(touch injected)" `touch injected`; touch injected'
if ! [[ "${LSB_JOBINDEX:-}" =~ ^[0-9]{1,9}$ ]] || ((10#$LSB_JOBINDEX < 1 || 10#$LSB_JOBINDEX > 3)); then
    echo "error: array index LSB_JOBINDEX=${LSB_JOBINDEX:-} is not one of 1 to 3" >&2
    exit 2
fi
INDEX=$((10#$LSB_JOBINDEX - 1))
SEED_OF_TASK=(42 123 456)
SEED=${SEED_OF_TASK[INDEX]}
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=120

exec kava task --status outputs/embedded_multi_seed/.jobs/seeds/status-train-"$INDEX".json --scheduler lsf --requeue -- \
    torchrun --standalone --nproc_per_node=8 -m kava train --config embedded --output_dir outputs/embedded_multi_seed/seed_"$SEED" --seed "$SEED" --resume auto \
    --then kava evaluate --checkpoint_dir outputs/embedded_multi_seed/seed_"$SEED"/best_checkpoint --missing

# bsub -w 'done(<train>)' -ti < outputs/embedded_multi_seed/.jobs/seeds/aggregate.sh
#!/bin/bash
#BSUB -J "kava-embedded-aggregate"
#BSUB -n 2
#BSUB -R "span[ptile=2]"
#BSUB -R "rusage[mem=16384MB]"
#BSUB -W 1:00
#BSUB -wa USR1
#BSUB -wt 2
#BSUB -q gpu
#BSUB -P proj_42
#BSUB -o logs/kava_%J.out
#BSUB -e logs/kava_%J.err
#BSUB -r
#BSUB -Q "99"
#BSUB -N

set -euo pipefail
cd "${LS_SUBCWD:-$PWD}"
set +u  # environment scripts read variables that are not set
module load cuda/12.1
set -u
export HF_HOME='/shared/hugging face'
export NOTE='it'"'"'s "$(touch injected)" `touch injected`; touch injected'

exec kava task --status outputs/embedded_multi_seed/.jobs/seeds/status-aggregate.json --scheduler lsf --needs 'outputs/embedded_multi_seed/.jobs/seeds/status-train-[0-2].json' --requeue -- \
    kava aggregate --seed_dirs outputs/embedded_multi_seed/seed_42 outputs/embedded_multi_seed/seed_123 outputs/embedded_multi_seed/seed_456 --config_name embedded --output_json=outputs/embedded_multi_seed/aggregated_results.json --output_yaml=outputs/embedded_multi_seed/aggregated_results.yaml
