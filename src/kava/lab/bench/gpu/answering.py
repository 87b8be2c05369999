"""Answering at batch 1 and 32: our engine against the library's `generate`, on the same weights."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kava.backbone.model import LatentModel
from kava.config import LatentConfig
from kava.infer.generate import generate
from kava.lab.bench.gpu.items import KitFailure, KitFinding, KitSetup
from kava.lab.bench.gpu.students import LLAMA_1B, TOY
from kava.lab.bench.reference import library_generate, library_twin
from kava.lab.bench.timing import take_turns

QUESTION, NEW, ROUNDS = 64, 33, 3
REPEATS = 3


def run(setup: KitSetup) -> KitFinding:
    """Milliseconds of one further token of plain text in both engines, and of a whole latent answer in ours."""
    shape = TOY if setup.tiny else LLAMA_1B
    latent = LatentConfig(num_tokens=4 if setup.tiny else 24, num_iterations=ROUNDS)
    dtype = torch.float32 if setup.tiny else setup.half
    model = shape.student(setup, latent, dtype).eval()
    twin, eos = library_twin(model), shape.vocabulary - 1
    new = 5 if setup.tiny else NEW
    figures: dict[str, Any] = {}
    for size in (1, 2) if setup.tiny else (1, 32):
        ids = _questions(shape.vocabulary, size, 9 if setup.tiny else QUESTION).to(setup.device)
        mask = torch.ones_like(ids, dtype=torch.bool)
        ways: dict[str, Callable[[int], Any]] = {
            "ours": partial(_ours, model, ids, mask, eos, "cot"),
            "library": partial(_library, twin, ids, mask, eos),
            "latent": partial(_ours, model, ids, mask, eos, "latent"),
        }
        same = _share_alike(ways["ours"](new), ways["library"](new))
        if dtype == torch.float32 and same < 1:
            raise KitFailure(f"batch {size}: {100 * same:.0f} % of the tokens are the library's")
        runs = {(name, count): partial(way, count) for name, way in ways.items() for count in (1, new)}
        times = take_turns(runs, 1 if setup.tiny else REPEATS, setup.device)
        seconds = {case: way.facts()["seconds"] for case, way in times.items()}
        token = {name: 1000 * (seconds[name, new] - seconds[name, 1]) / (new - 1) for name in ways}
        figures[f"batch_{size}"] = {
            "ms_per_further_token": token,
            "ratio": token["ours"] / token["library"],
            "ms_per_answer": {name: 1000 * seconds[name, new] for name in ways},
            "same_tokens": same,
        }
    parts = [
        f"{name.replace('_', ' ')}: {of['ms_per_further_token']['ours']:.1f} ms a token ({of['ratio']:.2f} x the library), "
        f"latent answer {of['ms_per_answer']['latent']:.0f} ms"
        for name, of in figures.items()
    ]
    return KitFinding("; ".join(parts), figures)


def _questions(vocabulary: int, size: int, length: int) -> Tensor:
    return torch.randint(0, vocabulary - 3, (size, length), generator=torch.Generator().manual_seed(0))


def _ours(model: LatentModel, ids: Tensor, mask: Tensor, eos: int, mode: str, limit: int) -> list[list[int]]:
    return [
        generation.tokens + [eos] * (not generation.truncated)
        for generation in generate(model, ids, mask, [], eos, limit, mode)
    ]


def _library(twin: Any, ids: Tensor, mask: Tensor, eos: int, limit: int) -> list[list[int]]:
    return library_generate(twin, ids, mask, eos, limit)


def _share_alike(rows: list[list[int]], others: list[list[int]]) -> float:
    """The share of all tokens before the place where a row leaves the other."""
    alike = total = 0
    for row, other in zip(rows, others, strict=True):
        equal = [a == b for a, b in zip(row, other, strict=False)]
        alike += equal.index(False) if False in equal else len(equal)
        total += max(len(row), len(other))
    return alike / max(1, total)
