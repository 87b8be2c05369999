"""Checkpoints on disk: which are complete, which is the newest, which are deleted."""

import json
import re
import shutil
import zipfile
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from kava.backbone.artifact import CARD, WEIGHTS
from kava.errors import CheckpointError
from kava.training.aux_state import FILE

STATE = "trainer_state.json"
NEEDED = (WEIGHTS, CARD, "optimizer.pt", "scheduler.pt", STATE)
_NAME = re.compile(r"checkpoint-(ep|step)(\d+)$")


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint; `at_epoch` tells checkpoint-epN from checkpoint-stepN."""

    path: Path
    step: int
    at_epoch: bool


def problem(folder: Path) -> str | None:
    """Why a run cannot continue from this checkpoint; None if it can."""
    missing = [name for name in NEEDED if not (folder / name).is_file()]
    if missing or not list(folder.glob("rng_state*.pth")):
        return f"{[*missing, 'rng_state'][0]} is missing"
    try:
        step_of(folder)
    except (ValueError, KeyError) as error:
        return f"{STATE} is torn ({error})"
    for name in (WEIGHTS, FILE) if (folder / FILE).exists() else (WEIGHTS,):
        try:
            with safe_open(folder / name, framework="pt") as file:
                file.keys()
        except (SafetensorError, OSError) as error:
            return f"{name} is torn ({error})"
    for name in ("optimizer.pt", "scheduler.pt"):
        if not zipfile.is_zipfile(folder / name):  # False for a cut file: a zip's directory is at its end
            return f"{name} is torn"
    return None


def step_of(folder: Path) -> int:
    """The update after which the checkpoint was written."""
    return int(json.loads((folder / STATE).read_text(encoding="utf-8"))["global_step"])


def find(run: Path) -> tuple[list[Checkpoint], list[str]]:
    """The complete checkpoints of a run, oldest first, and a line about each incomplete one."""
    whole, broken = [], []
    for folder in sorted(run.glob("checkpoint-*")):
        match = _NAME.match(folder.name)
        if match is None or not folder.is_dir():
            continue
        reason = problem(folder)
        if reason is None:
            whole.append(Checkpoint(folder, step_of(folder), match[1] == "ep"))
        else:
            broken.append(f"{folder.name} is incomplete and is passed over: {reason}")
    return sorted(whole, key=lambda c: (c.step, c.at_epoch)), broken


def choose(run: Path, resume: str) -> tuple[Path | None, list[str]]:
    """The checkpoint that `--resume auto|DIR` continues from (None: from the start), and lines for the log."""
    if resume != "auto":
        folder = Path(resume)
        if not folder.is_dir():
            raise CheckpointError(f"--resume {resume}: no such folder", "give a checkpoint-* folder, or auto")
        reason = problem(folder)
        if reason:
            raise CheckpointError(f"--resume {resume}: {reason}", "use --resume auto to take the newest whole one")
        return folder, []
    whole, notes = find(run)
    return (whole[-1].path if whole else None), notes


def rotate(run: Path, keep: int) -> None:
    """Deletes all but the newest `keep` step checkpoints and the newest `keep` epoch checkpoints."""
    whole, _ = find(run)
    for group in (True, False):
        for old in [c for c in whole if c.at_epoch is group][:-keep]:
            shutil.rmtree(old.path)
