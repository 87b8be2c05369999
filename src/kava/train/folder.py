"""A run's folder: claimed once, described before the first step, and never mixed with another run."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import kava
from kava.config import Recipe, explain, load_recipe, save_recipe
from kava.errors import RunError
from kava.files import sweep, write_json

RECIPE, META = "recipe.yaml", "meta.json"
PACKAGES = ("torch", "transformers", "peft", "accelerate", "safetensors", "numpy", "datasets")
FREE_TO_CHANGE = ("about.", "logging.", "evaluation.", "system.num_workers", "system.device")


def claim(folder: Path, recipe: Recipe, resume: str | None) -> None:
    """Makes the folder, or refuses one that holds another run or other settings."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"cannot make the output folder {folder}: {error.strerror}", "choose another --output_dir") from error
    sweep(folder)
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


def differing(before: Recipe, now: Recipe) -> list[str]:
    """The settings that change what is learnt and are not the same."""
    old, new = ({row.key: row.value for row in explain(recipe)} for recipe in (before, now))
    keys = [key for key in old if not key.startswith(FREE_TO_CHANGE)]
    return [f"{key} was {old[key]}, is {new[key]}" for key in keys if old[key] != new[key]]


def describe(folder: Path, recipe: Recipe, facts: dict[str, Any]) -> None:
    """recipe.yaml and meta.json, before anything is trained."""
    save_recipe(recipe, folder / RECIPE)
    write_json(folder / META, {**surroundings(), **facts})


def update(folder: Path, **facts: Any) -> None:
    """Adds facts to meta.json."""
    meta = json.loads((folder / META).read_text(encoding="utf-8"))
    write_json(folder / META, meta | facts)


def surroundings() -> dict[str, Any]:
    """Versions, device, git revision and command line of this process."""
    cuda = torch.cuda.is_available()
    return {
        "kava": kava.__version__,
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(0) if cuda else "cpu",
        "threads": torch.get_num_threads(),
        "git": _git(),
        "command": sys.argv,
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _git() -> str | None:
    """The revision of the source tree, with "+changes" where it was edited; None outside a checkout."""
    here = Path(__file__).parent

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, timeout=10, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    revision = git("rev-parse", "HEAD")
    if revision is None:
        return None
    return revision + ("+changes" if git("status", "--porcelain", "--untracked-files=no") else "")
