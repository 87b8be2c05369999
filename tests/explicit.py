"""Pairs of tiny models on the explicit line, and the objective around them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

import zoo
from kava.backbone.families import family_of
from kava.backbone.model import Backbone, LatentModel
from kava.config import LatentConfig, Recipe, load_recipe
from kava.losses import add
from kava.objective.compare import KVComparison, Sides
from kava.objective.make import make_objective
from kava.objective.objective import Objective
from kava.objective.records import Step, StudentView
from kava.objective.targets import Target
from kava.teachers.live import LiveTeacher

UNEVEN = ((5, 7, 2), (3, 2, 1), (6, 0, 3), (4, 4, 1))  # question, CoT, answer; with 4 kept: N_C > M, < M, 0, = M
EIGHT = ((5, 7, 2), (3, 2, 1), (6, 0, 3), (4, 4, 1), (2, 9, 2), (7, 1, 2), (3, 0, 1), (5, 5, 4))
LLAMA = "llama-gqa"
HEAD = ("explicit.choose=head", "projector.direction=none")
UP = ("projector.direction=student_to_teacher",)
DOWN = ("projector.direction=teacher_to_student",)
WHOLE = ("explicit.form=aggregated",)
MORE = ("loss.alpha1_codi=2", "explicit.cka_weight=0.5")
SHAPES = {  # form -> teacher, settings; together they have every term
    "head": ("deep", (*HEAD, *MORE)),
    "structural": ("same", (*HEAD, "loss.kv_loss_type=structural")),
    "up": ("large", (*UP, *MORE, "explicit.attention_weighted=true", "explicit.attention_weighted_after=0")),
    "down": ("large", (*DOWN, *MORE)),
    "whole": ("deep", (*WHOLE, "explicit.aggregation=weighted", "projector.direction=none")),
    "whole-up": ("large", (*WHOLE, *UP, "explicit.aggregation=mean", "loss.kv_loss_type=hybrid")),
    "whole-down": ("large", (*WHOLE, *DOWN, "explicit.aggregation=weighted", "loss.kv_loss_type=mercator", *MORE)),
}
OTHER = {  # teachers that differ from the students of the zoo
    "same": {},
    "deep": {"num_hidden_layers": 4},  # 3 student layers fall between them: the map interpolates
    "shallow": {"num_hidden_layers": 2},
    "large": {
        "num_hidden_layers": 5,
        "hidden_size": 32,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 4,
    },
    "gpt-deep": {"n_layer": 4},
    "gpt-large": {"n_layer": 5, "n_embd": 32},
}


@cache
def student(family: str, dtype: torch.dtype = torch.float64, seed: int = 0) -> LatentModel:
    """Shared between tests, which change no weight of it."""
    return fresh_student(family, dtype, seed)


def fresh_student(family: str, dtype: torch.dtype = torch.float64, seed: int = 0, **own: object) -> LatentModel:
    lm = zoo.causal_lm(family, seed, dtype, **own)
    return LatentModel(
        lm, family_of(lm.config, family), None, LatentConfig(num_tokens=0, num_iterations=0), False
    ).eval()


@cache
def teacher(family: str, kind: str = "same", dtype: torch.dtype = torch.float64, seed: int = 7) -> LiveTeacher:
    lm = zoo.causal_lm(family, seed, dtype, **OTHER[kind])
    return LiveTeacher(Backbone(lm, family_of(lm.config, family)))


@cache
def recipe_of(*settings: str) -> Recipe:
    return load_recipe("explicit_embedded", list(settings))


def objective(model: LatentModel, taught_by: LiveTeacher | None, *settings: str, seed: int = 3) -> Objective:
    """In evaluation mode and the student's type; weights beside the student are random, so that all of them matter."""
    torch.manual_seed(seed)
    made = make_objective(recipe_of(*settings), model, taught_by).to(next(model.parameters()).dtype).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in made.aux_state().items():
            noise = torch.randn(weight.shape, generator=generator, dtype=torch.float64).to(weight.dtype)
            weight.copy_(0.5 + noise.abs() if name.endswith("reference") else weight + 0.3 * noise)
    return made


def make(shape: str, *more: str, model: LatentModel | None = None) -> Objective:
    """One of SHAPES, around the common student or another one."""
    kind, settings = SHAPES[shape]
    return objective(model or student(LLAMA), teacher(LLAMA, kind), *settings, *more)


def longer(others: set[str]) -> list[Any]:
    """Every shape; these in the long run only."""
    return [pytest.param(shape, marks=[pytest.mark.long] * (shape in others)) for shape in SHAPES]


def views(kind: Objective, batch: dict[str, Tensor], step: Step = Step()) -> tuple[StudentView, Target]:  # noqa: B008
    """The student's view of a batch, and what its source of targets gives for it."""
    student, _ = both = kind.view(batch)
    assert student is not None
    assert kind.source is not None
    return student, kind.source(batch, both, kind.teacher_wants(step), step)


def comparisons(kind: Objective, batch: dict[str, Tensor], student: StudentView, target: Target) -> list[KVComparison]:
    """Every column with itself, whatever the recipe chooses."""
    assert kind.compare is not None
    every = kind.compare.pairing.all_columns()
    return list(kind.compare(Sides(batch, student, target, kind.samples(batch), pairing=every)))


Measured = tuple[dict[str, tuple[Tensor, float]], dict[str, Tensor]]


def measure(kind: Objective, batches: Sequence[dict[str, Tensor]], step: Step = Step()) -> Measured:  # noqa: B008
    """Sums and counts of each term over the batches, and the gradient of the weighted loss by name."""
    terms = [term for batch in batches for term in kind(batch, step).terms]
    counts = {name: sum(t.count for t in terms if t.name == name) for name in dict.fromkeys(t.name for t in terms)}
    loss = add(terms, counts)
    sums = {name: torch.stack([t.total for t in terms if t.name == name]).sum().detach() for name in counts}
    return {name: (sums[name], counts[name]) for name in counts}, gradients(loss, kind)


def gradients(loss: Tensor, kind: Objective) -> dict[str, Tensor]:
    """By the objective's own names, 0 where the loss does not reach."""
    trained = kind.trained()
    found = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
    return {
        name: torch.zeros_like(weight) if grad is None else grad
        for (name, weight), grad in zip(trained.items(), found, strict=True)
    }


def assert_same(found: Measured, wanted: Measured, tolerance: float = 1e-9) -> None:
    """Every sum, count and gradient, the last in proportion to the largest entry."""
    assert found[0].keys() == wanted[0].keys()
    for name, (total, count) in wanted[0].items():
        gap = abs(float(found[0][name][0]) - float(total))
        assert gap <= tolerance * max(1.0, abs(float(total))), f"{name}: {float(found[0][name][0])}, not {float(total)}"
        assert abs(found[0][name][1] - count) < 1e-6, f"count of {name}: {found[0][name][1]}, not {count}"
    assert found[1].keys() == wanted[1].keys()
    largest = max(1.0, *(float(grad.abs().max()) for grad in wanted[1].values()))
    for name, grad in wanted[1].items():
        gap = float((found[1][name] - grad).abs().max())
        assert gap <= tolerance * largest, f"gradient at {name} is off by {gap:.3g} of {largest:.3g}"
