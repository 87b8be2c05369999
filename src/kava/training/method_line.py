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

from kava.align.layers import unused
from kava.backbone.artifact import RECIPE, load_weights, read_card, save_plain
from kava.backbone.load import load_teacher
from kava.backbone.model import LatentModel
from kava.config import Recipe, load_recipe
from kava.data.collate import Collator
from kava.data.encode import Encoded, Encoder
from kava.errors import CheckpointError
from kava.evaluation.held_out import held_out
from kava.evaluation.score import score
from kava.files import new_folder
from kava.infer.student import Student
from kava.objective.latent import LatentObjective
from kava.objective.many import ManyObjective
from kava.objective.tokens import TokensObjective
from kava.teachers.base import Teacher
from kava.teachers.live import LiveTeacher
from kava.training import aux_state as aux_state
from kava.training.data import Data, check_positions
from kava.training.mixture_setup import TeacherSetup
from kava.training.trainer import Objective, Validation

log = logging.getLogger("kava.train")
CALIBRATION = 64  # examples from which the guard learns how much a student's entries vary
GAP = 200  # training examples that are measured beside the held-out ones
COLLAPSED = 0.1  # of the variation that the untrained student's entries had
FINAL = "final_model"
Stop = Callable[[], bool]
Collate = Callable[[Any], dict[str, Tensor]]


@dataclass(frozen=True)
class Line:
    """`collate` makes batches; `callbacks` write what this line has to show; `finish` is called with the run's folder
    when training has come to its end."""

    objective: Objective
    validation: Validation
    collate: Collate
    callbacks: tuple[Any, ...] = ()
    finish: Callable[[Path], None] | None = None


def latent_line(
    recipe: Recipe, model: LatentModel, tokenizer: Any, data: Data, device: torch.device, stop: Stop
) -> Line:
    """Latents; the best checkpoint is the one whose generated answers are right most often."""
    collate: Collate = Collator(tokenizer.pad_token_id)
    callbacks: tuple[Any, ...] = ()
    if recipe.mixture.on:
        model.to(device)
        many = TeacherSetup(recipe, tokenizer, data, device)
        objective = LatentObjective.from_recipe(model, recipe, many.teachers)
        assert objective.foreign is not None
        callbacks, collate = (many.files(objective.foreign),), many.collate
        many.check(model, [data.train])
        objective.foreign.calibrate(_first_batches(recipe, data, collate, device))
    else:
        objective = LatentObjective.from_recipe(model, recipe)
    _start_from(recipe, objective)
    student = Student(model, tokenizer, recipe)
    mode = "latent" if recipe.loss.student_ce > 0 else "cot"

    def measure() -> dict[str, float] | None:
        return score(student, data.validation, mode, stop=stop) if data.validation else None

    return Line(objective, Validation(measure, "accuracy"), collate, callbacks)


def explicit_line(
    recipe: Recipe, model: LatentModel, tokenizer: Any, data: Data, device: torch.device, stop: Stop
) -> Line:
    """Separate teachers; the best checkpoint is the one with the lowest held-out cross-entropy."""
    model.to(device)
    encoder = Encoder(tokenizer, recipe.dataset.drop_last_step, recipe.dataset.cot_type)
    most = recipe.dataset.max_length
    encoded = [one for one in encoder.encode_batch(data.validation) if most is None or len(one) <= most]
    for rows in (data.train, encoded):
        check_positions(model, rows, who="student")
    if recipe.mixture.on and recipe.loss.alpha2_kv > 0:
        return _many_line(recipe, model, tokenizer, data, device, stop, encoded)
    collate = Collator(tokenizer.pad_token_id)
    objective = TokensObjective(model, recipe, teacher_of(recipe, tokenizer, device))
    if isinstance(objective.teacher, LiveTeacher):
        for rows in (data.train, encoded):
            check_positions(objective.teacher.model, rows, who="teacher")
    objective.calibrate(_first_batches(recipe, data, collate, device))
    _start_from(recipe, objective)
    if objective.teacher is not None:
        log.info("teacher: %s; student: %s", objective.teacher.shape, objective.student_shape)

    def measure() -> dict[str, float] | None:
        return _measured(held_out(objective, encoded, collate, recipe.evaluation.batch_size, stop)) if encoded else None

    return Line(
        objective,
        Validation(measure, "ce", lower=True),
        collate,
        finish=partial(_save_final, objective, tokenizer),
    )


def _many_line(
    recipe: Recipe,
    model: LatentModel,
    tokenizer: Any,
    data: Data,
    device: torch.device,
    stop: Stop,
    encoded: list[Encoded],
) -> Line:
    """Several teachers; the run's folder also tells how tokens, layers and weights came out."""
    many = TeacherSetup(recipe, tokenizer, data, device)
    objective = ManyObjective(model, recipe, many.teachers)
    many.check(model, [data.train, encoded])
    objective.calibrate(_first_batches(recipe, data, many.collate, device))
    _start_from(recipe, objective)
    count = recipe.mixture.prototype_examples
    objective.find_prototypes(_first_batches(recipe, data, many.collate, device, count))
    files = many.files(objective)
    trained_on = list(islice(iter(data.train), min(len(encoded), GAP)))
    size = recipe.evaluation.batch_size
    for name, shape, layers in zip(many.teachers.names, many.teachers.shapes, objective.mixture.maps, strict=True):
        log.info("teacher %s: %s; student: %s", name, shape, objective.student_shape)
        if left := unused(layers, shape.num_layers):
            log.info("layers of %s that no student layer is compared with: %s", name, ", ".join(map(str, left)))

    def measure() -> dict[str, float] | None:
        if not encoded:
            return None
        files.begin_samples()
        found = _measured(held_out(objective, encoded, many.collate, size, stop, files.note))
        seen = held_out(objective, trained_on, many.collate, size, stop) if found is not None else None
        if found is None or seen is None:
            return None
        gaps = {f"gap_{name}": found[name] / seen[name] - 1 for name in ("ce", "kv") if seen.get(name)}
        return found | files.means() | objective.mixture.since_start(found) | gaps

    objective.mixture.remember_start(measure() if encoded else None)
    return Line(
        objective,
        Validation(measure, "ce", lower=True),
        many.collate,
        (files,),
        partial(_save_final, objective, tokenizer),
    )


def _measured(found: dict[str, float] | None) -> dict[str, float] | None:
    """The same, with a warning where targets have collapsed."""
    if found is not None and found.get("target_variation", 1.0) < COLLAPSED:
        log.warning(
            "the projected targets have collapsed: they vary %.3f times as much as the untrained student's entries "
            "did; raise projector.guard_weight, or set projector.direction=student_to_teacher",
            found["target_variation"],
        )
    return found


def _start_from(recipe: Recipe, objective: Objective) -> None:
    """training.start_from: the student and what stands between it and its teachers; router and prototypes begin anew."""
    if recipe.training.start_from is None:
        return
    folder = Path(recipe.training.start_from)
    read_card(folder)
    before, now = ([one.label for one in found.mixture.teachers] for found in (load_recipe(folder / RECIPE), recipe))
    if now and before and before != now:
        raise CheckpointError(
            f"training.start_from={folder} was trained with the teachers {', '.join(before)}, this run has {', '.join(now)}",
            "name the same teachers in the same order: each has adapters of its own",
        )
    load_weights(objective.model, folder)
    if before or not now:
        aux_state.load(objective, folder, fresh=("mixture.fusion.", "foreign.mixture.fusion."))
    else:
        log.info("%s had no teachers: the adapters begin anew", folder)
    log.info("starting from %s", folder)


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


def _first_batches(
    recipe: Recipe, data: Data, collate: Collate, device: torch.device, count: int = CALIBRATION
) -> Iterator[dict[str, Tensor]]:
    size = recipe.training.batch_size
    rows = list(islice(iter(data.train), count))
    for start in range(0, len(rows), size):
        batch = collate(rows[start : start + size])
        yield {name: value.to(device) for name, value in batch.items()}


def _save_final(objective: TokensObjective, tokenizer: Any, run: Path) -> None:
    """final_model/student, which any program that knows transformers can load, and the projector beside it."""
    with new_folder(run / FINAL) as partial_folder:
        save_plain(objective.model, tokenizer, partial_folder / "student")
        aux_state.save(objective, partial_folder)
