# qsub --mode script outputs/embedded_multi_seed/.jobs/seeds/train-0.sh
#!/bin/bash
#COBALT --jobname kava-embedded-train-0
#COBALT -n 1
#COBALT -t 5760
#COBALT -q gpu
#COBALT -A proj_42
#COBALT -O logs/kava_kava-embedded-train-0
#COBALT --attrs mcdram=cache

set -euo pipefail
set +u  # environment scripts read variables that are not set
module load cuda/12.1
set -u
export HF_HOME='/shared/hugging face'
export NOTE='it'"'"'s "$(touch injected)" `touch injected`; touch injected'
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=120

exec kava task --status outputs/embedded_multi_seed/.jobs/seeds/status-train-0.json --scheduler cobalt --requeue --stop_after 345480 -- \
    torchrun --standalone --nproc_per_node=4 -m kava train --config embedded --output_dir outputs/embedded_multi_seed/seed_42 --seed 42 --resume auto \
    --then kava evaluate --checkpoint_dir outputs/embedded_multi_seed/seed_42/best_checkpoint --missing

# qsub --mode script outputs/embedded_multi_seed/.jobs/seeds/train-1.sh
#!/bin/bash
#COBALT --jobname kava-embedded-train-1
#COBALT -n 1
#COBALT -t 5760
#COBALT -q gpu
#COBALT -A proj_42
#COBALT -O logs/kava_kava-embedded-train-1
#COBALT --attrs mcdram=cache

set -euo pipefail
set +u  # environment scripts read variables that are not set
module load cuda/12.1
set -u
export HF_HOME='/shared/hugging face'
export NOTE='it'"'"'s "$(touch injected)" `touch injected`; touch injected'
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=120

exec kava task --status outputs/embedded_multi_seed/.jobs/seeds/status-train-1.json --scheduler cobalt --requeue --stop_after 345480 -- \
    torchrun --standalone --nproc_per_node=4 -m kava train --config embedded --output_dir outputs/embedded_multi_seed/seed_123 --seed 123 --resume auto \
    --then kava evaluate --checkpoint_dir outputs/embedded_multi_seed/seed_123/best_checkpoint --missing

# qsub --mode script outputs/embedded_multi_seed/.jobs/seeds/train-2.sh
#!/bin/bash
#COBALT --jobname kava-embedded-train-2
#COBALT -n 1
#COBALT -t 5760
#COBALT -q gpu
#COBALT -A proj_42
#COBALT -O logs/kava_kava-embedded-train-2
#COBALT --attrs mcdram=cache

set -euo pipefail
set +u  # environment scripts read variables that are not set
module load cuda/12.1
set -u
export HF_HOME='/shared/hugging face'
export NOTE='it'"'"'s "$(touch injected)" `touch injected`; touch injected'
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=120

exec kava task --status outputs/embedded_multi_seed/.jobs/seeds/status-train-2.json --scheduler cobalt --requeue --stop_after 345480 -- \
    torchrun --standalone --nproc_per_node=4 -m kava train --config embedded --output_dir outputs/embedded_multi_seed/seed_456 --seed 456 --resume auto \
    --then kava evaluate --checkpoint_dir outputs/embedded_multi_seed/seed_456/best_checkpoint --missing

# qsub --dependencies '<train-0>:<train-1>:<train-2>' --mode script outputs/embedded_multi_seed/.jobs/seeds/aggregate.sh
#!/bin/bash
#COBALT --jobname kava-embedded-aggregate
#COBALT -n 1
#COBALT -t 60
#COBALT -q gpu
#COBALT -A proj_42
#COBALT -O logs/kava_kava-embedded-aggregate
#COBALT --attrs mcdram=cache

set -euo pipefail
set +u  # environment scripts read variables that are not set
module load cuda/12.1
set -u
export HF_HOME='/shared/hugging face'
export NOTE='it'"'"'s "$(touch injected)" `touch injected`; touch injected'

exec kava task --status outputs/embedded_multi_seed/.jobs/seeds/status-aggregate.json --scheduler cobalt --needs 'outputs/embedded_multi_seed/.jobs/seeds/status-train-[0-2].json' --requeue --stop_after 3480 -- \
    kava aggregate --seed_dirs outputs/embedded_multi_seed/seed_42 outputs/embedded_multi_seed/seed_123 outputs/embedded_multi_seed/seed_456 --config_name embedded --output_json=outputs/embedded_multi_seed/aggregated_results.json --output_yaml=outputs/embedded_multi_seed/aggregated_results.yaml
