"""The two method lines: what is trained, what is measured on held-out examples, what a finished run leaves behind."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kava.backbone.artifact import save_plain
from kava.backbone.load import load_teacher
from kava.backbone.model import Backbone, LatentModel
from kava.config import Recipe
from kava.data.collate import Collator
from kava.data.encode import Encoder
from kava.evaluate.held_out import held_out
from kava.evaluate.score import score
from kava.files import new_folder
from kava.infer.student import Student
from kava.objectives.latent import LatentObjective
from kava.objectives.tokens import TokensObjective
from kava.teachers.base import Teacher
from kava.teachers.live import LiveTeacher
from kava.train import own_weights
from kava.train.data import Data, check_positions
from kava.train.trainer import Objective, Validation

log = logging.getLogger("kava.train")
CALIBRATION = 64  # examples from which the guard learns how much a student's entries vary
COLLAPSED = 0.1  # of the variation that the untrained student's entries had
FINAL = "final_model"
Stop = Callable[[], bool]


@dataclass(frozen=True)
class Line:
    """`finish` is called with the run's folder when training has come to its end."""

    objective: Objective
    validation: Validation
    finish: Callable[[Path], None] | None = None


def latent_line(
    recipe: Recipe, model: LatentModel, tokenizer: Any, data: Data, device: torch.device, stop: Stop
) -> Line:
    """Latents; the best checkpoint is the one whose generated answers are right most often."""
    objective = LatentObjective.from_recipe(model, recipe)
    student = Student(model, tokenizer, recipe)
    mode = "latent" if recipe.loss.student_ce > 0 else "cot"

    def measure() -> dict[str, float] | None:
        return score(student, data.validation, mode, stop=stop) if data.validation else None

    return Line(objective, Validation(measure, "accuracy"))


def explicit_line(
    recipe: Recipe, model: LatentModel, tokenizer: Any, data: Data, device: torch.device, stop: Stop
) -> Line:
    """A separate teacher; the best checkpoint is the one with the lowest held-out cross-entropy."""
    model.to(device)
    objective = TokensObjective(model, recipe, teacher_of(recipe, tokenizer, device))
    collate = Collator(tokenizer.pad_token_id)
    encoder = Encoder(tokenizer, recipe.dataset.drop_last_step, recipe.dataset.cot_type)
    most = recipe.dataset.max_length
    encoded = [one for one in encoder.encode_batch(data.validation) if most is None or len(one) <= most]
    readers: dict[str, Backbone] = {"student": model}
    if isinstance(objective.teacher, LiveTeacher):
        readers["teacher"] = objective.teacher.model
    for who, reader in readers.items():
        for rows in (data.train, encoded):
            check_positions(reader, rows, who=who)
    objective.calibrate(_first_batches(recipe, data, collate, device))
    if objective.teacher is not None:
        log.info("teacher: %s; student: %s", objective.teacher.shape, objective.student_shape)

    def measure() -> dict[str, float] | None:
        found = held_out(objective, encoded, collate, recipe.evaluation.batch_size, stop) if encoded else None
        if found is not None and found.get("target_variation", 1.0) < COLLAPSED:
            log.warning(
                "the projected targets have collapsed: they vary %.3f times as much as the untrained student's entries "
                "did; raise projector.guard_weight, or set projector.direction=student_to_teacher",
                found["target_variation"],
            )
        return found

    return Line(objective, Validation(measure, "ce", lower=True), partial(_save_final, objective, tokenizer))


def teacher_of(recipe: Recipe, tokenizer: Any, device: torch.device) -> Teacher | None:
    """None where no term asks for one."""
    loss = recipe.loss
    if loss.alpha2_kv == loss.alpha1_codi == recipe.explicit.cka_weight == 0:
        return None
    if recipe.teacher.store is not None:
        from kava.teachers.store import StoredTeacher

        stored = StoredTeacher(recipe.teacher.store)
        stored.check_recipe(recipe)
        return stored
    return LiveTeacher(load_teacher(recipe, tokenizer, device))


def _first_batches(recipe: Recipe, data: Data, collate: Collator, device: torch.device) -> Iterator[dict[str, Tensor]]:
    size = recipe.training.batch_size
    rows = list(islice(iter(data.train), CALIBRATION))
    for start in range(0, len(rows), size):
        batch = collate(rows[start : start + size])
        yield {name: value.to(device) for name, value in batch.items()}


def _save_final(objective: TokensObjective, tokenizer: Any, run: Path) -> None:
    """final_model/student, which any program that knows transformers can load, and the projector beside it."""
    with new_folder(run / FINAL) as partial_folder:
        save_plain(objective.model, tokenizer, partial_folder / "student")
        own_weights.save(objective, partial_folder)
