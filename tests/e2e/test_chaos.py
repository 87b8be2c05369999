"""Twenty blows at random moments - kill -9, SIGTERM, SIGUSR1, a full disk - over a training and an extraction.

After each the same command starts again. What is lost is the time since the last checkpoint; the end is the same to the
last bit. KAVA_CHAOS_SEED repeats a run that failed; the seed is printed.
"""

from __future__ import annotations

import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from compare import tiny_base
from kava.backbone.artifact import WEIGHTS
from kava.teachers.store import verify
from kava.training.checkpoint import find
from stores import content

pytestmark = pytest.mark.long

FULL = "full disk"
KINDS = (signal.SIGKILL, signal.SIGTERM, signal.SIGUSR1, FULL)
STEPS, SAVE = 62, 3
TIMES = ("tokens_per_second", "train_runtime", "train_samples_per_second", "train_steps_per_second")
TRAINING = (
    "dataset.generator.train_size=24", "dataset.generator.val_size=8", "dataset.generator.test_size=40",
    "evaluation.max_new_tokens=4", f"training.max_steps={STEPS}", "training.batch_size=4",
    "training.learning_rate=1e-3", "loss.alpha1_codi=1", "lora.enabled=true", "lora.r=2", "lora.dropout=0.1",
    "latent.num_tokens=3", "latent.num_iterations=2", "logging.logging_steps=1", "logging.eval_steps=10",
    f"logging.save_steps={SAVE}", "logging.report_to=[]", "system.device=cpu",  # loader workers as the recipe has them
)  # fmt: skip
EXTRACTION = (
    "--config", "explicit_embedded", "dataset.generator.train_size=4000", "dataset.generator.val_size=200",
    "system.device=cpu", "--examples_per_shard", "40", "--batch_size", "8", "--with_importance", "--with_cue",
)  # fmt: skip


def kava(*words: str, file_limit: int | None = None) -> subprocess.Popen[str]:
    """A process of ours; `file_limit`: no file may grow beyond so many bytes, as on a disk that runs full."""

    def limit() -> None:
        if file_limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, resource.RLIM_INFINITY))

    return subprocess.Popen(
        [sys.executable, "-m", "kava", *words], env=os.environ | {"OMP_NUM_THREADS": "1"}, preexec_fn=limit,
        start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def finish(process: subprocess.Popen[str], seconds: float = 900) -> str:
    """Waits for an end without an error."""
    _, said = process.communicate(timeout=seconds)
    assert process.returncode == 0, said
    return said


def draw_of() -> random.Random:
    seed = int(os.environ.get("KAVA_CHAOS_SEED", time.time_ns()))
    print(f"KAVA_CHAOS_SEED={seed}")
    return random.Random(seed)


def blows(draw: random.Random, each: int) -> list[Any]:
    kinds = [*KINDS] * each
    draw.shuffle(kinds)
    return kinds


def strike(kind: Any, start: Callable[..., subprocess.Popen[str]], wait: Callable[..., None], limit: int) -> int:
    """Starts a process, ends it by `kind`, and returns its exit code: 0 where it was through before."""
    process = start(file_limit=limit if kind == FULL else None)
    if kind != FULL:
        wait(process)
        if kind == signal.SIGKILL:
            process.send_signal(kind)
        else:
            os.killpg(process.pid, kind)  # a scheduler's reach the loader workers as well
    _, said = process.communicate(timeout=300)
    if kind == FULL:
        assert process.returncode in (0, 2), said
        assert process.returncode == 0 or re.search("the disk is full|is the disk full", said), said
    return process.returncode


# -- training --------------------------------------------------------------------------------------------------------


def updates(run: Path) -> list[dict[str, Any]]:
    """What the journal says of every update, without what a clock decides."""
    log = run / "log.jsonl"
    lines = [line for line in (log.read_text().splitlines() if log.exists() else []) if line.endswith("}")]
    return [{k: v for k, v in json.loads(line).items() if k not in TIMES} for line in lines if '"loss"' in line]


def grown(process: subprocess.Popen[str], run: Path, by: int) -> None:
    """Waits until the process has made `by` updates."""
    before = len(updates(run))
    while process.poll() is None and len(updates(run)) in range(before, before + by):
        time.sleep(0.02)


def test_a_training_under_twelve_blows_ends_in_the_same_numbers(tmp_path: Path) -> None:
    base = tiny_base(tmp_path / "base", tied=True, attention_dropout=0.1)
    settings = ["--config", "debug", f"model.name={base}", *TRAINING]
    whole, run = tmp_path / "whole", tmp_path / "struck"
    finish(kava("train", "--output_dir", str(whole), *settings))
    largest = max(file.stat().st_size for file in (whole / f"checkpoint-step{STEPS}").iterdir())

    draw, newest = draw_of(), 0
    start = partial(kava, "train", "--output_dir", str(run), "--resume", "auto", *settings)
    for kind in blows(draw, 3):

        def wait(process: subprocess.Popen[str]) -> None:
            grown(process, run, draw.randint(1, 4))
            time.sleep(draw.uniform(0, 0.1))

        code = strike(kind, start, wait, draw.randint(1000, largest))
        saved, made = max([one.step for one in find(run)[0]], default=0), len(updates(run))
        print(f"{kind}: exit {code}, {made} updates, saved {saved}")
        assert saved >= newest, "a checkpoint was lost"
        if kind in (signal.SIGTERM, signal.SIGUSR1) and code != -kind:  # -kind: before it could listen
            assert code in (0, 128 + kind)
            assert saved == made
        elif kind != FULL:
            assert saved >= made - SAVE
        newest = saved
    finish(start())

    for place in (f"checkpoint-step{STEPS}", "best_checkpoint"):
        assert (run / place / WEIGHTS).read_bytes() == (whole / place / WEIGHTS).read_bytes(), place
    assert updates(run) == updates(whole)
    assert [line["step"] for line in updates(run)] == list(range(1, STEPS + 1))
    assert not list(run.glob(".partial-*"))
    numbers = []
    for folder in (whole, run):
        finish(kava("evaluate", "--checkpoint", str(folder / "best_checkpoint"), "--quiet"))
        found = yaml.safe_load((folder / "results_chains.yaml").read_text())
        wanted = ("correct", "total", "accuracy", "forward_passes", "data_sha256")
        numbers.append(({k: found[k] for k in wanted if k in found}, (folder / "predictions_chains.jsonl").read_text()))
    assert numbers[0] == numbers[1]
    assert {"correct", "total", "accuracy"} <= numbers[0][0].keys()


# -- extraction ------------------------------------------------------------------------------------------------------


def test_an_extraction_under_eight_blows_writes_the_same_store(tmp_path: Path) -> None:
    whole, folder = tmp_path / "whole", tmp_path / "struck"
    finish(kava("extract", "--output_dir", str(whole), *EXTRACTION, "--quiet"))
    sizes = [file.stat().st_size for file in whole.glob("kv-*")]

    draw, shards = draw_of(), 0
    start = partial(kava, "extract", "--output_dir", str(folder), *EXTRACTION, "--quiet")
    for kind in blows(draw, 2):

        def wait(process: subprocess.Popen[str]) -> None:
            few = draw.randint(1, len(sizes) // 8 - 1)  # so that the last blow finds work to do as well
            enough = len(list(folder.glob("kv-*"))) + few
            while process.poll() is None and len(list(folder.glob("kv-*"))) < enough:
                time.sleep(0.02)
            time.sleep(draw.uniform(0, 0.1))

        code = strike(kind, start, wait, draw.randint(1000, min(sizes)))
        assert code != 0, "it was through before the blow"
        there = list(folder.glob("kv-*"))
        print(f"{kind}: exit {code}, {len(there)} shards")
        assert len(there) >= shards, "a shard was lost"
        assert all(path.read_bytes() == (whole / path.name).read_bytes() for path in there)
        shards = len(there)
    finish(start())
    assert content(folder) == content(whole)
    assert verify(folder, progress=False) == []
