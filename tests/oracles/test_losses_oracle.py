"""Every loss and its gradient against plain loops; targets get no gradient."""

from __future__ import annotations

import itertools

import oracle_losses as slow
import pytest
import torch
from torch import Tensor

from kava.lab.bench.timing import peak_memory
from kava.losses import Head, Term, add, codi_loss, cross_entropy, kv_loss

KINDS = ("l1", "mse", "smooth_l1")
SCOPES = ("sample", "batch")
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5}
COUNTS = ((3, 0, 1, 2), (0, 0), (3, 3), (1,))  # kept slots of each sample; the last case is one single number


def draw(*shape: int, seed: int = 0, scale: float = 1.5) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


def leaves(*tensors: Tensor) -> list[Tensor]:
    return [tensor.detach().clone().requires_grad_() for tensor in tensors]


def close(actual: Tensor, expected: object, tolerance: float = 1e-9) -> None:
    wanted = torch.tensor(expected, dtype=torch.float64).reshape(actual.shape)
    torch.testing.assert_close(actual.double(), wanted, rtol=tolerance, atol=tolerance)


# kv


@pytest.mark.parametrize(("kind", "std", "scope"), list(itertools.product(KINDS, (True, False), SCOPES)))
def test_kv_loss(kind: str, std: bool, scope: str) -> None:
    for slots, dtype in itertools.product(COUNTS, TOLERANCE):
        heads, width = (1, 1) if slots == (1,) else (2, 4)
        student, teacher = leaves(
            draw(len(slots), heads, 3, width, seed=1).to(dtype), draw(len(slots), heads, 3, width, seed=2).to(dtype)
        )
        kept = (torch.arange(3) < torch.tensor(slots)[:, None])[:, None].expand(-1, heads, -1)
        loss = kv_loss(student, teacher, kept, kind, std, scope)
        lists = student.double().tolist(), teacher.double().tolist(), kept.tolist()
        total, gradient = slow.kv_loss(*lists, kind, std, scope)
        close(loss, total, TOLERANCE[dtype])
        loss.backward()
        close(student.grad, gradient, TOLERANCE[dtype])
        assert teacher.grad is None


@pytest.mark.parametrize("kind", KINDS)
def test_kv_loss_of_a_batch_is_the_sum_over_its_samples(kind: str) -> None:
    """std_scope sample: split as you like. An empty slot may hold anything finite."""
    student, teacher = draw(4, 2, 3, 5, seed=3), draw(4, 2, 3, 5, seed=4)
    kept = (torch.arange(3) < torch.tensor([3, 0, 1, 2])[:, None])[:, None].expand(-1, 2, -1)
    whole = kv_loss(student, teacher, kept, kind)
    rows = [kv_loss(student[b : b + 1], teacher[b : b + 1], kept[b : b + 1], kind) for b in range(4)]
    torch.testing.assert_close(torch.stack(rows).sum(), whole, rtol=1e-12, atol=0.0)
    elsewhere = torch.where(kept[..., None], teacher, 1e3)
    torch.testing.assert_close(kv_loss(student, elsewhere, kept, kind), whole, rtol=1e-12, atol=0.0)


def test_kv_loss_divides_the_loss_and_not_its_argument() -> None:
    """smooth_l1(x) / std: at x = 3, std 2 that is 2.5 / 2, and not smooth_l1(1.5) = 1."""
    teacher = torch.tensor([[[[-(2**0.5), 2**0.5]]]], dtype=torch.float64)
    kept = torch.ones(1, 1, 1, dtype=torch.bool)
    close(kv_loss(teacher + 3, teacher, kept, "smooth_l1"), 2 * 2.5 / 2)
    close(kv_loss(teacher + 3, teacher, kept, "mse"), 2 * 9 / 4)


# codi


@pytest.mark.parametrize(("kind", "layerwise", "scope"), list(itertools.product(KINDS, (True, False), SCOPES)))
def test_codi_loss(kind: str, layerwise: bool, scope: str) -> None:
    scales = torch.tensor([1.0, 5.0, 0.2])[:, None]  # layers of unlike size: one std for all differs from one for each
    for batch, dtype in itertools.product((1, 3), TOLERANCE):
        student, teacher = leaves(
            (draw(batch, 3, 4, seed=5) * scales).to(dtype), (draw(batch, 3, 4, seed=6) * scales + 1).to(dtype)
        )
        loss = codi_loss(student, teacher, kind, layerwise, scope)
        total, gradient = slow.codi_loss(student.double().tolist(), teacher.double().tolist(), kind, layerwise, scope)
        close(loss, total, TOLERANCE[dtype])
        loss.backward()
        close(student.grad, gradient, TOLERANCE[dtype])
        assert teacher.grad is None


@pytest.mark.parametrize("kind", KINDS)
def test_a_constant_teacher_is_no_division_by_zero(kind: str) -> None:
    student, teacher = draw(2, 3, 4, seed=7), torch.ones(2, 3, 4, dtype=torch.float64)
    total, _ = slow.codi_loss(student.tolist(), teacher.tolist(), kind, True, "sample")
    close(codi_loss(student, teacher, kind), total)


def test_unknown_kind_is_named() -> None:
    with pytest.raises(ValueError, match="huber"):
        codi_loss(torch.ones(1, 1, 2), torch.ones(1, 1, 2), "huber")


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_is_reduced_in_float32(kind: str) -> None:
    """10,000 small differences in bfloat16: a sum in that precision would stop growing long before its end."""
    student, teacher = draw(1, 1, 100, 100, seed=8).bfloat16(), draw(1, 1, 100, 100, seed=9).bfloat16()
    kept = torch.ones(1, 1, 100, dtype=torch.bool)
    half = kv_loss(student, teacher, kept, kind)
    assert half.dtype == torch.float32
    torch.testing.assert_close(
        half.double(), kv_loss(student.double(), teacher.double(), kept, kind), rtol=1e-5, atol=0
    )


# cross-entropy


def head_of(weight: Tensor, way: str, **scales: float) -> Head:
    if way == "weight":
        return Head(len(weight), weight, **scales)
    return Head(len(weight), layer=lambda rows: rows @ weight.T, **scales)


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("way", ["weight", "layer"])
@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize(("rows", "at_once"), [(7, 4096), (7, 7), (7, 3), (7, 1), (0, 4), (1, 1)])
def test_cross_entropy(rows: int, at_once: int, trained: bool, way: str, dtype: torch.dtype) -> None:
    """Whole or in pieces, the head's weight trained or frozen: the same sum and the same gradients."""
    hidden, weight = leaves(draw(rows, 4, seed=10).to(dtype), draw(11, 4, seed=11).to(dtype))
    weight.requires_grad_(trained)
    targets = torch.arange(rows) * 3 % 11
    loss = cross_entropy(hidden, targets, head_of(weight, way), at_once)
    total, grad_hidden, grad_head = slow.cross_entropy(
        hidden.double().tolist(), targets.tolist(), weight.double().tolist()
    )
    close(loss, total, TOLERANCE[dtype])
    loss.backward()
    close(hidden.grad, grad_hidden, TOLERANCE[dtype])
    if trained:
        close(weight.grad, grad_head, TOLERANCE[dtype])
    with torch.no_grad():
        close(cross_entropy(hidden, targets, head_of(weight, way), at_once), total, TOLERANCE[dtype])


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("scales", [{"divisor": 8.0}, {"cap": 3.0}, {"divisor": 2.0, "cap": 0.7}], ids=str)
def test_cross_entropy_of_capped_and_divided_logits(scales: dict[str, float], trained: bool) -> None:
    hidden, weight = leaves(4 * draw(7, 4, seed=10), draw(11, 4, seed=11))
    weight.requires_grad_(trained)
    targets = torch.arange(7) * 3 % 11
    parts = [hidden, weight] if trained else [hidden]
    results = []
    for way in ("weight", "layer"):
        loss = 5 * cross_entropy(hidden, targets, head_of(weight, way, **scales), 3)
        results.append([loss, *torch.autograd.grad(loss, parts)])
    logits = hidden @ weight.T / scales.get("divisor", 1.0)
    logits = logits if "cap" not in scales else scales["cap"] * torch.tanh(logits / scales["cap"])
    loss = 5 * torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
    for result in results:
        for own, wanted in zip(result, [loss, *torch.autograd.grad(loss, parts, retain_graph=True)], strict=True):
            torch.testing.assert_close(own, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("trained", [True, False])
def test_cross_entropy_of_half_precision_is_summed_in_float32(trained: bool) -> None:
    """Under autocast and with weights in bfloat16 the products are rounded, and nothing else."""
    hidden, weight = leaves(draw(40, 8, seed=10).float(), draw(300, 8, seed=11).float())
    weight.requires_grad_(trained)
    targets = torch.arange(40) * 7 % 300
    results = []
    for way in ("weight", "layer"):
        with torch.autocast("cpu", torch.bfloat16):
            loss = cross_entropy(hidden, targets, head_of(weight, way), 16)
        assert loss.dtype == torch.float32
        results.append([loss, *torch.autograd.grad(loss, [hidden, weight] if trained else [hidden])])
    for own, wanted in zip(*results, strict=True):
        torch.testing.assert_close(own, wanted, rtol=1e-2, atol=1e-2 * float(wanted.detach().abs().max()))
    half = cross_entropy(hidden.bfloat16(), targets, Head(300, weight.bfloat16()), 16)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, results[1][0], rtol=1e-2, atol=0)


def test_cross_entropy_makes_no_logits_without_need() -> None:
    """In pieces, never more than `rows` targets pass the head at once."""
    widest = []

    def layer(rows: Tensor) -> Tensor:
        widest.append(len(rows))
        return rows

    head = Head(5, layer=layer)
    cross_entropy(draw(10, 5, seed=12).requires_grad_(), torch.zeros(10, dtype=torch.long), head, 4).backward()
    assert max(widest) == 4


def peak_of_cross_entropy(targets: int, vocabulary: int, rows: int | None, trained: bool, **scales: float) -> int:
    """The peak of loss and gradients in bytes, the gradient of the weight left out."""
    hidden, weight = torch.randn(targets, 8, requires_grad=True), torch.randn(vocabulary, 8, requires_grad=trained)
    labels = torch.arange(targets) % vocabulary
    run = lambda: cross_entropy(hidden, labels, Head(vocabulary, weight, **scales), rows).backward()  # noqa: E731
    return peak_memory(run, torch.device("cpu")) - trained * weight.numel() * 4


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize(("scales", "tensors"), [({}, 1), ({"cap": 30.0, "divisor": 2.0}, 2)], ids=str)
def test_cross_entropy_holds_the_logits_of_a_piece_once(scales: dict, tensors: float, trained: bool) -> None:
    piece = 16 * 20000 * 4
    assert tensors * piece <= peak_of_cross_entropy(100, 20000, 16, trained, **scales) <= (tensors + 0.6) * piece


@pytest.mark.long
@pytest.mark.parametrize("trained", [True, False])
def test_a_batch_of_3072_targets_over_151936_tokens_takes_less_than_a_gibibyte(trained: bool) -> None:
    assert peak_of_cross_entropy(3072, 151936, None, trained) < 2**30


# terms


def test_add_against_sums_and_counts() -> None:
    totals, counts, weights = [6.0, 5.0, 7.0], [3.0, 0.0, 2.0], [1.0, 10.0, 0.5]
    terms = [Term(f"t{i}", torch.tensor(totals[i]), counts[i], weights[i]) for i in range(3)]
    close(add(terms), slow.weighted(totals, counts, weights))
    window = {"t0": 12.0, "t1": 4.0, "t2": 0.0}
    close(add(terms, window), slow.weighted(totals, [12.0, 4.0, 0.0], weights))


@pytest.mark.parametrize("total", [0.0, float("nan"), float("inf")])
def test_a_term_without_a_count_is_zero_and_not_nan(total: float) -> None:
    term = Term("kv", torch.tensor(total), 0.0, 2.0)
    assert term.value().item() == 0.0
    assert add([term, Term("ce", torch.tensor(3.0), 2.0)]).item() == 1.5


def test_any_split_of_a_window_adds_up_to_the_same() -> None:
    """1x8 = 2x4 = 8x1: uneven counts, one sample with nothing to count; value and gradient."""
    numbers, counts = draw(8, seed=13), [3.0, 0.0, 1.0, 2.0, 0.0, 4.0, 1.0, 1.0]
    live = torch.tensor([count > 0 for count in counts])
    results = []
    for size in (8, 4, 1):
        leaf = numbers.clone().requires_grad_()
        window = {"kv": sum(counts), "ce": 8.0}
        for at in range(0, 8, size):
            part = leaf[at : at + size]
            kv = Term("kv", (part.square() * live[at : at + size]).sum(), sum(counts[at : at + size]), 2.0)
            ce = Term("ce", part.exp().sum(), float(size))
            add([kv, ce], window).backward()
        results.append(leaf.grad)
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=1e-12, atol=1e-12)
