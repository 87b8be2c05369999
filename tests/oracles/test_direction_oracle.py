"""Layer maps, aggregation, direction, attention, CKA, guard and meter against plain loops."""

from __future__ import annotations

import itertools
import math

import oracle_direction as slow
import pytest
import torch
from torch import Tensor

from kava.align import Aggregator, layer_map, mix
from kava.losses.cka import cka
from kava.losses.cosine import CosineMeter
from kava.losses.direction import KINDS, direction_loss
from kava.losses.guard import variance_guard

TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-5}
SLOTS = torch.tensor([3, 0, 1, 4])  # kept slots of each sample
KEPT = (torch.arange(4) < SLOTS[:, None])[:, None].expand(-1, 2, -1)


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def close(actual: Tensor | float, expected: object, tolerance: float = 1e-9) -> None:
    actual = torch.as_tensor(actual, dtype=torch.float64)
    wanted = torch.as_tensor(expected, dtype=torch.float64).reshape(actual.shape)
    torch.testing.assert_close(actual, wanted, rtol=tolerance, atol=tolerance)


# align


@pytest.mark.parametrize("sizes", list(itertools.product((1, 2, 3, 5, 12, 24), (1, 2, 6, 28, 32))))
def test_ratio_map(sizes: tuple[int, int]) -> None:
    wanted = slow.ratio(*sizes)
    found = layer_map(*sizes)
    assert [[layer for layer, _ in entry] for entry in found] == [sorted(share) for share in wanted]
    for entry, share in zip(found, wanted, strict=True):
        close([weight for _, weight in entry], [float(share[layer]) for layer, _ in entry], 1e-12)
        assert sum(weight for _, weight in entry) == pytest.approx(1, abs=1e-12)


def test_mixed_layers() -> None:
    layers = [draw(2, 3, seed=seed) for seed in range(4)]
    close(mix(layers, [(1, 0.25), (2, 0.75)]), 0.25 * layers[1] + 0.75 * layers[2])


@pytest.mark.parametrize("method", ["concat", "mean", "weighted"])
def test_aggregation(method: str) -> None:
    layers = [draw(2, 2, 5, 3, seed=seed) for seed in range(4)]
    aggregator = Aggregator(method, 4).double()
    lists = [layer.tolist() for layer in layers]
    close(aggregator(layers), slow.aggregate(lists, method, [0.0] * 4))
    if method == "weighted":
        with torch.no_grad():
            aggregator.weights.copy_(torch.tensor([1.0, -2.0, 0.5, 0.0]))
        close(aggregator(layers), slow.aggregate(lists, method, [1.0, -2.0, 0.5, 0.0]))


# losses


@pytest.mark.parametrize(("kind", "dtype"), list(itertools.product(KINDS, TOLERANCE)))
def test_direction_loss(kind: str, dtype: torch.dtype) -> None:
    student, teacher = draw(4, 2, 4, 6, seed=1, dtype=dtype), 2 * draw(4, 2, 4, 6, seed=2, dtype=dtype)
    teacher[0] = student[0] + 0.1 * teacher[0]  # some are aligned
    loss, metrics = direction_loss(student, teacher, KEPT, kind, beta=0.3, mse=0.4)
    pairs = slow.pairs(student.double().tolist(), teacher.double().tolist(), KEPT.tolist())
    close(loss.double(), sum(slow.direction(s, t, kind, 0.3, 0.4) for s, t in pairs), TOLERANCE[dtype])
    cosines = [slow.cosine(s, t) for s, t in pairs]
    sizes = [(slow.length(s), slow.length(t)) for s, t in pairs]
    wanted = {
        "cos_sim": sum(cosines),
        "dir_loss": sum(1 - c for c in cosines),
        "mag_loss": sum(slow.math.log(s / t) ** 2 for s, t in sizes),
        "s_magnitude": sum(s for s, _ in sizes),
        "t_magnitude": sum(t for _, t in sizes),
        "mag_ratio": sum(s / t for s, t in sizes),
        "aligned": sum(c > 0.95 for c in cosines),
    }
    assert 0 < wanted["aligned"] < len(pairs)
    assert metrics.keys() == wanted.keys()
    for name, value in wanted.items():
        close(metrics[name].double(), value, 10 * TOLERANCE[dtype])


@pytest.mark.parametrize("unbiased", [False, True])
def test_cka(unbiased: bool) -> None:
    lengths = (6, 4, 9, 1)
    mask = torch.arange(9) < torch.tensor(lengths)[:, None]
    left = draw(4, 9, 5, seed=1) + 3.0
    right = torch.cat([left[..., :3], draw(4, 9, 9, seed=2)], dim=-1) * 20
    found = cka(left, right, mask, unbiased)
    for b, n in enumerate(lengths[:3]):
        close(found[b], slow.cka(left[b, :n].tolist(), right[b, :n].tolist(), unbiased), 1e-8)
    assert found[3] == 0


def test_guard() -> None:
    projected, reference = draw(4, 4, 6, seed=5), torch.tensor([0.1, 1.0, 5.0, 0.0, 2.0, 1.0], dtype=torch.float64)
    kept = KEPT[:, 0]
    for most in (math.inf, 2.0, 1.0):
        wanted = slow.guard(projected.tolist(), kept.tolist(), reference.tolist(), most)
        close(variance_guard(projected, kept, reference, most), wanted)


@pytest.mark.parametrize("pieces", [1, 3])
def test_meter(pieces: int) -> None:
    """All in one batch or in several: the same numbers."""
    target = draw(6, 2, 4, 5, seed=1) + draw(2, 1, 5, seed=2) * 3
    student = target + draw(6, 2, 4, 5, seed=3)
    kept = draw(6, 2, 4, seed=4) > -0.5
    meter = CosineMeter()
    batches = list(zip(student.chunk(pieces), target.chunk(pieces), kept.chunk(pieces), strict=True))
    for batch in batches:
        meter.add_mean(*batch)
    for batch in batches:
        meter.add(*batch)
    found = meter.value()
    for name, value in slow.held_out(student.tolist(), target.tolist(), kept.tolist()).items():
        close(found[name], value)
