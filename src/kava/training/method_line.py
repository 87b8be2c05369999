"""The two method lines: what is trained, what is measured on held-out examples, what a finished run writes."""

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
from kava.backbone.artifact import load_weights
from kava.backbone.card import RECIPE, check_files
from kava.backbone.load import load_teacher
from kava.backbone.model import LatentModel
from kava.backbone.plain import save_plain
from kava.config import Recipe, load_recipe
from kava.data.collate import Collator
from kava.data.encode import Encoded, Encoder, encode_batches
from kava.errors import CheckpointError
from kava.evaluation.held_out import held_out
from kava.evaluation.score import score, too_long
from kava.files import new_folder
from kava.infer.student import Student
from kava.objective.calibration import calibrate, find_prototypes, measure_scale
from kava.objective.make import make_objective
from kava.objective.objective import Objective
from kava.objective.records import Step
from kava.progress import progress, track
from kava.teachers.base import Teacher
from kava.teachers.live import LiveTeacher
from kava.training import aux_state
from kava.training.data import Data, check_positions, fitting
from kava.training.mixture_setup import MixtureFiles, TeacherSetup
from kava.training.processes import is_distributed
from kava.training.sharded_teacher import sharder
from kava.training.trainer import Validation

log = logging.getLogger("kava.train")
CALIBRATION = 64  # examples from which the guard learns how much a student's entries vary
GAP = 200  # training examples that are measured beside the held-out ones
COLLAPSED, GROWN = 0.1, 4.0  # times the variation that the untrained student's entries had
FINAL = "final_model"
Stop = Callable[[], bool]
Numbers = dict[str, float] | None  # None: cut short, or nothing to measure on
Collate = Callable[[Any], dict[str, Tensor]]


@dataclass(frozen=True)
class Line:
    """What a run trains and measures. `callbacks` write the files of this line; `finish` gets the run's folder at the end."""

    objective: Objective
    validation: Validation
    collate: Collate
    callbacks: tuple[Any, ...] = ()
    finish: Callable[[Path], None] | None = None


def latent_line(
    recipe: Recipe, model: LatentModel, tokenizer: Any, data: Data, device: torch.device, stop: Stop
) -> Line:
    """Latents; the best checkpoint is the one whose generated answers are right most often."""
    collate: Collate = Collator(tokenizer.pad_token_id, steps=recipe.reads_steps)
    callbacks: tuple[Any, ...] = ()
    if recipe.mixture.on:
        model.to(device)
        setup = TeacherSetup(recipe, tokenizer, data, device)
        objective, collate = make_objective(recipe, model, setup.teachers), setup.collate
        callbacks = (MixtureFiles(objective, setup),)
        setup.check({"training": data.train})
        calibrate(objective, _first_batches(recipe, data, collate, device), recipe.projector.match_start)
    else:
        objective = make_objective(recipe, model)
    _start_from(recipe, objective)
    _measure_scale(recipe, objective, data, collate, device)
    mode = "latent" if recipe.loss.student_ce > 0 else "cot"
    if problems := too_long(Student(model, tokenizer, recipe), data.validation, mode):
        i, problem = next(iter(problems.items()))
        what = "%d of %d validation questions are too long for the model and count as not answered (first: %s: %s)"
        log.warning(what, len(problems), len(data.validation), data.validation[i].id, problem)

    def measure(step: Step) -> Numbers:
        if not data.validation:
            return None
        sharded = is_distributed() and recipe.system.sharding != "none"  # then there is no memory for a second copy
        student = Student(model, tokenizer, recipe, exact_adapters=sharded)  # its copy lives as long as the measure
        return score(student, data.validation, mode, stop=stop)

    return Line(objective, Validation(measure, "accuracy"), collate, callbacks)


def explicit_line(
    recipe: Recipe, model: LatentModel, tokenizer: Any, data: Data, device: torch.device, stop: Stop
) -> Line:
    """Separate teachers; the best checkpoint is the one with the lowest held-out cross-entropy."""
    model.to(device)
    dataset, encoder = recipe.dataset, Encoder.of(tokenizer, recipe.dataset)
    tokenized = encode_batches(track(data.validation, "tokenizing", unit="validation examples"), encoder, 1000)
    check_positions(model, data.train, who="student")
    encoded = fitting(list(tokenized), dataset.max_length, "dataset.max_length")
    encoded = fitting(encoded, model.max_positions, "the student's positions")
    splits = {"training": data.train, "validation": encoded}
    setup: TeacherSetup | None = None
    collate: Collate = Collator(tokenizer.pad_token_id)
    if recipe.mixture.on and recipe.loss.alpha2_kv > 0:
        setup = TeacherSetup(recipe, tokenizer, data, device)
        objective, collate = make_objective(recipe, model, setup.teachers), setup.collate
        setup.check(splits)
    else:
        teacher = teacher_of(recipe, tokenizer, device)
        objective = make_objective(recipe, model, teacher)
        if isinstance(teacher, LiveTeacher):
            check_positions(teacher.model, data.train, who="teacher")
            encoded = fitting(encoded, teacher.model.max_positions, "the teacher's positions")
    calibrate(objective, _first_batches(recipe, data, collate, device), recipe.projector.match_start)
    _start_from(recipe, objective)
    finish = partial(_save_final, objective, tokenizer)
    measured = partial(held_out, objective, collate=collate, batch_size=recipe.evaluation.batch_size, stop=stop)
    find_prototypes(objective, _first_batches(recipe, data, collate, device, recipe.mixture.prototype_examples))
    _measure_scale(recipe, objective, data, collate, device)
    if setup is not None:
        files, trained_on = MixtureFiles(objective, setup), list(islice(iter(data.train), min(len(encoded), GAP)))
        validation = Validation(_mixture_measure(files, measured, encoded, trained_on), "ce", lower=True)
        return Line(objective, validation, collate, (files,), finish)
    if objective.source is not None:
        log.info("teacher: %s; student: %s", objective.source.shape, model.kv_shape)

    def measure(step: Step) -> Numbers:
        return _warned(measured(encoded, step=step)) if encoded else None

    return Line(objective, Validation(measure, "ce", lower=True), collate, finish=finish)


def _mixture_measure(
    files: MixtureFiles, measured: Callable[..., Numbers], encoded: list[Encoded], trained_on: list[Encoded]
) -> Callable[[Step], Numbers]:
    """Measures several teachers' student: also on examples it was trained on, and the weights of each held-out one."""
    mixture, teachers = files.source.mixture, files.setup.teachers
    for name, shape, layers in zip(teachers.names, teachers.shapes, mixture.maps, strict=True):
        log.info("teacher %s: %s; student: %s", name, shape, mixture.student)
        if left := unused(layers, shape.num_layers):
            log.info("layers of %s that no student layer is compared with: %s", name, ", ".join(map(str, left)))

    def measure(step: Step) -> Numbers:
        files.samples = []
        new = _warned(measured(encoded, note=files.note, step=step)) if encoded else None
        old = measured(trained_on, step=step) if new is not None else None
        if new is None or old is None:
            return None
        gaps = {f"gap_{name}": new[name] / old[name] - 1 for name in ("ce", "kv") if old.get(name)}
        return new | files.means() | mixture.since_start(new) | gaps

    mixture.remember_start(measure(Step()))
    return measure


def _warned(numbers: Numbers) -> Numbers:
    """The same, with a warning where targets have collapsed or grown."""
    if numbers is not None and numbers.get("target_variation", 1.0) > GROWN:
        log.warning(
            "the projected targets have grown: they vary %.1f times as much as the untrained student's entries did; set "
            "projector.guard=band",
            numbers["target_variation"],
        )
    if numbers is not None and numbers.get("target_variation", 1.0) < COLLAPSED:
        log.warning(
            "the projected targets have collapsed: they vary %.3f times as much as the untrained student's entries "
            "did; raise projector.guard_weight, or set projector.direction=student_to_teacher",
            numbers["target_variation"],
        )
    return numbers


def _start_from(recipe: Recipe, objective: Objective) -> None:
    """training.start_from: loads the student and its adapters from another run; router, prototypes and the scale of each
    dimension start anew."""
    if recipe.training.start_from is None:
        return
    folder = Path(recipe.training.start_from)
    check_files(folder)
    before, now = ([teacher.label for teacher in of.mixture.teachers] for of in (load_recipe(folder / RECIPE), recipe))
    if now and before and before != now:
        raise CheckpointError(
            f"training.start_from={folder} was trained with the teachers {', '.join(before)}, this run has {', '.join(now)}",
            "name the same teachers in the same order: each has adapters of its own",
        )
    load_weights(objective.model, folder)
    if before or not now:
        aux_state.load(objective, folder, fresh=("source.mixture.fusion.", "kv_scale.", aux_state.TRAINING_ONLY))
    else:
        log.info("%s had no teachers: the adapters start anew", folder)
    log.info("starting from %s", folder)


def teacher_of(recipe: Recipe, tokenizer: Any, device: torch.device) -> Teacher | None:
    """None where no term asks for one."""
    if recipe.loss.alpha2_kv == recipe.loss.alpha1_codi == recipe.explicit.cka_weight == 0:
        return None
    if recipe.teacher.store is not None:
        from kava.teachers.store import StoredTeacher

        stored = StoredTeacher(recipe.teacher.store)
        stored.check_recipe(recipe)
        return stored
    shard = None if recipe.teacher.quantization != "none" else sharder(device, recipe.system)
    if shard is not None:
        return shard(LiveTeacher(load_teacher(recipe, tokenizer, torch.device("cpu"))))
    return LiveTeacher(load_teacher(recipe, tokenizer, device))


def _measure_scale(recipe: Recipe, objective: Objective, data: Data, collate: Collate, device: torch.device) -> None:
    if objective.kv_scale is None:
        return
    objective.to(device)
    entries = measure_scale(objective, _first_batches(recipe, data, collate, device))
    dimensions, left_out = objective.kv_scale.inverse.numel(), int((objective.kv_scale.inverse == 0).sum())
    what = "loss.kv_scale: %d dimensions measured on %d kept entries; %d in which no target varies are left out"
    log.info(what, dimensions, entries, left_out)


def _first_batches(
    recipe: Recipe, data: Data, collate: Collate, device: torch.device, count: int = CALIBRATION
) -> Iterator[dict[str, Tensor]]:
    rows = islice(iter(data.train), count)
    with progress("first batches, for calibration", count, "examples") as meter:
        while part := list(islice(rows, recipe.training.batch_size)):
            yield {name: value.to(device) for name, value in collate(part).items()}
            meter.advance(len(part))


def _save_final(objective: Objective, tokenizer: Any, run: Path) -> None:
    """final_model/student, which any program that knows transformers can load, and the projector beside it."""
    with progress("saving the final student"), new_folder(run / FINAL) as partial_folder:
        save_plain(objective.model, tokenizer, partial_folder / "student")
        aux_state.save(objective, partial_folder)
