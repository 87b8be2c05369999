"""Which targets help on the embedded task? Every compressor and control, several seeds, the same held-out problems.

    python scripts/embedded_study.py --output_dir outputs/study --result docs/results/embedded.json

Trains `kava train --config embedded` once per member and seed (finished runs are kept), asks every student the same
problems of the longest length, and writes counts, paired exact tests and versions. About three minutes a run on a core.
"""

from __future__ import annotations

import argparse
import itertools
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from kava.config import load_recipe
from kava.data.generator import Generator
from kava.evaluate.score import predict, summary
from kava.files import write_json
from kava.infer.student import Student
from kava.provenance import surroundings
from kava.report.paired import mcnemar

MEMBERS = {
    "no_cot": ["latent.num_tokens=0", "loss.alpha2_kv=0"],
    "no_kv": ["loss.alpha2_kv=0"],
    "steps": [],
    "steps_examples": ["rkv.shuffle=examples"],
    "steps_time": ["rkv.shuffle=time"],
    "rkv": ["rkv.method=rkv"],
    "rkv_examples": ["rkv.method=rkv", "rkv.shuffle=examples"],
    "full": ["rkv.method=full"],
    "crop": ["rkv.method=crop"],
    "random": ["rkv.method=random"],
    "uniform": ["rkv.method=uniform"],
}
AGAINST = ("no_cot", "no_kv")


def train(folder: Path, member: str, seed: int, config: str) -> int:
    words = [
        sys.executable,
        "-m",
        "kava",
        "train",
        "--config",
        config,
        "--output_dir",
        str(folder),
        "--seed",
        str(seed),
    ]
    words += ["--resume", "auto", "--quiet", "logging.report_to=[]", *MEMBERS[member]]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".out").open("wb") as out:
        return subprocess.call(words, stdout=out, stderr=subprocess.STDOUT, env={**os.environ, "OMP_NUM_THREADS": "1"})


def measure(root: Path, seeds: list[int], members: list[str], count: int, config: str) -> dict[str, Any]:
    """Counts per member and seed; each distilled member against the two undistilled ones, item by item."""
    dataset = load_recipe(config).dataset
    longest = dataset.generator.max_steps
    problems = Generator(dataset.name, dataset.generator, dataset.seed).of_length("test", longest, count)
    right: dict[tuple[str, int], list[bool]] = {}
    rows = []
    for member, seed in itertools.product(members, seeds):
        best = root / member / f"seed_{seed}" / "best_checkpoint"
        if not best.is_dir():
            continue  # a missing run stays missing in the file
        found = predict(Student.from_pretrained(best, "cpu"), problems, "latent", batch_size=250)
        assert found is not None
        right[member, seed] = [item["correct"] for item in found]
        numbers = summary(found)
        row = {"member": member, "seed": seed, "correct": numbers["correct"], "total": numbers["total"]}
        row["avg_forward_passes"] = numbers["avg_forward_passes"]
        for other in AGAINST:
            if member not in AGAINST and (other, seed) in right:
                row[f"against_{other}"] = mcnemar(right[member, seed], right[other, seed])._asdict()
        rows.append(row)
        print(f"{member:15} seed {seed:4}  {row['correct']}/{row['total']}", flush=True)
    return {"config": config, "steps": longest, "settings": MEMBERS, "rows": rows, **surroundings()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/study"))
    parser.add_argument("--result", type=Path, default=Path("outputs/study/result.json"))
    parser.add_argument("--config", default="embedded")
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 123, 456])
    parser.add_argument("--members", nargs="+", default=list(MEMBERS), choices=list(MEMBERS))
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--problems", type=int, default=1000)
    parser.add_argument("--skip_train", action="store_true")
    options = parser.parse_args()
    if not options.skip_train:
        runs = [(m, s) for s in options.seeds for m in options.members]
        with ThreadPoolExecutor(options.jobs) as pool:
            folders = [options.output_dir / m / f"seed_{s}" for m, s in runs]
            codes = list(pool.map(lambda job: train(job[0], *job[1], options.config), zip(folders, runs, strict=True)))
        for (member, seed), code in zip(runs, codes, strict=True):
            if code:
                print(f"{member} seed {seed}: training ended with code {code}", file=sys.stderr)
    write_json(
        options.result, measure(options.output_dir, options.seeds, options.members, options.problems, options.config)
    )
    print(f"written: {options.result}")


if __name__ == "__main__":
    main()
