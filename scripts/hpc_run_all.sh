#!/bin/bash
# Every recipe of the paper, or those that are named, over three seeds: per recipe an array and an aggregate behind it.
#   ./scripts/hpc_run_all.sh [llama1b_aug qwen05b_aug ...]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=$(bash setup.sh --python)
if (($# > 0)); then
    exec "$python" -m kava submit seeds --config "$@"
fi
exec "$python" -m kava submit seeds
