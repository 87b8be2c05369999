"""Writes the job scripts of this folder: each is what `kava submit ... --dry_run` prints, with scripts/site.yaml.

python scripts/render.py            write them
python scripts/render.py --check    say which are not as they would be written; exit code 1
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
EXPLICIT = ("--config", "explicit_hpc")
ADAPTIVE = ("distill", "--max_steps", "1000", "--batch_size", "auto", "--gradient_accumulation", "auto",
            "--save_interval", "200", "--eval_interval", "200", "--mem", "32G", "--time", "4h",
            "--log", "logs/adaptive")  # fmt: skip
E1_TO_E5 = ("E1_baseline", "E2_full_kv", "E3_right_crop", "E4_rkv", "E5_shuffled")
SEEDS = ("seeds", "--config", "%CONFIG%", "--export", "CONFIG=llama1b_aug")

# file: scheduler, which of the jobs, the words behind `kava submit`
SCRIPTS = {
    "run_hpc_training.sh": (
        "slurm", 0,
        ("distill", *EXPLICIT, "--output_dir", "outputs/kava_experiment", "--preset", "multi_gpu", "--log", "logs/train"),
    ),
    "run_all_experiments.sh": (
        "slurm", 0,
        ("suite", "e1-e5", *EXPLICIT, "--seeds", "42", "--members", *E1_TO_E5, "--preset", "ultra_large", "--one_job",
         "--log", "logs/experiments"),
    ),
    "run_multi_teacher.sh": (
        "slurm", 0,
        ("distill", "--phase", "%PHASE%", "--export", "PHASE=3", "--output_dir", "outputs/multi_teacher_phase%PHASE%",
         "--preset", "multi_gpu", "--log", "logs/multi_teacher"),
    ),
    "run_ultra_large.sh": (
        "slurm", 0,
        ("distill", *EXPLICIT, "--output_dir", "outputs/qwen3_ultra", "--preset", "ultra_large",
         "--log", "logs/ultra_large"),
    ),
    "run_multinode.sh": (
        "slurm", 0,
        ("distill", *EXPLICIT, "--output_dir", "outputs/qwen3_multinode", "--preset", "multinode",
         "--log", "logs/multinode"),
    ),
    "submit_slurm.sh": ("slurm", 0, ADAPTIVE),
    "submit_pbs.sh": ("pbs", 0, ADAPTIVE),
    "submit_kava.sh": (
        "slurm", 0,
        ("train", "--config", "%CONFIG%", "--seed", "%SEED%", "--export", "CONFIG=llama1b_aug", "--export", "SEED=42",
         "--partition", "gpu"),
    ),
    "submit_multi_seed.slurm": ("slurm", 0, SEEDS),
    "submit_aggregate.slurm": ("slurm", 1, SEEDS),
}  # fmt: skip
RUN_ALL = """\
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
"""


def printed(scheduler: str, words: tuple[str, ...]) -> list[str]:
    """The scripts that `kava submit ... --dry_run` prints."""
    from kava.cli.main import main

    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = main(["submit", *words, "--scheduler", scheduler, "--site", str(HERE / "site.yaml"), "--dry_run"])
    if code:
        raise SystemExit(code)
    parts = out.getvalue().split("#!/bin/bash\n")[1:]
    ends = [part.rsplit("\n\n# ", 1)[0].rstrip("\n") + "\n" for part in parts]
    return ["#!/bin/bash\n" + part for part in ends]


def rendered() -> dict[str, str]:
    """Every file's name and text."""
    os.environ.pop("KAVA_OUTPUT_PATH", None)
    texts = {name: printed(scheduler, words)[job] for name, (scheduler, job, words) in SCRIPTS.items()}
    return texts | {"hpc_run_all.sh": RUN_ALL}


def main(words: list[str]) -> int:
    wrong = 0
    for name, text in rendered().items():
        path = HERE / name
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            continue
        if words == ["--check"]:
            print(f"{name} is not what it would be written as")
            wrong = 1
        else:
            path.write_text(text, encoding="utf-8", newline="\n")
            path.chmod(0o755)
            print(f"wrote {name}")
    return wrong


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
