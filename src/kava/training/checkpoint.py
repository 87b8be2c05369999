"""Checkpoints on disk: which are complete, which is the newest, which are deleted."""

import json
import logging
import pickle
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from kava.backbone.card import CARD, RECIPE, SHARDS, WEIGHTS, check_checkpoint, missing_shard, read_card
from kava.config import Recipe, differing, load_recipe
from kava.errors import CheckpointError, first_line
from kava.files import remove
from kava.training.aux_state import FILE

log = logging.getLogger("kava.train")
STATE = "trainer_state.json"
PICKLES = ("optimizer.pt", "scheduler.pt")
NEEDED = (CARD, RECIPE, *PICKLES, STATE)
_NAME = re.compile(r"checkpoint-(ep|step)(\d+)$")


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint; `at_epoch` tells checkpoint-epN from checkpoint-stepN."""

    path: Path
    step: int
    at_epoch: bool


def problem(folder: Path) -> str | None:
    """Why a run cannot continue from this checkpoint; None if it can."""
    in_shards = (folder / SHARDS).is_dir()
    weights = () if in_shards else (WEIGHTS,)
    missing = [name for name in (*weights, *NEEDED) if not (folder / name).is_file()]
    if missing or not list(folder.glob("rng_state*.pth")):
        return f"{[*missing, 'rng_state'][0]} is missing"
    try:
        if lacking := in_shards and missing_shard(folder, read_card(folder)):
            return lacking
    except CheckpointError as error:
        return error.message
    try:
        step_of(folder)
    except (ValueError, KeyError, TypeError) as error:
        return f"{STATE} is torn ({error})"
    for name in (*weights, FILE) if (folder / FILE).exists() else weights:
        try:
            with safe_open(folder / name, framework="pt") as file:
                file.keys()
        except (SafetensorError, OSError) as error:
            return f"{name} is torn ({error})"
    for name in PICKLES:
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


def foreign(folder: Path) -> str | None:
    """Why torch refuses the optimizer's or the scheduler's state: a pickle of anything else could run code."""
    for name in PICKLES:
        try:
            torch.load(folder / name, map_location="cpu", weights_only=True, mmap=True)  # reads no tensor
        except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError) as error:
            return f"{name} is no state of an optimizer or scheduler ({first_line(error)[:100]})"
    return None


def damaged(folder: Path) -> str | None:
    """Which file is not the one that was saved."""
    try:
        check_checkpoint(folder)
    except CheckpointError as error:
        return error.message
    return None


def choose(run: Path, resume: str, recipe: Recipe) -> tuple[Path | None, list[str]]:
    """The checkpoint that `--resume auto|DIR` continues from (None: from the start), and lines for the log.

    It must have been made with the settings of this run.
    """
    if resume != "auto":
        folder = Path(resume)
        if not folder.is_dir():
            raise CheckpointError(f"--resume {resume}: no such folder", "give a checkpoint-* folder, or auto")
        if reason := problem(folder) or damaged(folder) or foreign(folder):
            raise CheckpointError(f"--resume {resume}: {reason}", "use --resume auto to take the newest whole one")
        _refuse_another_run(folder, recipe)
        return folder, []
    whole, notes = find(run)
    for newest in reversed(whole):
        if (reason := damaged(newest.path) or foreign(newest.path)) is None:
            _refuse_another_run(newest.path, recipe)
            return newest.path, notes
        notes.append(f"{newest.path.name} is passed over: {reason}")
    return None, notes


def _refuse_another_run(folder: Path, recipe: Recipe) -> None:
    if differ := differing(load_recipe(folder / RECIPE), recipe):
        raise CheckpointError(
            f"{folder} is a checkpoint of another run: {'; '.join(differ[:5])}",
            f"continue that run with --config {folder / RECIPE}, or begin a new one without --resume",
        )


def rotate(run: Path, keep: int) -> None:
    """Deletes all but the newest `keep` step checkpoints and the newest `keep` epoch checkpoints; of a link the link."""
    whole, _ = find(run)
    for group in (True, False):
        for old in [c for c in whole if c.at_epoch is group][:-keep]:
            if old.path.is_symlink():
                log.info("%s was a link and is removed; %s is left", old.path.name, old.path.resolve())
            remove(old.path)
