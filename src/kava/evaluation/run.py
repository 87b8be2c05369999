"""One student, one set: asks everything and writes what came out."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from kava.backbone.artifact import read_card
from kava.evaluation.eval_sets import Asked
from kava.evaluation.losses import held_out_losses
from kava.evaluation.overrides import UNCHANGED, EvalOverrides
from kava.evaluation.result_files import Files, write
from kava.evaluation.score import cue_of, predict, summary
from kava.infer.modes import sampling_of, untrained
from kava.infer.student import Student
from kava.provenance import versions


def evaluate(
    student: Student,
    asked: Asked,
    files: Files,
    checkpoint: Path,
    mode: str = "latent",
    batch_size: int | None = None,
    max_new_tokens: int | None = None,
    changes: EvalOverrides = UNCHANGED,
    losses: bool = False,
    progress: bool = False,
) -> dict[str, Any]:
    """Asks everything, writes both files and returns what is in the results file."""
    with changes.applied(student) as recipe:
        limit = max_new_tokens or recipe.evaluation.max_new_tokens
        size = batch_size or recipe.evaluation.batch_size
        sampling = sampling_of(recipe, generator=_generator(student))
        began = time.perf_counter()
        predictions = predict(
            student, asked.examples, mode, size, limit, progress=progress, sampling=sampling, ablate=changes.ablate
        )
        assert predictions is not None  # nobody asked it to stop
        seconds = time.perf_counter() - began
        measured = held_out_losses(student, asked, size, progress) if losses else {}
    note = untrained(student.recipe, "direct" if changes.num_tokens == 0 else mode)
    results = {
        "dataset": asked.name,
        "mode": mode,
        "cue": cue_of(recipe, mode),
        **changes.fields,
        **({"note": note} if note else {}),
        **summary(predictions),
        **measured,
        "set_size": asked.whole,
        "data_sha256": asked.sha256,
        "wall_time_s": round(seconds, 3),
        "config": recipe.about.name,
        "seed": recipe.system.seed,
        "checkpoint": str(checkpoint),
        "step": read_card(checkpoint).get("step"),
        "max_new_tokens": limit,
        "batch_size": size,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "device": _device(student.model.device),
        "versions": versions(),
    }
    write(files, results, predictions)
    return results


def _generator(student: Student) -> torch.Generator | None:
    """Draws only matter above temperature 0; then they belong to the recipe's seed."""
    if student.recipe.evaluation.temperature == 0:
        return None
    return torch.Generator(student.model.device).manual_seed(student.recipe.system.seed)


def _device(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
