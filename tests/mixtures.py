"""Tiny teachers of several families around a tiny student, on random texts with random matches of their tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

import compare
import many
import zoo
from explicit import LLAMA, UNEVEN, student
from explicit import teacher as other
from kava.backbone.families import family_of
from kava.backbone.foreign import Foreign
from kava.backbone.model import Backbone, LatentModel
from kava.config import Recipe, load_recipe
from kava.data.teacher_texts import view
from kava.objective.make import make_objective
from kava.objective.objective import Objective
from kava.teachers.live import ForeignTeacher, LiveTeacher
from kava.teachers.teacher_set import TeacherSet

THREE = ("large", "gpt2", "qwen3")
HEAD, SAMPLE = ("explicit.choose=head",), ("explicit.choose=sample",)
FULL = ("rkv.method=full",)
ROUTED = ("mixture.fusion=learnable", "mixture.entropy=diverse")
Z = (*SAMPLE, *FULL, "mixture.space=z", "mixture.z_size=5")
KINDS = {  # what differs from the student llama-gqa: 3 layers x 2 heads x 6
    "same": lambda seed: other(LLAMA, "same", seed=seed),
    "large": lambda seed: other(LLAMA, "large", seed=seed),  # 5 layers x 4 heads x 4
    "gpt2": lambda seed: other("gpt2", "gpt-deep", seed=seed),  # 4 layers x 4 heads x 6, learned positions
    "qwen3": lambda seed: other("qwen3", "shallow", seed=seed),  # 2 layers x 2 heads x 8
    "qwen2": lambda seed: other("qwen2", "deep", seed=seed),  # 4 layers x 1 head x 6
    "neox": lambda seed: ForeignTeacher(_neox(seed)),  # 3 layers x 2 heads x 16, a quarter of them turned
}


@cache
def _neox(seed: int) -> Foreign:
    return Foreign(many.build("neox", seed)[0].double(), "neox")


@cache
def teacher(kind: str, seed: int = 7) -> LiveTeacher | ForeignTeacher:
    return KINDS[kind](seed)


def named(word: str) -> LiveTeacher | ForeignTeacher:
    """large, or large:3 with a seed of its own."""
    kind, _, seed = word.partition(":")
    return teacher(kind, int(seed or 7))


def company(words: Sequence[str]) -> TeacherSet:
    teachers = tuple(named(word) for word in words)
    names = tuple(f"m{number}" for number in range(len(words)))
    return TeacherSet(names, teachers, None)  # type: ignore[arg-type]


@cache
def recipe_of(count: int, *settings: str) -> Recipe:
    names = ", ".join(f"{{name: m{number}, model: x{number}}}" for number in range(count))
    return load_recipe("explicit_embedded", [f"mixture.teachers=[{names}]", "projector.direction=none", *settings])


def objective(
    words: Sequence[str], *settings: str, model: LatentModel | None = None, seed: int = 3, noise: float = 0.3
) -> Objective:
    """In float64 and evaluation mode; all that is trained or measured beside the student is random, so that it matters."""
    torch.manual_seed(seed)
    made = make_objective(recipe_of(len(words), *settings), model or student(LLAMA), company(words)).double().eval()
    disturb(made, seed, noise)
    return made


@torch.no_grad()
def disturb(made: Any, seed: int = 3, noise: float = 0.3) -> None:
    generator = torch.Generator().manual_seed(seed)
    trained = made.trained()
    for name, weight in made.aux_state().items():
        drawn = torch.randn(weight.shape, generator=generator, dtype=torch.float64).to(weight.dtype)
        if name.endswith("mixture.reference"):
            weight.copy_(0.5 + drawn.abs())
        elif name in trained or name.endswith((".prototypes", ".gain", ".shift", ".size.weight")):
            weight.add_(noise * drawn)


# -- batches ---------------------------------------------------------------------------------------------------------


def batch(words: Sequence[str], lengths: Any = UNEVEN, side: str = "right", seed: int = 4, gaps: float = 0.25) -> dict:
    """Student and teachers read texts of their own lengths. A share `gaps` of the student's tokens has no match."""
    made = zoo.batch(lengths, side, seed)
    for number in range(len(words)):
        theirs = [(q + 1 + number, _stretched(c, number), a + number % 2) for q, c, a in lengths]
        own = zoo.batch(theirs, side, seed + 10 * (number + 1), cue=2 + number)
        made |= {f"t{number}.{name}": value for name, value in own.items() if name != "example_id"}
        iou = torch.zeros(*made["cot_mask"].shape, own["cot_mask"].shape[1], dtype=torch.float64)
        for b in range(len(lengths)):
            found = matches(int(made["cot_mask"][b].sum()), theirs[b][1], 100 * seed + 10 * number + b, gaps)
            iou[b, made["cot_mask"][b].nonzero(), own["cot_mask"][b].nonzero()[:, 0]] = found
        made[f"t{number}.iou"] = iou
    return made


def _stretched(count: int, number: int) -> int:
    return max(count * (3 + 2 * number) // 4, min(count, 1))


def matches(mine: int, theirs: int, seed: int, gaps: float) -> Tensor:
    """[mine, theirs] shares near the diagonal, with rows of zeros."""
    generator = torch.Generator().manual_seed(seed)
    found = torch.zeros(mine, theirs, dtype=torch.float64)
    for row in range(mine):
        first = row * theirs // mine
        width = int(torch.randint(1, 4, (), generator=generator))
        shares = 0.1 + 0.9 * torch.rand(width, generator=generator, dtype=torch.float64)
        if float(torch.rand((), generator=generator)) >= gaps:
            found[row, first : first + width] = shares[: theirs - first]
    return found


def one_text(words: Sequence[str], lengths: Any = UNEVEN, side: str = "right", seed: int = 4) -> dict:
    """Everyone reads the student's tokens, each matched with itself."""
    made = zoo.batch(lengths, side, seed)
    mask = made["cot_mask"]
    diagonal = torch.eye(mask.shape[1], dtype=torch.float64) * (mask[:, :, None] & mask[:, None, :])
    for number in range(len(words)):
        made |= {f"t{number}.{name}": value for name, value in zoo.batch(lengths, side, seed).items()}
        made[f"t{number}.iou"] = diagonal
        del made[f"t{number}.example_id"]
    return made


def take(batch: Mapping[str, Tensor], rows: Sequence[int]) -> dict[str, Tensor]:
    """Some rows of a right-padded batch, as they would have been collated without the others."""
    found = compare.take({name: value for name, value in batch.items() if "." not in name}, rows)
    for number in range(sum(name.endswith(".iou") for name in batch)):
        own = compare.take(view(batch, number), rows)
        del own["example_id"]
        found |= {f"t{number}.{name}": value for name, value in own.items()}
        iou = batch[f"t{number}.iou"][list(rows)]
        found[f"t{number}.iou"] = iou[:, : found["cot"].shape[1], : own["cot"].shape[1]]
    return found


def reordered(batch: Mapping[str, Tensor], order: Sequence[int]) -> dict[str, Tensor]:
    """The same texts with the teachers in another order."""
    found = {name: value for name, value in batch.items() if "." not in name}
    for new, old in enumerate(order):
        parts = {name: value for name, value in batch.items() if name.startswith(f"t{old}.")}
        found |= {f"t{new}." + name.partition(".")[2]: value for name, value in parts.items()}
    return found


def live(lm: Any, family: str) -> LiveTeacher:
    return LiveTeacher(Backbone(lm, family_of(lm.config, family)))
