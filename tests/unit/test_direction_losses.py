"""Direction, attention, CKA, guard and meter: what must change nothing, where gradients go, and what breaks them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kava.losses.cka import cka
from kava.losses.cosine import CosineMeter
from kava.losses.direction import KINDS, direction_loss
from kava.losses.guard import variance_guard

KEPT = (torch.arange(4) < torch.tensor([3, 0, 1, 4])[:, None])[:, None].expand(-1, 2, -1)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def same(left: Tensor, right: Tensor) -> None:
    torch.testing.assert_close(left, right, rtol=1e-10, atol=1e-10)


# direction


@pytest.mark.parametrize("kind", KINDS)
def test_empty_slots_and_the_make_up_of_the_batch_change_nothing(kind: str) -> None:
    student, teacher = draw(4, 2, 4, 6, seed=1), draw(4, 2, 4, 6, seed=2)
    whole, metrics = direction_loss(student, teacher, KEPT, kind)
    empty = ~KEPT[..., None]
    for other in (0.0, 1e3):
        again, seen = direction_loss(student.masked_fill(empty, -other), teacher.masked_fill(empty, other), KEPT, kind)
        same(again, whole)
        for name, value in metrics.items():
            same(seen[name], value)
    rows = [direction_loss(student[b : b + 1], teacher[b : b + 1], KEPT[b : b + 1], kind)[0] for b in range(4)]
    same(torch.stack(rows).sum(), whole)


@pytest.mark.parametrize("kind", KINDS)
def test_direction_gradients(kind: str) -> None:
    student, teacher = draw(4, 2, 4, 3, seed=1).requires_grad_(), draw(4, 2, 4, 3, seed=2).requires_grad_()
    direction_loss(student, teacher, KEPT, kind)[0].backward()
    assert teacher.grad is None
    assert not student.grad[~KEPT].any()
    assert torch.autograd.gradcheck(
        lambda s, t: direction_loss(s, t, KEPT, kind, beta=0.3, detach=False)[0], (student, teacher)
    )


def test_direction_ignores_length_and_magnitude_does_not() -> None:
    student, teacher = draw(1, 1, 3, 5, seed=1), draw(1, 1, 3, 5, seed=2)
    kept = torch.ones(1, 1, 3, dtype=torch.bool)
    loss = {kind: direction_loss(student, teacher, kept, kind)[0] for kind in KINDS}
    longer = {kind: direction_loss(7 * student, teacher, kept, kind)[0] for kind in KINDS}
    same(longer["cosine"], loss["cosine"])
    assert longer["mercator"] != loss["mercator"]
    for kind in KINDS:
        assert direction_loss(teacher, teacher, kept, kind)[0].abs() < 1e-9


@pytest.mark.parametrize("kind", KINDS)
def test_a_zero_vector_costs_a_finite_loss_and_no_gradient_blows_up(kind: str) -> None:
    student, teacher = torch.zeros(1, 1, 2, 4, requires_grad=True), torch.ones(1, 1, 2, 4)
    loss, metrics = direction_loss(student, teacher, torch.ones(1, 1, 2, dtype=torch.bool), kind)
    loss.backward()
    assert loss.isfinite()
    assert metrics["cos_sim"] == 0
    assert student.grad.abs().max() < 1


def test_entries_can_weigh_differently_and_half_precision_is_left_behind() -> None:
    student, teacher = draw(4, 2, 4, 6, seed=1), draw(4, 2, 4, 6, seed=2)
    weight = draw(4, 2, 4, seed=3).abs()
    ones = torch.ones_like(KEPT[..., :1])
    parts = [
        direction_loss(student[..., m : m + 1, :], teacher[..., m : m + 1, :], KEPT[..., m : m + 1] & ones)[0]
        for m in range(4)
    ]
    scale = torch.tensor([1.0, 2.0, 0.0, 3.0], dtype=torch.float64)
    loss = direction_loss(student, teacher, KEPT, weight=scale.expand(4, 2, 4))[0]
    same(loss, (torch.stack(parts) * scale).sum())
    assert direction_loss(student, teacher, KEPT, weight=weight)[1] == direction_loss(student, teacher, KEPT)[1]
    assert direction_loss(student.bfloat16(), teacher.bfloat16(), KEPT)[0].dtype == torch.float32
    with pytest.raises(ValueError, match="unknown direction loss 'cos'"):
        direction_loss(student, teacher, KEPT, "cos")


# cka


@pytest.mark.parametrize("unbiased", [False, True])
def test_cka_knows_arrangement_only(unbiased: bool) -> None:
    mask = torch.arange(8) < torch.tensor([8, 5, 3])[:, None]
    vectors = draw(3, 8, 6, seed=1)
    turn, _ = torch.linalg.qr(draw(6, 6, seed=2))
    alike = (vectors @ turn) * 30 + 7
    enough = mask.sum(1) >= 4 if unbiased else mask.sum(1) >= 2
    same(cka(vectors, vectors, mask, unbiased), enough.double())
    same(cka(vectors, alike, mask, unbiased), enough.double())
    other = draw(3, 8, 4, seed=3)
    loss = cka(vectors, other, mask, unbiased)
    assert (loss[enough] < 0.9).all()
    garbage = vectors.masked_fill(~mask[..., None], 1e3)
    same(cka(garbage, other, mask, unbiased), loss)
    single = torch.ones(3, 8, 1, dtype=torch.float64)
    assert not cka(vectors, single, mask, unbiased).any()


def test_unbiased_cka_sees_nothing_in_noise() -> None:
    """8 tokens in 300 dimensions: the biased one finds unrelated vectors much alike."""
    left, right = draw(200, 8, 300, seed=1), draw(200, 8, 300, seed=2)
    mask = torch.ones(200, 8, dtype=torch.bool)
    assert cka(left, right, mask).mean() > 0.8
    assert cka(left, right, mask, unbiased=True).mean().abs() < 0.05


@pytest.mark.parametrize("unbiased", [False, True])
def test_cka_gradients(unbiased: bool) -> None:
    mask = torch.arange(5) < torch.tensor([5, 4, 1, 0])[:, None]
    left, right = draw(4, 5, 3, seed=1).requires_grad_(), draw(4, 5, 2, seed=2).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: cka(a, b, mask, unbiased).sum(), (left, right))


# guard


def test_the_guard_pushes_a_collapsed_projection_apart_and_leaves_a_lively_one() -> None:
    kept = torch.ones(2, 5, dtype=torch.bool)
    reference = torch.ones(3, dtype=torch.float64)
    assert variance_guard(torch.zeros(2, 5, 3, dtype=torch.float64), kept, reference) == 2
    lively = draw(2, 5, 3, seed=1) * 20
    assert variance_guard(lively, kept, reference) == 0
    narrow = (draw(2, 5, 3, seed=1) * 0.01).requires_grad_()
    variance_guard(narrow, kept, reference).backward()
    step = narrow.detach() - 0.1 * narrow.grad
    assert (step.std(1) > narrow.std(1) + 0.005).all()


def test_guard_gradients() -> None:
    kept = KEPT[:, 0]
    reference = torch.tensor([9.0, 9.0, 0.0], dtype=torch.float64)
    projected = draw(4, 4, 3, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda p: variance_guard(p, kept, reference), projected)
    flat = torch.zeros(4, 4, 3, requires_grad=True)
    variance_guard(flat, kept, reference).backward()
    assert flat.grad.isfinite().all()


# meter


def test_a_constant_answer_has_a_high_raw_cosine_and_none_when_centred() -> None:
    mask = torch.arange(6) < torch.tensor([6, 2, 4])[:, None]
    target = draw(3, 6, 5, seed=1) + 10
    mean = target[mask].mean(0).expand_as(target)
    meter = CosineMeter()
    meter.add_mean(mean, target, mask)
    meter.add(mean, target, mask)
    value = meter.value()
    assert value["cossim"] > 0.98
    assert value["cossim"] == pytest.approx(value["cossim_mean_predictor"])
    assert value["cossim_centred"] == pytest.approx(0, abs=1e-9)
    assert value["student_spread"] == pytest.approx(0, abs=1e-9)
    assert 0.05 < value["spread"] < 0.2


def test_the_meter_skips_padding_and_notices_a_collapsed_target() -> None:
    mask = torch.arange(6) < torch.tensor([6, 2, 4])[:, None]
    student, target = draw(3, 6, 5, seed=1), torch.ones(3, 6, 5)
    values = []
    for garbage in (0.0, 1e4):
        meter = CosineMeter()
        batch = student.masked_fill(~mask[..., None], garbage), target.masked_fill(~mask[..., None], -garbage), mask
        meter.add_mean(*batch)
        meter.add(*batch)
        values.append(meter.value())
    assert values[0] == values[1]
    assert values[0]["spread"] == 0
    assert values[0]["student_spread"] > 0.5
    assert values[0]["cossim_mean_predictor"] == pytest.approx(1)


def test_the_meter_needs_both_passes_in_order() -> None:
    batch = draw(1, 2, 3), draw(1, 2, 3), torch.ones(1, 2, dtype=torch.bool)
    meter = CosineMeter()
    assert set(meter.value().values()) == {None}
    with pytest.raises(ValueError, match="the means come first"):
        meter.add(*batch)
    meter.add_mean(*batch)
    meter.add(*batch)
    with pytest.raises(ValueError, match="in use already"):
        meter.add_mean(*batch)
