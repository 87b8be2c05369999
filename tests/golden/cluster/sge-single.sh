# qsub -terse outputs/embedded_multi_seed/.jobs/seeds/train.sh
#!/bin/bash
#$ -N kava-embedded-train
#$ -S /bin/bash
#$ -cwd
#$ -pe smp 8
#$ -l gpu=1
#$ -l mem_free=65536M
#$ -l h_rt=48:00:00
#$ -l s_rt=47:58:00
#$ -q gpu
#$ -P proj_42
#$ -t 1-3
#$ -o logs/kava_$JOB_ID.$TASK_ID.out
#$ -e logs/kava_$JOB_ID.$TASK_ID.err
#$ -notify
#$ -r y
#$ -m n

set -euo pipefail
cd "${SGE_O_WORKDIR:-$PWD}"
set +u  # environment scripts read variables that are not set
module load cuda/12.1
set -u
export HF_HOME='/shared/hugging face'
export NOTE='it'"'"'s "$(touch injected)" `touch injected`; touch injected'
if ! [[ "${SGE_TASK_ID:-}" =~ ^[0-9]{1,9}$ ]] || ((10#$SGE_TASK_ID < 1 || 10#$SGE_TASK_ID > 3)); then
    echo "error: array index SGE_TASK_ID=${SGE_TASK_ID:-} is not one of 1 to 3" >&2
    exit 2
fi
INDEX=$((10#$SGE_TASK_ID - 1))
SEED_OF_TASK=(42 123 456)
SEED=${SEED_OF_TASK[INDEX]}

exec kava task --status outputs/embedded_multi_seed/.jobs/seeds/status-train-"$INDEX".json --scheduler sge --requeue -- \
    kava train --config embedded --output_dir outputs/embedded_multi_seed/seed_"$SEED" --seed "$SEED" --resume auto \
    --then kava evaluate --checkpoint_dir outputs/embedded_multi_seed/seed_"$SEED"/best_checkpoint --missing

# qsub -terse -hold_jid '<train>' outputs/embedded_multi_seed/.jobs/seeds/aggregate.sh
#!/bin/bash
#$ -N kava-embedded-aggregate
#$ -S /bin/bash
#$ -cwd
#$ -pe smp 2
#$ -l mem_free=16384M
#$ -l h_rt=01:00:00
#$ -l s_rt=00:58:00
#$ -q gpu
#$ -P proj_42
#$ -o logs/kava_$JOB_ID.out
#$ -e logs/kava_$JOB_ID.err
#$ -notify
#$ -r y
#$ -m n

set -euo pipefail
cd "${SGE_O_WORKDIR:-$PWD}"
set +u  # environment scripts read variables that are not set
module load cuda/12.1
set -u
export HF_HOME='/shared/hugging face'
export NOTE='it'"'"'s "$(touch injected)" `touch injected`; touch injected'

exec kava task --status outputs/embedded_multi_seed/.jobs/seeds/status-aggregate.json --scheduler sge --needs 'outputs/embedded_multi_seed/.jobs/seeds/status-train-[0-2].json' --requeue -- \
    kava aggregate --seed_dirs outputs/embedded_multi_seed/seed_42 outputs/embedded_multi_seed/seed_123 outputs/embedded_multi_seed/seed_456 --config_name embedded --output_json=outputs/embedded_multi_seed/aggregated_results.json --output_yaml=outputs/embedded_multi_seed/aggregated_results.yaml
