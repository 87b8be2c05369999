"""projector.match_start=least_squares: ridge regression against dense algebra; what projectors and adapters begin with."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

import explicit
import mixtures
import zoo
from kava.config import load_recipe
from kava.data.collate import Collator
from kava.data.encode import Encoded
from kava.errors import ConfigError
from kava.evaluation.held_out import held_out
from kava.objective.calibration import calibrate
from kava.objective.least_squares import STRENGTHS, Ridge
from kava.teachers.base import TeacherWants

EIGHT, LLAMA = explicit.EIGHT, explicit.LLAMA


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def encoded(lengths: tuple[tuple[int, int, int], ...], seed: int) -> list[Encoded]:
    """Random examples of question, chain of thought and answer, with a cue as in `zoo.batch`."""
    draw_ids = random.Random(seed)
    parts = [[[draw_ids.randrange(8, 50) for _ in range(count)] for count in sizes] for sizes in lengths]
    return [Encoded(f"e{i}", q, c, [False] * len(c), [51, 52, 53], a, 1) for i, (q, c, a) in enumerate(parts)]


def solved(x: Tensor, y: Tensor, portions: int = 1) -> tuple[Tensor, Tensor]:
    fit = Ridge()
    for part in zip(x.chunk(portions), y.chunk(portions), strict=True):
        fit.add(*part)
    return fit.solve()


@pytest.mark.parametrize(("count", "width"), [(40, 6), (12, 30)], ids=["tall", "wide"])
def test_the_map_is_that_of_the_normal_equations_at_the_strength_of_least_cross_validation(
    count: int, width: int
) -> None:
    x = draw(count, width, seed=0) * (1 + torch.arange(width)) + 100
    y = 0.1 * x @ draw(width, 3, seed=1) + draw(count, 3, seed=2) * torch.tensor([1.0, 5.0, 20.0])
    weight, bias = solved(x, y, portions=3)
    x_std, y_std = x.std(0, unbiased=False), y.std(0, unbiased=False)
    own, other = (x - x.mean(0)) / x_std, (y - y.mean(0)) / y_std
    candidates = []
    for strength in (count * STRENGTHS).tolist():
        inverse = torch.linalg.inv(own.T @ own + strength * torch.eye(width))
        hat = own @ inverse @ own.T
        left = (other - hat @ other).square().sum()
        candidates.append((float(left / (count - 1 - hat.trace()).square()), inverse @ own.T @ other))
    wanted = min(candidates, key=lambda pair: pair[0])[1]
    torch.testing.assert_close(weight, (wanted * y_std / x_std[:, None]).T, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(x.mean(0) @ weight.T + bias, y.mean(0))


def test_what_is_linear_is_found_and_what_is_constant_is_harmless() -> None:
    x, truth = draw(200, 5, seed=3), draw(5, 4, seed=4)
    x[:, 2], truth[:, 3] = 7.0, 0.0
    weight, bias = solved(x, x @ truth + 3)
    new = draw(50, 5, seed=5)
    new[:, 2] = 7.0
    torch.testing.assert_close(new @ weight.T + bias, new @ truth + 3, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", ["up", "down", "whole-up", "whole-down"])
def test_a_projector_begins_with_the_best_map(shape: str) -> None:
    """A teacher with the student's weights, behind a random map: on new text it is nearer than from any other start."""
    unexplained, rows = {}, encoded(EIGHT, seed=100)
    settings = (
        *explicit.SHAPES[shape][1],
        "rkv.shuffle=examples",
    )  # the start pairs each token with itself all the same
    for start in ("none", "moments", "least_squares"):
        kind = explicit.objective(explicit.student(LLAMA), explicit.teacher(LLAMA, "same", seed=0), *settings)
        kind.train()
        calibrate(kind, [zoo.batch(EIGHT, seed=seed) for seed in range(6)], start)
        assert kind.training
        kind.eval()
        numbers = held_out(kind, rows, Collator(7), len(rows))
        assert numbers is not None
        unexplained[start] = numbers["kv_unexplained_by_dim"]
        if "down" in shape:
            assert bool((kind.compare.reference > 0).all())
            assert start == "none" or numbers["target_variation"] == pytest.approx(1, abs=0.2)
    assert unexplained["least_squares"] < 0.5 * min(unexplained["none"], unexplained["moments"])


def test_adapters_of_a_mixture_begin_with_the_best_map() -> None:
    """A teacher with the student's weights and a random adapter: nothing is left between them, of keys or of values."""
    words, apart = ("same:0", "gpt2"), {}
    new = mixtures.one_text(words, EIGHT, seed=100)
    for start in ("moments", "least_squares"):
        kind = mixtures.objective(words, "rkv.method=full", noise=0.1)
        calibrate(kind, [mixtures.one_text(words, EIGHT, seed=seed) for seed in range(5)], start)
        mixture = kind.mixture.mixture
        student, _ = kind.view(new)
        own = mixture.unrotated(new, student.keys), student.values
        teachers = kind.mixture.teachers(new, TeacherWants(rotary=False))
        for number, kv in enumerate(teachers):
            for part, mine, other in zip("kv", own, mixture.align(number, new, kv), strict=True):
                gaps = [
                    (a - b).transpose(1, 2)[new["cot_mask"]].square().sum() for a, b in zip(mine, other, strict=True)
                ]
                apart[start, number, part] = float(torch.stack(gaps).sum().detach())
    for part in "kv":
        assert apart["least_squares", 0, part] < 1e-3 * apart["moments", 0, part]


def test_the_setting_keeps_its_former_spellings() -> None:
    down = "projector.direction=teacher_to_student"
    for word, start in (("true", "moments"), ("false", "none"), ("least_squares", "least_squares")):
        assert load_recipe("explicit_embedded", [down, f"projector.match_start={word}"]).projector.match_start == start
    load_recipe("explicit_embedded", ["projector.direction=student_to_teacher", "projector.match_start=least_squares"])
    for settings in ("projector.direction=student_to_teacher projector.match_start=none", "projector.match_start=none"):
        with pytest.raises(ConfigError, match="match_start has no effect"):
            load_recipe("explicit_embedded", ["projector.direction=none", *settings.split()])
