#!/usr/bin/env bash
# The paper in one file: six recipes, three seeds each, from models and data to the table and a report.
#
#   bash runs/reproduce_paper.sh                       everything, one run after the other
#   bash runs/reproduce_paper.sh --dry_run             print every command, run none
#   bash runs/reproduce_paper.sh llama1b_aug           one recipe
#   bash runs/reproduce_paper.sh --ablations           also the paper's ablations (llama1b_aug, four settings)
#   bash runs/reproduce_paper.sh llama1b_aug -- training.batch_size=64 training.gradient_accumulation_steps=2
#                                                      what follows -- are settings and flags of kava seeds
#
# Start it again after any interruption: what is finished is not repeated, what was cut off continues.
# Run it in the folder that is to hold outputs/. Variables: SEEDS="42 123 456", OUTPUTS=outputs, JOBS=1 (seeds at once,
# one GPU each), KAVA=kava. A full run has not been timed yet. Try everything in minutes first, in another folder:
#   OUTPUTS=rehearsal bash runs/reproduce_paper.sh llama1b_aug -- --quick_test
# Out of memory: docs/oom.md.
set -euo pipefail

HERE=$(dirname "${BASH_SOURCE[0]}")
RECIPES=(llama1b_aug llama1b_aug_nl qwen05b_aug qwen05b_aug_nl llama3b_aug llama3b_aug_nl)  # Table 6
read -r -a SEED_LIST <<< "${SEEDS:-42 123 456}"
OUTPUTS=${OUTPUTS:-outputs}
read -r -a KAVA_COMMAND <<< "${KAVA:-kava}"
JOBS=${JOBS:-1}

dry_run=false ablations=false chosen=() more=() failed=()
while (($#)); do
  case $1 in
    --dry_run | --dry-run) dry_run=true ;;
    --ablations) ablations=true ;;
    -h | --help) sed -n '2,17s/^# \{0,1\}//p' "$0"; exit 0 ;;
    --) shift; more=("$@"); break ;;
    -*) echo "unknown flag $1; known: --dry_run --ablations" >&2; exit 2 ;;
    *) chosen+=("$1") ;;
  esac
  shift
done
((${#chosen[@]})) || chosen=("${RECIPES[@]}")

kava() {  # print a command; run it unless --dry_run
  printf 'kava'; printf ' %q' "$@"; printf '\n'
  $dry_run || "${KAVA_COMMAND[@]}" "$@"
}

note() { printf '# %s\n' "$*"; }

# 1. Models and data. Llama is gated: accept the licence on its page and run `hf auth login` once. Only what is missing
#    is downloaded; the check needs no network and lists everything that is missing.
note "models and data"
if $dry_run || ! kava assets verify --config "${chosen[@]}"; then
  kava assets fetch --config "${chosen[@]}"
fi
kava assets verify --config "${chosen[@]}"

# On a cluster, steps 2 and 3 are array jobs, one task per seed and recipe, and this script makes the tables afterwards:
#   kava submit seeds --config llama1b_aug llama1b_aug_nl qwen05b_aug qwen05b_aug_nl llama3b_aug llama3b_aug_nl
#   kava jobs

# 2. Train every seed. 3. Evaluate its best checkpoint on GSM8k, GSM8k-Hard and SVAMP; mean and spread over seeds go to
#    aggregated_results.json. A seed that fails stops no other one and is missing from the table.
folders=()
seeds() {  # seeds RECIPE FOLDER
  local name folder
  name=$(basename "$1" .yaml)
  folder=$2/${name}_multi_seed
  folders+=("$folder")
  note "$name: train, then evaluate and aggregate"
  kava seeds --config "$1" --seeds "${SEED_LIST[@]}" --output_dir "$folder" --jobs "$JOBS" --skip_eval \
    ${more[@]+"${more[@]}"} || failed+=("training of $name")
  kava seeds --config "$1" --seeds "${SEED_LIST[@]}" --output_dir "$folder" --jobs "$JOBS" --skip_train \
    ${more[@]+"${more[@]}"} || failed+=("evaluation of $name")
}
for recipe in "${chosen[@]}"; do
  seeds "$recipe" "$OUTPUTS"
done

# 4. The paper's ablations of Llama-3.2-1B on AUG (docs/paper-map.md, section 7), in a folder of their own: the table of
#    step 6 is the paper's main table.
if $ablations; then
  for recipe in "$HERE"/ablations/*.yaml; do
    seeds "$recipe" "${OUTPUTS}_ablations"
  done
fi

# 5. Does the answer depend on the latents? The first seed of each recipe, with the latents of another question.
for recipe in "${chosen[@]}"; do
  kava evaluate --checkpoint "$OUTPUTS/${recipe}_multi_seed/seed_${SEED_LIST[0]}/best_checkpoint" --dataset gsm8k \
    --ablate swap --missing || failed+=("swapped latents of $recipe")
done

# 6. The table with the paper's numbers beside these, as LaTeX and CSV; every run, ablations too, on one page of figures.
note "tables and report"
kava format --input_dir "$OUTPUTS" --output_latex "$OUTPUTS/paper_tables.tex" --output_csv "$OUTPUTS/results.csv"
kava report "${folders[@]}" --output "$OUTPUTS/report.html"

if ((${#failed[@]})); then
  printf 'not finished: %s\n' "${failed[@]}" >&2
  exit 1
fi
