"""A run's folder: claimed once, described before the first step, and never mixed with another run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kava.config import Recipe, differing, load_recipe, save_recipe
from kava.errors import RunError
from kava.files import sole_owner, sweep, write_json
from kava.provenance import surroundings

RECIPE, META = "recipe.yaml", "meta.json"
LOCK = ".lock"
PATIENCE = 60.0  # seconds a run that was told to stop may take to save


@dataclass(frozen=True)
class Outcome:
    """What a run left behind; exit_code is not 0 when a signal ended it early."""

    folder: Path
    steps: int
    decides: str  # what makes a checkpoint the best: accuracy, or ce on the explicit line
    best: float | None
    exit_code: int = 0

    @property
    def facts(self) -> dict[str, Any]:
        return {"output_dir": str(self.folder), "steps": self.steps, f"best_{self.decides}": self.best}


def read_meta(folder: Path) -> dict[str, Any]:
    path = folder / META
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def finished(folder: Path) -> bool:
    return bool(read_meta(folder).get("finished"))


def outcome(folder: Path) -> Outcome:
    """The outcome of a finished run, as it was written down."""
    meta = read_meta(folder)
    decides = "accuracy" if "best_accuracy" in meta else "ce"
    return Outcome(folder, meta["steps"], decides, meta[f"best_{decides}"])


@contextmanager
def claimed(folder: Path, recipe: Recipe, resume: str | None) -> Iterator[None]:
    """The folder for this process alone, or a refusal: it holds another run, other settings, or is in use.

    Under torchrun the first process asks for all.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(
            f"cannot make the output folder {folder}: {error.strerror}", "choose another --output_dir"
        ) from error
    with sole_owner(folder / LOCK, PATIENCE if resume else 0.0):
        sweep(folder)
        _refuse_another_run(folder, recipe, resume)
        yield


def _refuse_another_run(folder: Path, recipe: Recipe, resume: str | None) -> None:
    stored = folder / RECIPE
    if not stored.exists():
        if resume is None and any(folder.glob("checkpoint-*")):
            raise RunError(f"{folder} holds checkpoints but no {RECIPE}", "choose another --output_dir")
        return
    if resume is None:
        raise RunError(
            f"{folder} already holds a run", "continue it with --resume auto, or choose another --output_dir"
        )
    differ = differing(load_recipe(stored), recipe)
    if differ:
        raise RunError(
            f"{folder} was run with other settings: " + "; ".join(differ[:5]),
            "continue with the same settings, or choose another --output_dir",
        )


def describe(folder: Path, recipe: Recipe, facts: dict[str, Any]) -> None:
    """recipe.yaml and meta.json, before anything is trained; a run that goes on must find the data it began with."""
    if meta := read_meta(folder):
        before = meta.get("data", {}).get("sha256")
        if before != facts["data"].get("sha256"):
            raise RunError(
                f"{folder} was begun with other training data (sha256 {before}, now {facts['data'].get('sha256')})",
                "put the data back, or choose another --output_dir",
            )
    save_recipe(recipe, folder / RECIPE)
    write_json(folder / META, {**surroundings(), **facts})


def update(folder: Path, **facts: Any) -> None:
    """Adds facts to meta.json."""
    write_json(folder / META, read_meta(folder) | facts)
