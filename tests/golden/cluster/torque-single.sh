# qsub outputs/embedded_multi_seed/.jobs/seeds/train.sh
#!/bin/bash
#PBS -N kava-embedded-train
#PBS -l nodes=1:ppn=8:gpus=1
#PBS -l mem=65536mb
#PBS -l walltime=48:00:00
#PBS -q gpu
#PBS -A proj_42
#PBS -r y
#PBS -t 0-2
#PBS -o logs/kava_$PBS_JOBID.out
#PBS -e logs/kava_$PBS_JOBID.err
#PBS -m n

set -euo pipefail
cd "${PBS_O_WORKDIR:-$PWD}"
set +u  # environment scripts read variables that are not set
module load cuda/12.1
set -u
export HF_HOME='/shared/hugging face'
export NOTE='it'"'"'s "$(touch injected)" `touch injected`; touch injected'
if ! [[ "${PBS_ARRAYID:-}" =~ ^[0-9]{1,9}$ ]] || ((10#$PBS_ARRAYID > 2)); then
    echo "error: array index PBS_ARRAYID=${PBS_ARRAYID:-} is not one of 0 to 2" >&2
    exit 2
fi
INDEX=$((10#$PBS_ARRAYID))
SEED_OF_TASK=(42 123 456)
SEED=${SEED_OF_TASK[INDEX]}

exec kava task --status outputs/embedded_multi_seed/.jobs/seeds/status-train-"$INDEX".json --scheduler torque --requeue --stop_after 172680 -- \
    kava train --config embedded --output_dir outputs/embedded_multi_seed/seed_"$SEED" --seed "$SEED" --resume auto \
    --then kava evaluate --checkpoint_dir outputs/embedded_multi_seed/seed_"$SEED"/best_checkpoint --missing

# qsub -W 'depend=afterok:<train>' outputs/embedded_multi_seed/.jobs/seeds/aggregate.sh
#!/bin/bash
#PBS -N kava-embedded-aggregate
#PBS -l nodes=1:ppn=2
#PBS -l mem=16384mb
#PBS -l walltime=01:00:00
#PBS -q gpu
#PBS -A proj_42
#PBS -r y
#PBS -o logs/kava_$PBS_JOBID.out
#PBS -e logs/kava_$PBS_JOBID.err
#PBS -m n

set -euo pipefail
cd "${PBS_O_WORKDIR:-$PWD}"
set +u  # environment scripts read variables that are not set
module load cuda/12.1
set -u
export HF_HOME='/shared/hugging face'
export NOTE='it'"'"'s "$(touch injected)" `touch injected`; touch injected'

exec kava task --status outputs/embedded_multi_seed/.jobs/seeds/status-aggregate.json --scheduler torque --needs 'outputs/embedded_multi_seed/.jobs/seeds/status-train-[0-2].json' --requeue --stop_after 3480 -- \
    kava aggregate --seed_dirs outputs/embedded_multi_seed/seed_42 outputs/embedded_multi_seed/seed_123 outputs/embedded_multi_seed/seed_456 --config_name embedded --output_json=outputs/embedded_multi_seed/aggregated_results.json --output_yaml=outputs/embedded_multi_seed/aggregated_results.yaml
