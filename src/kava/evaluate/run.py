"""One student, one set, two files: results_<set>[.<mode>].yaml and predictions_<set>[.<mode>].jsonl."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import kava
from kava.config.text import dump_yaml
from kava.errors import ConfigError, RunError
from kava.evaluate.score import cue_of, predict, summary
from kava.evaluate.sets import Asked
from kava.files import write_text
from kava.infer.modes import sampling_of, untrained
from kava.infer.student import Student

PACKAGES = ("torch", "transformers", "peft", "datasets")
RESULTS = (".yaml", ".yml", ".json")


@dataclass(frozen=True)
class Files:
    results: Path
    predictions: Path


def files_for(checkpoint: Path, asked: Asked, mode: str, output: Path | None) -> Files:
    """Where the results go: `output` (a .yaml or .json file, or a folder), or beside a run's best_checkpoint.

    Another checkpoint's results stay in its own folder, so that they never stand for the best one's; those of a part of
    a set carry the part in their name.
    """
    name = asked.name + ("" if mode == "latent" else f".{mode}") + asked.part
    if output is not None and output.suffix in RESULTS and not output.is_dir():
        stem = output.stem.removeprefix("results_")
        return Files(output, output.with_name(f"predictions_{stem}.jsonl"))
    if output is not None and output.suffix and not output.is_dir():
        raise ConfigError(f"--output {output} has an unknown ending", "name a .yaml or .json file, or a folder")
    folder = output or results_folder(checkpoint)
    return Files(folder / f"results_{name}.yaml", folder / f"predictions_{name}.jsonl")


def results_folder(checkpoint: Path) -> Path:
    """The run's folder for its best_checkpoint, the checkpoint itself for any other."""
    if checkpoint.name == "best_checkpoint":
        return checkpoint.parent
    whole = checkpoint.resolve()  # "." or a link
    return whole.parent if whole.name == "best_checkpoint" else checkpoint


def check_writable(files: Sequence[Files]) -> None:
    """Now, and not after an hour of answers."""
    seen: set[Path] = set()
    for path in (path for pair in files for path in (pair.results, pair.predictions)):
        if path in seen:
            raise ConfigError(f"two results would be written to {path}", "evaluate the sets one by one, with --output")
        seen.add(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir() or not os.access(path.parent, os.W_OK):
            raise RunError(f"cannot write {path}", "choose another --output")


def evaluate(
    student: Student,
    asked: Asked,
    files: Files,
    checkpoint: Path,
    mode: str = "latent",
    batch_size: int | None = None,
    max_new_tokens: int | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Asks everything, writes both files and returns what is in the results file."""
    recipe = student.recipe
    limit = max_new_tokens or recipe.evaluation.max_new_tokens
    size = batch_size or recipe.evaluation.batch_size
    sampling = sampling_of(recipe, generator=_generator(student))
    began = time.perf_counter()
    predictions = predict(student, asked.examples, mode, size, limit, progress=progress, sampling=sampling)
    assert predictions is not None  # nobody asked it to stop
    seconds = time.perf_counter() - began
    note = untrained(recipe, mode)
    results = {
        "dataset": asked.name,
        "mode": mode,
        "cue": cue_of(student, mode),
        **({"note": note} if note else {}),
        **summary(predictions),
        "set_size": asked.whole,
        "data_sha256": asked.sha256,
        "wall_time_s": round(seconds, 3),
        "config": recipe.about.name,
        "seed": recipe.system.seed,
        "checkpoint": str(checkpoint),
        "max_new_tokens": limit,
        "batch_size": size,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "device": _device(student.model.device),
        "versions": versions(),
    }
    write_text(files.predictions, "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in predictions))
    as_json = files.results.suffix == ".json"
    write_text(files.results, json.dumps(results, indent=2) + "\n" if as_json else dump_yaml(results))
    return results


def line(results: dict[str, Any]) -> str:
    """One set's results for people."""
    passes, spread = results["avg_forward_passes"], results["std_forward_passes"]
    spread_text = "" if spread is None else f" (sd {spread:.2f})"
    part = "" if results["total"] == results["set_size"] else f" [{results['total']} of {results['set_size']} items]"
    text = (
        f"{results['dataset']}{part}, {results['mode']}, cue {results['cue']}: "
        f"{100 * results['accuracy']:.1f} % correct ({results['correct']}/{results['total']}), "
        f"flexible {100 * results['flexible_accuracy']:.1f} %, no answer {100 * results['no_answer']:.1f} %, "
        f"cut off {100 * results['truncated']:.1f} %, {passes:.2f}{spread_text} forward passes, "
        f"{results['wall_time_s']:.1f} s"
    )
    return text + (f"\n  {results['note']}" if "note" in results else "")


def versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {"kava": kava.__version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def _generator(student: Student) -> torch.Generator | None:
    """Draws only matter above temperature 0; then they belong to the recipe's seed."""
    if student.recipe.evaluation.temperature == 0:
        return None
    return torch.Generator(student.model.device).manual_seed(student.recipe.system.seed)


def _device(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
