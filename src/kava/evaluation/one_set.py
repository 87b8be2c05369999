"""Evaluate one student on one dataset; write results and predictions."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from kava.backbone.artifact import read_card
from kava.evaluation.eval_sets import EvalSet
from kava.evaluation.losses import held_out_losses
from kava.evaluation.overrides import UNCHANGED, EvalOverrides
from kava.evaluation.result_files import Files, write
from kava.evaluation.score import cue_of, predict, summary
from kava.infer.modes import untrained
from kava.infer.student import Student, sampling_of
from kava.provenance import versions


def evaluate_set(
    student: Student,
    items: EvalSet,
    files: Files,
    checkpoint: Path | None,
    mode: str = "latent",
    batch_size: int | None = None,
    max_new_tokens: int | None = None,
    overrides: EvalOverrides = UNCHANGED,
    losses: bool = False,
    progress: bool = False,
) -> dict[str, Any]:
    """Answers every item, writes both files and returns what is in the results file."""
    with overrides.applied(student) as recipe:
        limit = max_new_tokens or recipe.evaluation.max_new_tokens
        size = batch_size or recipe.evaluation.batch_size
        sampling = sampling_of(recipe, generator=_generator(student))
        began = time.perf_counter()
        predictions = predict(
            student, items.examples, mode, size, limit, progress=progress, sampling=sampling, ablate=overrides.ablate
        )
        assert predictions is not None  # only `stop` gives None
        seconds = time.perf_counter() - began
        loss_fields = held_out_losses(student, items, size, progress) if losses else {}
    note = untrained(student.recipe, "direct" if overrides.num_tokens == 0 else mode)
    results = {
        "dataset": items.name,
        "mode": mode,
        "cue": cue_of(recipe, mode),
        **overrides.fields,
        **({"note": note} if note else {}),
        **summary(predictions),
        **loss_fields,
        "set_size": items.set_size,
        "data_sha256": items.sha256,
        "wall_time_s": round(seconds, 3),
        "config": recipe.about.name,
        "seed": recipe.system.seed,
        "checkpoint": None if checkpoint is None else str(checkpoint),
        "step": None if checkpoint is None else read_card(checkpoint).get("step"),
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
    """None for greedy decoding, else a generator seeded by the recipe."""
    if student.recipe.evaluation.temperature == 0:
        return None
    return torch.Generator(student.model.device).manual_seed(student.recipe.system.seed)


def _device(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
